command -v pulseaudio >/dev/null && command -v ffmpeg >/dev/null || exit 127
export XDG_RUNTIME_DIR=$PWD/r HOME=$PWD PULSE_RUNTIME_PATH=$PWD/r; mkdir -m 700 r; printf 'load-module module-null-sink sink_name=s\nload-module module-native-protocol-unix auth-anonymous=1\n' > pa; pulseaudio -n --daemonize=no --exit-idle-time=-1 --disable-shm=no --use-pid-file=no -F pa >l 2>&1 & P=$!
for i in $(seq 80); do pactl info >/dev/null 2>&1 && break; sleep .1; done
parec -d s.monitor --raw > rec & R=$!; ffmpeg -v error -f lavfi -i sine=440:duration=4 -ac 2 -ar 44100 t.wav; paplay t.wav; echo $?; sleep .3; kill $R; wait $R 2>/dev/null; [ $(wc -c < rec) -gt 300000 ] && echo long; pactl list short sinks | wc -l; pactl exit; wait $P; echo $?
