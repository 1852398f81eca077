command -v dnsmasq >/dev/null || exit 127
for i in $(seq 100); do echo "10.1.2.$i h$i"; done > hosts
dnsmasq -k -C /dev/null -h -H $PWD/hosts -p 18553 -a 127.0.0.1 --bind-interfaces -R -x $PWD/pid $([ $(id -u) = 0 ] && echo -u root) >l 2>&1 & D=$!
cat > c.py <<'P'
import socket, struct, time, threading
def ask(n, tcp, s=None):
    q = struct.pack('!6H', 7, 256, 1, 0, 0, 0) + bytes([len(n)]) + n + b'\0' + struct.pack('!2H', 1, 1)
    if tcp: s.sendall(struct.pack('!H', len(q)) + q); k = struct.unpack('!H', s.recv(2))[0]; a = s.recv(k)
    else:
        for _ in range(20):
            s.send(q)
            try: a = s.recv(512); break
            except (socket.timeout, ConnectionError): time.sleep(.1)
    return a[-4:]
def run(k, tcp):
    for i in range(100):
        try: s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM); s.connect(('127.0.0.1', 18553)); break
        except OSError: time.sleep(.1)
    if not tcp: s.settimeout(1)
    t = 0
    for i in range(180):
        if tcp and i % 60 == 59: s.close(); s = socket.create_connection(("127.0.0.1", 18553))
        for b in ask(b'h%d' % (i % 90 + 1), tcp, s): t = (t * 31 + b) % 1000003
        time.sleep(.01)
    r[k] = t
r = {}; ts = [threading.Thread(target=run, args=(k, k % 2)) for k in range(4)]
time.sleep(.5)
for t in ts: t.start()
for t in ts: t.join()
print(sorted(r.items()))
P
/usr/bin/python3 c.py; kill $D; wait $D; echo $?
