command -v nginx >/dev/null || exit 127
mkdir -p t www; head -c 3000000 /dev/zero | tr '\0' a > www/f; [ $(id -u) = 0 ] && U="user root;"
cat > n.conf <<T
$U daemon off; worker_processes 2; pid $PWD/n.pid; error_log $PWD/e.log; events { worker_connections 200; }
http { access_log $PWD/a.log; client_body_temp_path $PWD/t/1; proxy_temp_path $PWD/t/2; fastcgi_temp_path $PWD/t/3;
 uwsgi_temp_path $PWD/t/4; scgi_temp_path $PWD/t/5; proxy_cache_path $PWD/t/c keys_zone=z:1m;
 server { listen 127.0.0.1:18080; location / { root $PWD/www; limit_rate 4m; }
  location /p { proxy_pass http://127.0.0.1:18080/; proxy_cache z; } } }
T
nginx -c $PWD/n.conf -e $PWD/e.log & N=$!; sleep 1
for i in 1 2 3 4 5; do curl -s http://127.0.0.1:18080/f | sha256sum & curl -s http://127.0.0.1:18080/p/f | sha256sum; wait %2 2>/dev/null; done
kill -QUIT $N; wait $N; echo $?; wc -l < a.log
