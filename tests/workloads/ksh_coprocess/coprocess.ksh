#!/bin/ksh
# Two co-processes: bc for long numbers, and a function of the script itself.
# Usage: coprocess.ksh ROUNDS OUTPUT
set -eu
integer rounds=$1 round step seed=1
exec >"$2"

bc -q |&
exec 5>&p 6<&p

function doubler {
    typeset -i number
    while read -r number; do
        print -- $((number * 2 % 99991))
    done
}
doubler |&

for ((round = 1; round <= rounds; round++)); do
    for ((step = 0; step < 5000; step++)); do
        ((seed = (seed * 1103515245 + 12345) & 0x7fffffff))
    done
    print -p $seed
    read -p doubled
    print -u5 "(2^$((round % 200 + 20)) + $seed) % 1000000007"
    read -u6 long
    print "$round $seed $doubled $long"
done
exec 5>&- 6<&-
print "end $seed"
