command -v rsyslogd >/dev/null || exit 127
cat > r.conf <<E
module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="$PWD/log.s" RateLimit.Interval="0")
module(load="imudp")
module(load="imtcp")
input(type="imudp" address="127.0.0.1" port="18514")
input(type="imtcp" address="127.0.0.1" port="18515")
global(workDirectory="$PWD")
main_queue(queue.type="LinkedList" queue.workerThreads="2")
template(name="t" type="string" string="%msg%\n")
action(type="omfile" file="$PWD/out" template="t" asyncWriting="on" flushInterval="1")
action(type="omfwd" target="127.0.0.1" port="18516" protocol="tcp" template="t" queue.type="LinkedList" queue.filename="fq" queue.saveOnShutdown="on" action.resumeRetryCount="-1")
E
nc -lk 127.0.0.1 18516 > got & N=$!; sleep .2
rsyslogd -n -f $PWD/r.conf -i $PWD/pid >l 2>&1 & R=$!; for i in $(seq 50); do [ -S log.s ] && break; sleep .1; done; sleep .3
for i in $(seq 150); do logger -u $PWD/log.s -t x "unix $i"; sleep .005; done & A=$!
for i in $(seq 150); do logger -n 127.0.0.1 -P 18515 -T -t x "tcp $i"; sleep .005; done & B=$!; wait $A $B
for i in $(seq 50); do [ $(wc -l < got) -ge 300 ] && break; sleep .1; done; sleep 1.2
grep -oE '(unix|tcp) [0-9]+' out | sort | md5sum; grep -oE '(unix|tcp) [0-9]+' got | sort | md5sum; kill $R; wait $R; echo $?; kill $N
