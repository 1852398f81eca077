F=$(ls /usr/sbin/php-fpm* 2>/dev/null | head -1); [ -n "$F" ] && command -v nginx >/dev/null || exit 127
chmod 755 . ..; mkdir -p w t s; chmod 777 s
cat > w/a.php <<'E'
<?php session_save_path(getenv('SP') ?: $_SERVER['SP']); session_start(); $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; $s = 0; for ($i = 0; $i < 200000; $i++) $s = ($s * 31 + $i) % 1000003; echo $_SESSION['n'], ' ', $s, "\n";
E
U=; [ $(id -u) = 0 ] && U="user=nobody
group=nogroup
listen.owner=nobody"
printf "[global]\nerror_log=$PWD/fl\ndaemonize=no\n[www]\n$U\nlisten=$PWD/fpm.s\npm=dynamic\npm.max_children=4\npm.start_servers=2\npm.min_spare_servers=1\npm.max_spare_servers=3\nlisten.mode=0666\n" > f.conf
cat > n.conf <<E
daemon off; pid $PWD/np; error_log $PWD/nl; $([ $(id -u) = 0 ] && echo 'user nobody nogroup;')
events {} http { access_log off; client_body_temp_path $PWD/t/b; proxy_temp_path $PWD/t/p; fastcgi_temp_path $PWD/t/f; uwsgi_temp_path $PWD/t/u; scgi_temp_path $PWD/t/s;
server { listen 127.0.0.1:18480; root $PWD/w; location / { include /etc/nginx/fastcgi_params; fastcgi_param SP $PWD/s; fastcgi_param SCRIPT_FILENAME \$document_root\$fastcgi_script_name; fastcgi_pass unix:$PWD/fpm.s; } } }
E
$F -F -y f.conf -n -c /dev/null >l 2>&1 & A=$!; nginx -c $PWD/n.conf -p $PWD >l2 2>&1 & B=$!
for i in $(seq 60); do curl -sf 127.0.0.1:18480/a.php >/dev/null && break; sleep .1; done
c() { for i in $(seq 100); do curl -s -b j$1 -c j$1 127.0.0.1:18480/a.php; sleep .01; done | md5sum; }
c 1 > o1 & X=$!; c 2 > o2 & Y=$!; c 3 > o3 & Z=$!; wait $X $Y $Z; cat o1 o2 o3; kill $A $B; wait $A; echo $?; wait $B; echo $?
