#!/bin/sh
# A Bourne shell script of the everyday kind: functions, subshells, pipelines, here-documents, traps, case, getopts,
# command substitution, background jobs, redirections.
# Usage: script.sh [-o OUTPUT] ROUNDS
set -eu

output=
while getopts o: option; do
    case $option in
    o) output=$OPTARG ;;
    *) exit 64 ;;
    esac
done
shift $((OPTIND - 1))
rounds=$1
[ -z "$output" ] || exec >"$output"

# --- Traps -----------------------------------------------------------------------------------------------------------

caught=0
trap 'caught=$((caught + 1))' USR1
trap 'echo "end: caught $caught"' EXIT

# --- Numbers ---------------------------------------------------------------------------------------------------------

# numbers SEED COUNT: pseudo-random numbers, one per line.
numbers() {
    n_seed=$1
    n_left=$2
    while [ "$n_left" -gt 0 ]; do
        n_seed=$(((n_seed * 1103515245 + 12345) % 2147483648))
        echo $((n_seed / 65536))
        n_left=$((n_left - 1))
    done
}

gcd() {
    g_a=$1
    g_b=$2
    while [ "$g_b" -ne 0 ]; do
        g_t=$((g_a % g_b))
        g_a=$g_b
        g_b=$g_t
    done
    echo "$g_a"
}

# collatz NUMBER: how many steps until 1.
collatz() {
    c_n=$1
    c_steps=0
    while [ "$c_n" -ne 1 ]; do
        if [ $((c_n % 2)) -eq 0 ]; then
            c_n=$((c_n / 2))
        else
            c_n=$((3 * c_n + 1))
        fi
        c_steps=$((c_steps + 1))
    done
    echo "$c_steps"
}

is_prime() {
    [ "$1" -ge 2 ] || return 1
    p_d=2
    while [ $((p_d * p_d)) -le "$1" ]; do
        [ $(($1 % p_d)) -ne 0 ] || return 1
        p_d=$((p_d + 1))
    done
    return 0
}

factorial() {
    if [ "$1" -le 1 ]; then
        echo 1
    else
        f_rest=$(factorial $(($1 - 1)))
        echo $(($1 * f_rest))
    fi
}

# --- Text ------------------------------------------------------------------------------------------------------------

classify() {
    case $1 in
    *[13579]) echo odd ;;
    *[02468]) echo even ;;
    *) echo neither ;;
    esac
}

reverse() {
    r_in=$1
    r_out=
    while [ -n "$r_in" ]; do
        r_tail=${r_in#?}
        r_out=${r_in%"$r_tail"}$r_out
        r_in=$r_tail
    done
    echo "$r_out"
}

letter() {
    cat <<TEXT
Dear reader,
in round $1 we had $2 numbers, the first of them $3,
and the arithmetic of the shell says $(($1 * $2 + $3)).
TEXT
}

# --- Sections of one round -------------------------------------------------------------------------------------------

section_pipeline() {
    numbers "$1" 600 | sort -n | uniq -c | awk '{ n += $1; s += $1 * $2 } END { print "pipeline", n, s }'
    numbers "$1" 400 | tr 0-9 a-j | sort | sha256sum | cut -c 1-32
}

section_subshell() {
    value=outside
    (
        value=inside
        cd /
        for word in alpha beta gamma; do
            reverse "$word-$value-$1"
        done
    )
    echo "subshell left $value"
}

section_nested() {
    (
        numbers "$1" 100 | (
            sum=0
            while read -r number; do
                sum=$((sum + number))
            done
            echo "nested sum $sum"
        )
    ) | sed 's/nested/twice nested/'
}

section_background() {
    numbers $(($1 + 1)) 300 >part.a &
    first=$!
    (numbers $(($1 + 2)) 300 | sort -n >part.b) &
    second=$!
    wait "$first"
    wait "$second"
    sort -n part.a part.b | sha256sum | cut -c 1-32
}

section_descriptors() {
    exec 3>part.c 4<part.a
    read -r one <&4
    read -r two <&4
    echo "$one" >&3
    echo "$two" >&3
    exec 3>&- 4<&-
    paste -s -d + part.c
    echo "gcd $(gcd "$one" "$two")"
}

section_signals() {
    kill -USR1 $$
    (kill -USR1 $$) &
    wait $! || true
}

section_fifo() {
    rm -f part.fifo
    mkfifo part.fifo
    numbers $(($1 + 3)) 200 >part.fifo &
    writer=$!
    sort -rn <part.fifo | head -n 3 | paste -s -d ' '
    wait "$writer" || true
}

section_arithmetic() {
    found=0
    candidate=$((1000 + $1 * 10))
    while [ "$found" -lt 3 ]; do
        if is_prime "$candidate"; then
            found=$((found + 1))
            echo "prime $candidate $(classify "$candidate") $(collatz "$candidate")"
        fi
        candidate=$((candidate + 1))
    done
    echo "factorial $(factorial $((10 + $1 % 8)))"
}

# --- Main ------------------------------------------------------------------------------------------------------------

round=0
until [ "$round" -ge "$rounds" ]; do
    round=$((round + 1))
    section_pipeline "$round"
    section_subshell "$round"
    section_nested "$round"
    section_background "$round"
    section_descriptors
    section_signals
    section_fifo "$round"
    section_arithmetic "$round"
    letter "$round" 600 "$one"
    echo "round $round"
done
