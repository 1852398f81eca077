command -v Xvfb >/dev/null || exit 127
command -v xterm >/dev/null || exit 127
command -v xclock >/dev/null || exit 127
export DISPLAY=:77; Xvfb :77 -screen 0 640x480x24 -nolisten unix -listen tcp -ac > l 2>&1 & X=$!; export DISPLAY=127.0.0.1:77
for i in $(seq 50); do xdpyinfo >/dev/null 2>&1 && break; sleep .1; done
xclock -update 1 & C=$!; xterm -e sh -c 'for i in $(seq 12); do echo $i; sleep .3; done; echo fin > t' & T=$!
wait $T; cat t; xwininfo -root -tree | grep -c xclock; kill $C; wait $C 2>/dev/null; kill $X; wait $X; echo $?
