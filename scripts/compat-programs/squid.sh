command -v squid >/dev/null || exit 127
mkdir -p w c; for i in $(seq 40); do head -c $((i*5000)) /dev/zero | tr '\0' $((i%10)) > w/f$i; done; chmod -R a+rwX . ; chmod a+rx ..
cat > s.conf <<E
http_port 127.0.0.1:18128
acl all_ src all
http_access allow all_
cache_dir aufs $PWD/c 50 4 4
cache_mem 4 MB
pid_filename $PWD/pid
access_log stdio:$PWD/access
cache_log $PWD/clog
cache_store_log none
coredump_dir $PWD
netdb_filename none
visible_hostname x
shutdown_lifetime 1 second
refresh_pattern . 60 100% 60 override-expire
pinger_enable off
E
[ $(id -u) = 0 ] && { echo cache_effective_user nobody >> s.conf; chown -R nobody c .; }
/usr/bin/python3 -m http.server -d w -b 127.0.0.1 18129 >hl 2>&1 & H=$!
squid -n s$$ -f s.conf -z -N >z 2>&1; squid -n s$$ -f s.conf -N >l 2>&1 & S=$!
for i in $(seq 100); do (exec 3<>/dev/tcp/127.0.0.1/18128) 2>/dev/null && (exec 3<>/dev/tcp/127.0.0.1/18129) 2>/dev/null && break; sleep .1; done
get() { for k in 1 2; do for i in $(seq $1 40); do curl -s --limit-rate 3M -x http://127.0.0.1:18128 http://127.0.0.1:18129/f$i; sleep .01; done; done | md5sum; }
get 1 > o1 & A=$!; get 5 > o2 & B=$!; wait $A $B; cat o1 o2; kill $S; wait $S; echo $?; kill $H
