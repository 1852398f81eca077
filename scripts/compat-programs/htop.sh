command -v htop >/dev/null || exit 127
TERM=xterm timeout 4 script -qc 'htop -d 2' /dev/null >o 2>&1; echo $?; [ $(wc -c <o) -gt 3000 ] && echo ok
