[ -x /usr/sbin/avahi-daemon ] && [ $(id -u) = 0 ] && command -v dbus-daemon >/dev/null || exit 127
mkdir -p a run; printf '[server]\nhost-name=x\ndomain-name=local\nuse-ipv6=no\nallow-interfaces=lo\nenable-dbus=no\n[publish]\npublish-hinfo=no\npublish-workstation=no\n' > a.conf
/usr/sbin/avahi-daemon -f $PWD/a.conf --no-drop-root --no-chroot --no-rlimits --debug >l 2>&1 & A=$!
for i in $(seq 50); do grep -q 'startup complete' l && break; sleep .1; done; sleep 3; grep -c complete l; kill $A; wait $A; echo $?
