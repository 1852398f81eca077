command -v ffmpeg >/dev/null || exit 127
ffmpeg -v error -f lavfi -i testsrc2=size=640x360:rate=25:duration=8 -f lavfi -i sine=frequency=440:duration=8 -c:v libx264 -preset medium -threads 2 -c:a aac -flags +bitexact -fflags +bitexact -y a.mp4 </dev/null; echo $?; ffmpeg -v error -i a.mp4 -f framemd5 - </dev/null | md5sum
ffmpeg -v error -f lavfi -i testsrc2=size=320x180:rate=25:duration=6 -c:v libvpx-vp9 -threads 2 -row-mt 1 -flags +bitexact -y b.webm </dev/null; ffmpeg -v error -i b.webm -f framemd5 - </dev/null | md5sum
