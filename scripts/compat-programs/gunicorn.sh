[ -x /usr/bin/gunicorn ] || exit 127
cat > app.py <<T
import hashlib
def app(env,start):
    n=int(env['PATH_INFO'][1:]); h=b''
    for i in range(20000): h=hashlib.md5(h+b'%d'%(n+i)).digest()
    b=h.hex().encode()*2000; start('200 OK',[('Content-Length',str(len(b)))]); return [b]
T
/usr/bin/gunicorn -w 3 -b 127.0.0.1:18610 app:app 2>g.log & G=$!
for i in $(seq 100); do curl -sf -o /dev/null http://127.0.0.1:18610/1 && break; sleep .1; done
for c in 1 2 3; do (for i in $(seq 40); do curl -s http://127.0.0.1:18610/$i | md5sum; done | md5sum) & P="$P $!"; done; wait $P
kill $G; wait $G; echo $?
