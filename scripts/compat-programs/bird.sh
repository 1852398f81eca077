command -v bird >/dev/null && [ $(id -u) = 0 ] || exit 127
for k in 1 2; do p=$((3 - k)); cat > b$k.conf <<E
router id 127.0.0.$k;
protocol device { scan time 1; }
protocol static { ipv4; $(for i in $(seq 60); do echo "route 10.$k.$i.0/24 blackhole;"; done) }
protocol bgp x { local 127.0.0.$k port 1817$k as 6500$k; neighbor 127.0.0.$p port 1817$p as 6500$p; multihop; hold time 60; connect delay time 1; connect retry time 1; ipv4 { import all; export all; next hop self; }; }
E
bird -f -c b$k.conf -s c$k.s -P p$k >l$k 2>&1 & eval B$k=$!; done
for i in $(seq 100); do [ "$(birdc -s c1.s show route 2>/dev/null | grep -c '10.2')" = 60 ] && break; sleep .1; done
for i in $(seq 20); do birdc -s c1.s show protocols x | grep -c Established; sleep .1; done | sort | uniq -c; birdc -s c2.s show route count | tail -1; birdc -s c2.s show route | grep '^10' | cut -d' ' -f1 | sort | md5sum
kill $B1 $B2; wait; echo end
