command -v nats-server >/dev/null && command -v /usr/bin/python3 >/dev/null || exit 127
nats-server -a 127.0.0.1 -p 14222 -js -sd $PWD/js >l 2>&1 & N=$!
cat > c.py <<'P'
import socket, threading, time, hashlib
def conn():
    for i in range(100):
        try: s = socket.create_connection(('127.0.0.1', 14222)); break
        except OSError: time.sleep(.1)
    f = s.makefile('rb'); f.readline(); s.sendall(b'CONNECT {"verbose":false}\r\nPING\r\n'); assert f.readline() == b'PONG\r\n'; return s, f
def sub(k):
    s, f = conn(); s.sendall(b'SUB a.* 1\r\nPING\r\n'); f.readline(); ready.release(); h = hashlib.md5(); n = 0
    while n < 1000:
        l = f.readline()
        if l == b'PING\r\n': s.sendall(b'PONG\r\n'); continue
        if l.startswith(b'MSG'): h.update(f.read(int(l.split()[-1]) + 2)); n += 1
    out[k] = h.hexdigest()
ready = threading.Semaphore(0); out = {}
t = [threading.Thread(target=sub, args=(k,)) for k in range(3)]
for x in t: x.start()
for x in t: ready.acquire()
s, f = conn()
for i in range(1000): b = b'm%d' % i * (i % 50 + 1); s.sendall(b'PUB a.%d %d\r\n%s\r\n' % (i, len(b), b)); time.sleep(.004)
for x in t: x.join()
print(out[0], out[1], out[2])
P
/usr/bin/python3 c.py; kill $N; wait $N; echo $?
