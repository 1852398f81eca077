command -v redis-server >/dev/null || exit 127
redis-server --port 16379 --bind 127.0.0.1 --appendonly yes --save "1 100" --dir $PWD --io-threads 2 > log 2>&1 & R=$!
c() { redis-cli -p 16379 "$@"; }
for i in $(seq 100); do c ping >/dev/null 2>&1 && break; sleep .1; done
redis-benchmark -p 16379 -n 20000 -c 20 -t set,lpush,incr -q >/dev/null 2>&1; echo $?
for i in $(seq 1 2000); do echo "set k$i v$i"; done | c | sort | uniq -c
c bgrewriteaof >/dev/null; c llen mylist; c get counter:__rand_int__; c get k1999; c dbsize; c shutdown; wait $R; echo $?
