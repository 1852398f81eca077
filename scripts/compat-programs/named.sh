command -v named >/dev/null || exit 127
mkdir -p d; cat > n.conf <<T
options { directory "$PWD/d"; listen-on port 18053 { 127.0.0.1; }; listen-on-v6 { none; }; pid-file "$PWD/p"; session-keyfile "$PWD/k"; recursion no; allow-update { any; }; };
controls { };
zone "x.test" { type master; file "$PWD/d/z"; allow-update { any; }; };
T
printf '$TTL 60\n@ IN SOA a b 1 60 60 60 60\n@ IN NS a\na IN A 127.0.0.1\n' > d/z
named -g -n 2 -c $PWD/n.conf > l 2>&1 & N=$!
cat > c.py <<'T'
import socket,struct,time
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.connect(('127.0.0.1',18053)); s.settimeout(.5); ok=0
n=lambda h: b''.join(bytes([len(p)])+p.encode() for p in h.split('.'))+b'\0'
for i in range(400):
    q=struct.pack('>6H',i,0,1,0,0,0)+n('a.x.test')+struct.pack('>2H',1,1)
    for _ in range(40):
        try:
            s.send(q); r=s.recv(600)
            if r[:2]==q[:2] and b'\x7f\0\0\1' in r: ok+=1; break
        except OSError: time.sleep(.1)
    time.sleep(.008)
print(ok)
T
/usr/bin/python3 c.py; kill $N; wait $N; echo $?
