command -v uwsgi >/dev/null && [ -e /usr/lib/uwsgi/plugins/python3_plugin.so ] || exit 127
cat > app.py <<'P'
import time, uwsgi
def application(env, start):
    with_lock = env['PATH_INFO'] == '/lock'
    if with_lock:
        uwsgi.lock(); n = int(uwsgi.cache_get('n') or b'0') + 1; time.sleep(.002); uwsgi.cache_update('n', str(n).encode()); uwsgi.unlock()
    s = 0
    for i in range(20000): s = (s * 31 + i) % 1000003
    start('200 OK', [('Content-Type', 'text/plain')])
    if env['PATH_INFO'] == '/n': return [uwsgi.cache_get('n') or b'0']
    return [(env['PATH_INFO'] + str(s)).encode() * 200]
P
U=; [ $(id -u) = 0 ] && U="--uid nobody --gid nogroup"; chmod 755 . ..
uwsgi --plugin python3 --http-socket 127.0.0.1:18510 --master --processes 2 --threads 2 --enable-threads --cache2 name=c,items=10 --wsgi-file app.py --stats 127.0.0.1:18511 --spooler-quiet $U >l 2>&1 & W=$!
for i in $(seq 100); do curl -s 127.0.0.1:18510/ >/dev/null && break; sleep .1; done
c() { for i in $(seq 100); do curl -s 127.0.0.1:18510/a$i; curl -s 127.0.0.1:18510/lock >/dev/null; sleep .005; done | md5sum; }
c > o1 & A=$!; c > o2 & B=$!; c > o3 & C=$!; wait $A $B $C; cat o1 o2 o3; curl -s 127.0.0.1:18510/n; echo; kill -INT $W; wait $W; echo $?
