command -v caddy >/dev/null || exit 127
mkdir w; seq 1 50000 > w/a.txt; export XDG_DATA_HOME=$PWD/x XDG_CONFIG_HOME=$PWD/y
printf "{\n admin unix/$PWD/admin\n auto_https off\n}\nhttp://127.0.0.1:16325 {\n root * $PWD/w\n encode gzip\n file_server\n}\nhttp://127.0.0.1:16326 {\n reverse_proxy 127.0.0.1:16325\n}\n" > Caddyfile
caddy run --config Caddyfile > log 2>&1 & C=$!
for i in $(seq 200); do curl -sf 127.0.0.1:16326/a.txt >/dev/null && break; sleep .1; done
for k in 1 2; do (for i in $(seq 150); do curl -s --compressed "127.0.0.1:16326/a.txt"; done | sha256sum > o$k) & P="$P $!"; done; wait $P; cat o1 o2; kill $C; wait $C; echo $?
