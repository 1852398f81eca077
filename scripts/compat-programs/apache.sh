[ -x /usr/sbin/apache2 ] || exit 127
mkdir -p w; head -c 2000000 /dev/zero | tr '\0' b > w/f; M=/usr/lib/apache2/modules
cat > a.conf <<T
ServerRoot $PWD
ServerName localhost
DocumentRoot $PWD/w
PidFile $PWD/a.pid
ErrorLog $PWD/e.log
Listen 127.0.0.1:18085
LoadModule mpm_MPM_module $M/mod_mpm_MPM.so
LoadModule authz_core_module $M/mod_authz_core.so
DefaultRuntimeDir $PWD
T
[ $(id -u) = 0 ] && printf "User nobody\nGroup nogroup\n" >> a.conf && chmod 711 .. && chmod -R a+rX .
set -m
for m in prefork event worker; do sed "s/MPM/$m/g" a.conf > $m.conf
/usr/sbin/apache2 -f $PWD/$m.conf -D FOREGROUND >l 2>&1 & H=$!; for i in $(seq 100); do curl -sf -o /dev/null http://127.0.0.1:18085/f && break; sleep .1; done
P=; for c in 1 2 3; do (for i in 1 2 3; do curl -s --limit-rate 5M http://127.0.0.1:18085/f | md5sum; done) & P="$P $!"; done; wait $P; kill $H; wait $H; echo $m $?; done
