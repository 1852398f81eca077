command -v unbound >/dev/null || exit 127
cat > u.conf <<T
server:
 interface: 127.0.0.1@16320
 num-threads: 2
 chroot: ""
 username: ""
 directory: "$PWD"
 pidfile: ""
 do-daemonize: no
 use-syslog: no
 logfile: "$PWD/log"
 local-zone: "x." static
$(for i in $(seq 300); do echo " local-data: \"h$i.x. A 10.0.$((i/250)).$((i%250))\""; done)
remote-control:
 control-enable: no
T
unbound -c u.conf -d 2>e & U=$!
cat > c.py <<'T'
import socket, struct, hashlib
h = hashlib.sha256()
def q(i, tcp):
    m = struct.pack('>HHHHHH', i, 256, 1, 0, 0, 0) + b''.join(bytes([len(p)]) + p for p in (b'h%d' % (i % 300 + 1), b'x')) + b'\0\0\1\0\1'
    for _ in range(100):
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM); s.settimeout(2)
        try:
            s.connect(('127.0.0.1', 16320)); s.send((struct.pack('>H', len(m)) if tcp else b'') + m); r = s.recv(600); h.update(r[2 if tcp else 0:]); return
        except OSError: import time; time.sleep(.1)
        finally: s.close()
for i in range(16000): q(i, i % 5 == 0)
print(h.hexdigest())
T
/usr/bin/python3 c.py; kill $U; wait $U; echo $?
