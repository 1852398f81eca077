#!/bin/bash
# Producers piped through sort and uniq, process substitution, arrays, background jobs under job control, wait.
# Usage: pipeline.bash ROUNDS OUTPUT
set -eu -o pipefail
rounds=$1
exec >"$2"
declare -a totals=()
signals=0
rm -f gate
mkfifo gate
trap 'signals=$((signals + 1))' USR1

producer() {
    local seed=$1 count=$2 i
    for ((i = 0; i < count; i++)); do
        seed=$(((seed * 1103515245 + 12345) & 0x7fffffff))
        echo $(((seed >> 8) % 97))
    done
}

for ((round = 1; round <= rounds; round++)); do
    # An array filled from a pipeline in a process substitution.
    mapfile -t lines < <(producer "$round" 3000 | sort -n | uniq -c)
    for line in "${lines[@]}"; do
        read -r count value <<<"$line"
        totals[value]=$((${totals[value]:-0} + count))
    done

    # Two process substitutions read side by side.
    paste <(producer $((round + 11)) 1000 | sort | sha256sum) <(producer $((round + 12)) 1000 | sort -r | sha256sum)

    # Background jobs, waited for by name.
    (producer $((round + 7)) 1500 | sort -n | sha256sum >part.a) &
    first=$!
    (producer $((round + 8)) 1500 | sort -n | sha256sum >part.b) &
    second=$!
    wait "$first"
    wait "$second"
    cat part.a part.b

    # Job control: a job in a process group of its own is stopped and continued; it cannot end before that.
    set -m
    { read -r _ <gate && producer $((round + 9)) 500 >part.c; } &
    third=$!
    kill -STOP -- "-$third"
    kill -CONT -- "-$third"
    echo go >gate
    wait -f "$third"
    set +m
    sort -n part.c | uniq -c | sort -k1,1nr -k2,2n | head -n 3

    # A signal to ourselves.
    kill -USR1 $$
    echo "round $round signals $signals"
done
echo "${totals[@]}"
