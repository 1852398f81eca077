[ -x /usr/sbin/cupsd ] && [ $(id -u) = 0 ] && command -v lp >/dev/null || exit 127
mkdir -p s c r t lg; chmod 755 . ..
cat > c/cups-files.conf <<E
ServerRoot $PWD/c
StateDir $PWD/s
RequestRoot $PWD/r
CacheDir $PWD/t
AccessLog $PWD/lg/a
ErrorLog $PWD/lg/e
PageLog $PWD/lg/p
FileDevice Yes
User lp
Group lp
SystemGroup root
E
printf 'Listen 127.0.0.1:18631\nDefaultAuthType None\nBrowsing Off\nJobRetryInterval 1\n<Location />\n Order allow,deny\n</Location>\n<Location /admin>\n</Location>\n<Policy default>\n<Limit All>\nOrder allow,deny\n</Limit>\n</Policy>\n' > c/cupsd.conf
touch out; chmod 666 out; chown -R lp s r t lg
cupsd -f -c $PWD/c/cupsd.conf -s $PWD/c/cups-files.conf >l 2>&1 & C=$!; sleep 1
export CUPS_SERVER=127.0.0.1:18631
lpadmin -p x -E -v file:$PWD/out -m raw 2>&1 | grep -v deprecated; for i in $(seq 15); do seq $i $((i*200)) > f; lp -d x f >/dev/null; sleep .15; done; for i in $(seq 50); do lpstat -o x | grep -q . || break; sleep .1; done; lpstat -W completed -o x | wc -l; kill $C; wait $C; echo $?
