command -v dbus-daemon >/dev/null && /usr/bin/python3 -c 'import dbus,gi' 2>/dev/null || exit 127
dbus-daemon --session --nofork --address=unix:path=$PWD/bus --print-address >a 2>l & D=$!; for i in $(seq 50); do [ -S bus ] && break; sleep .1; done
export DBUS_SESSION_BUS_ADDRESS=unix:path=$PWD/bus
cat > s.py <<'P'
import dbus, dbus.service, dbus.mainloop.glib
from gi.repository import GLib
dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
b = dbus.SessionBus(); n = dbus.service.BusName('a.b', b)
class O(dbus.service.Object):
    s = 0
    @dbus.service.method('a.b', in_signature='i', out_signature='i')
    def Add(self, i):
        self.s = (self.s * 31 + i) % 1000003
        if i % 10 == 0: self.Sig(self.s)
        return self.s
    @dbus.service.signal('a.b', signature='i')
    def Sig(self, i): pass
    @dbus.service.method('a.b')
    def Quit(self): loop.quit()
o = O(b, '/o'); loop = GLib.MainLoop(); loop.run()
P
cat > c.py <<'P'
import dbus, time
b = dbus.SessionBus()
for i in range(100):
    try: o = b.get_object('a.b', '/o'); break
    except dbus.DBusException: time.sleep(.1)
for i in range(300): r = o.Add(i, dbus_interface='a.b'); time.sleep(.008)
print(r); time.sleep(.3); o.Quit(dbus_interface='a.b')
P
/usr/bin/python3 s.py & S=$!; for i in $(seq 60); do dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner string:a.b 2>/dev/null | grep -q true && break; sleep .1; done
dbus-monitor --session "type='signal',interface='a.b'" > m & M=$!; sleep .3; /usr/bin/python3 c.py; wait $S; echo $?; grep int32 m | md5sum; kill $M $D; wait; echo end
