command -v x265 >/dev/null || exit 127
ffmpeg -v error -f lavfi -i testsrc2=s=640x360:d=3 -pix_fmt yuv420p -y a.y4m
x265 a.y4m -p medium --pools 2 -o a.hevc >/dev/null 2>&1; echo $?; sha256sum a.hevc
