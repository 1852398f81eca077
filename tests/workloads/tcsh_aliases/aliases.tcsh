#!/bin/tcsh -f
# Aliases with arguments, pipelines, foreach and switch.
# Usage: aliases.tcsh ROUNDS OUTPUT
set out = $2
alias digest 'seq \!:1 \!:2 | sort -r | sha256sum | cut -c 1-32'
alias note 'echo \!* >> $out'
@ round = 0
@ seed = 12345
echo start > $out
while ($round < $1)
    @ round++
    @ step = 0
    while ($step < 1500)
        @ step++
        @ seed = ($seed * 1103 + 12345) % 65536
    end
    set text = `digest $round $seed`
    switch ($text)
    case [0-7]*:
        note $round $seed low $text
        breaksw
    default:
        note $round $seed high $text
        breaksw
    endsw
    foreach word (alpha beta gamma)
        note $word:u $text:r
    end
    seq 1 $seed | sort -n | tail -n 2 | awk '{ s += $1 } END { print "pipeline", s }' >> $out
end
note end $seed
