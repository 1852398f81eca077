command -v expect >/dev/null || exit 127
cat > a.exp <<'P'
log_user 0
set timeout 20
spawn sh -c {while read x; do echo $((x*x%99991+1000000)); done}
for {set i 1} {$i < 60} {incr i} { send "$i\r"; expect -re {\n(1\d{6})\r}; puts "$i $expect_out(1,string)"; flush stdout; sleep 0.02 }
set first $spawn_id
spawn sh
send "stty -echo; PS1=; stty size\r"; expect -re {\d+ \d+\r\n}
for {set i 0} {$i < 20} {incr i} { send "sleep 0.05; echo v\$(($i*7))w\r"; expect -re {v(\d+)w}; puts $expect_out(1,string) }
send "cat\r"; send "hello\r"; expect hello; send "\003"; send "echo a\$((1+1))b\r"; expect a2b; puts ok
send "exit 4\r"; expect eof; puts [lindex [wait] 3]
set spawn_id $first; send "\004"; expect eof; puts [lindex [wait] 3]
P
expect -f a.exp; echo $?
