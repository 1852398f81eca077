command -v inkscape >/dev/null || exit 127
export HOME=$PWD XDG_CONFIG_HOME=$PWD/c XDG_CACHE_HOME=$PWD/k
/usr/bin/python3 - <<'P'
import random
random.seed(6)
with open('a.svg', 'w') as f:
    f.write('<svg xmlns="http://www.w3.org/2000/svg" width="600" height="500"><defs><filter id="b"><feGaussianBlur stdDeviation="6"/><feTurbulence baseFrequency="0.03" numOctaves="4" result="t"/><feComposite in="SourceGraphic" in2="t" operator="over"/></filter></defs>')
    for i in range(300): f.write(f'<circle cx="{random.randrange(600)}" cy="{random.randrange(500)}" r="{random.randrange(5, 60)}" fill="rgb({random.randrange(255)},{random.randrange(255)},99)" opacity="0.6" {"filter=" + chr(34) + "url(#b)" + chr(34) if i % 30 == 0 else ""}/>')
    f.write('</svg>')
P
for k in 1 2; do inkscape a.svg --export-type=png -d $((96*k)) -o o$k.png >l 2>&1; echo $?; sha256sum o$k.png; done
