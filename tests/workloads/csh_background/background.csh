#!/bin/csh -f
# A loop that computes, with a background job in every round: one program, for Debian's csh now and then
# does not find a program that a pipeline in the background starts.
# Usage: background.csh ROUNDS OUTPUT
set out = $2
@ round = 0
@ seed = 12345
echo start > $out
while ($round < $1)
    @ round++
    @ step = 0
    while ($step < 3750)
        @ step++
        @ seed = ($seed * 1103 + 12345) % 65536
    end
    sh -c "seq $round $seed | sort -r | sha256sum > part.bg" &
    set list = (a b c $round $seed)
    @ sum = $#list + $list[4] + $list[5]
    wait
    cat part.bg >> $out
    echo "$round $seed $sum $list[$#list]" >> $out
end
echo "end $seed" >> $out
