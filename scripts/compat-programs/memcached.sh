command -v memcached >/dev/null || exit 127
[ $(id -u) = 0 ] && U="-u root"
memcached -l 127.0.0.1 -p 16311 -t 4 -m 64 $U 2>log & M=$!
cat > c.py <<'T'
import socket, sys, time, hashlib
k = int(sys.argv[1])
for _ in range(300):
    try: s = socket.create_connection(('127.0.0.1', 16311)); break
    except OSError: time.sleep(.1)
f = s.makefile('rwb'); h = hashlib.sha256()
for i in range(4000):
    v = b'v' * (i * 7 % 900) + b'%d' % i
    f.write(b'set k%d-%d 0 0 %d\r\n%s\r\n' % (k, i % 700, len(v), v)); f.flush(); assert f.readline() == b'STORED\r\n'
    f.write(b'get k%d-%d\r\n' % (k, i % 700)); f.flush()
    a, b, c = f.readline(), f.readline(), f.readline(); assert b == v + b'\r\n' and c == b'END\r\n', (a, b, c); h.update(a + b)
    if i % 10 == 0: f.write(b'incr n 1\r\n' if i else b'add n 0 0 1\r\n0\r\n'); f.flush(); f.readline()
print(k, h.hexdigest())
T
for k in 1 2 3; do /usr/bin/python3 c.py $k > o$k & P="$P $!"; done; wait $P; cat o*
kill $M; wait $M; echo $?
