command -v influxd >/dev/null || exit 127
export HOME=$PWD
cat > i.conf <<E
reporting-disabled = true
bind-address = "127.0.0.1:18088"
[meta]
 dir = "$PWD/m"
[data]
 dir = "$PWD/d"
 wal-dir = "$PWD/w"
[http]
 bind-address = "127.0.0.1:18086"
E
influxd -config i.conf >l 2>&1 & I=$!; U=http://127.0.0.1:18086
for i in $(seq 100); do curl -s $U/ping -o /dev/null && break; sleep .1; done
curl -s -XPOST $U/query --data-urlencode 'q=create database x'
w() { for i in $(seq 80); do for j in $(seq 50); do echo "m,k=$1 v=$((i*j)) $((1600000000000000000 + i*100000000000 + j*1000000000))"; done | curl -s -XPOST "$U/write?db=x" --data-binary @- ; sleep .02; done; }
w 1 & A=$!; w 2 & B=$!; w 3 & C=$!; wait $A $B $C
for q in 'select count(v),sum(v),max(v) from m group by k' 'select mean(v) from m where time > 1600000000s and time < 1600009000s group by time(1000s)'; do curl -s -G $U/query --data-urlencode db=x --data-urlencode "q=$q" | md5sum; done
kill $I; wait $I; echo $?
