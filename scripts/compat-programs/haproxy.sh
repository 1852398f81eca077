command -v haproxy >/dev/null || exit 127
mkdir w; head -c 2000000 /dev/zero | tr '\0' b > w/f; (cd w; exec /usr/bin/python3 -m http.server -b 127.0.0.1 18301 2>/dev/null >/dev/null) & A=$!; (cd w; exec /usr/bin/python3 -m http.server -b 127.0.0.1 18302 >/dev/null 2>&1) & B=$!
cat > h.cfg <<T
global
 nbthread 2
 stats socket $PWD/st
defaults
 mode http
 timeout connect 5s
 timeout client 60s
 timeout server 60s
frontend f
 bind 127.0.0.1:18300
 default_backend b
backend b
 balance roundrobin
 server a 127.0.0.1:18301 check inter 200ms fall 100
 server b 127.0.0.1:18302 check inter 200ms fall 100
T
haproxy -W -f h.cfg >l 2>&1 & H=$!; sleep 1.5
for k in 1 2 3; do (for i in $(seq 8); do curl -s --limit-rate 6M http://127.0.0.1:18300/f | sha256sum; done | sort) & done; wait %4 %5 %6
echo 'show info' | socat - UNIX-CONNECT:st | grep -c Uptime; kill -USR1 $H; wait $H; echo $?; kill $A $B; wait
