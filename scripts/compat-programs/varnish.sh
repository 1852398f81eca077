command -v varnishd >/dev/null || exit 127
mkdir w n; seq 1 50000 > w/a.txt; (cd w; exec /usr/bin/python3 -m http.server -b 127.0.0.1 16315 >/dev/null 2>&1) & W=$!
varnishd -F -n $PWD/n -a 127.0.0.1:16316 -b 127.0.0.1:16315 -s malloc,32m -j none -p vcc_allow_inline_c=off > log 2>&1 & V=$!
for i in $(seq 200); do curl -sf 127.0.0.1:16316/a.txt >/dev/null && break; sleep .1; done
for k in 1 2; do (for i in $(seq 150); do curl -s "127.0.0.1:16316/a.txt?$((i%20))"; done | sha256sum > o$k) & P="$P $!"; done; wait $P; cat o1 o2
varnishadm -n $PWD/n backend.list | awk 'NR==2{print $2}'; kill $V; wait $V; echo $?; kill $W
