command -v mosquitto >/dev/null && command -v mosquitto_sub >/dev/null || exit 127
printf 'listener 18830 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location %s/\n' $PWD/ > m.conf; [ $(id -u) = 0 ] && echo "user root" >> m.conf; mosquitto -c m.conf >l 2>&1 & M=$!; sleep .5
mosquitto_sub -p 18830 -t a/# -q 2 -C 400 -i s1 -c > got & S=$!; mosquitto_sub -p 18830 -t a/# -q 1 -C 400 > got2 & S2=$!; sleep .4
for i in $(seq 400); do echo "m $i"; sleep .01; done | mosquitto_pub -p 18830 -t a/b -q 2 -l; wait $S $S2; md5sum got got2; kill $M; wait $M; echo $?
