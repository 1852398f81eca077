#!/bin/bash
# The cases of suite.c in the shell, as far as commands have them. Variables come from files of numpy in $INPUTS.
set -euo pipefail

names='step field grid spread counts'

write_one() {
    local arguments=() name
    for name in $names; do arguments+=(--variable "$name=$INPUTS/$name.npy"); done
    "$CPR" app write "$1" suite "${arguments[@]}" --attribute writer=shell --json | jq .generation
}

read_one() {
    local found name
    found=$(mktemp -d)/found
    generation=$("$CPR" app restore "$1" suite -o "$found" --json | jq .generation)
    for name in $names; do cmp "$found/$name.npy" "$INPUTS/$name.npy" >&2; done
    writer=$("$CPR" app inspect "$1" suite --generation "$generation" --json | jq -r .generation.attributes.writer)
    echo "$generation $writer"
    rm -r "$(dirname "$found")"
}

list() {
    local line
    line=$("$CPR" app list "$2" "$3" --json |
        jq -r '[.[] | " \(.generation)/\({"incomplete": 0, "complete": 1, "damaged": 2}[.state])/\(.needs | length)"] | add')
    echo "$1:$line"
}

# The number of an 8-byte variable.
step_of() {
    local file
    file=$(mktemp -u)
    "$CPR" app export "$1" "$2" step --raw -o "$file" "${@:3}" --quiet
    od -An -td8 "$file" | tr -d ' '
    rm "$file"
}

# A file of numpy with one number.
number() {
    printf "\x93NUMPY\x01\x00\x46\x00%-69s\n" "{'descr': '<i8', 'fortran_order': False, 'shape': (), }"
    printf "\\x$(printf %02x "$1")\0\0\0\0\0\0\0"
}

write_step() {
    local file
    file=$(mktemp)
    number "$3" >"$file"
    "$CPR" app write "$1" "$2" --variable "step=$file" --quiet "${@:4}"
    rm "$file"
}

cases() {
    local base=$1 step code
    for step in 1 2 3 4; do write_step "$base" keep "$step" --keep 2; done
    list kept "$base" keep
    write_step "$base" expire 1 --lifetime 1s
    sleep 1.2
    write_step "$base" expire 1 --lifetime 1s
    list lives "$base" expire
    write_step "$base" metadata 1 --attribute phase=run
    write_step "$base" metadata 2 --attribute phase=spin-up
    write_step "$base" metadata 3 --attribute phase=run
    "$CPR" app list "$base" metadata --attribute phase=run --json |
        jq -r '"found: \(length), the last \(.[-1].generation)"'
    "$CPR" app update "$base" metadata --generation 3 --attribute phase=done --lifetime 60s
    "$CPR" app list "$base" metadata --json | jq -r '.[2] | "updated: \(.attributes.phase) \(.lifetime_s)"'
    echo "read: $(step_of "$base" metadata --generation 2)"
    "$CPR" app verify "$base" metadata --generation 2 --quiet
    "$CPR" app free "$base" metadata --generation 2
    list freed "$base" metadata
    "$CPR" app transfer "$base" metadata "$base/there" --generation 3
    "$CPR" app free "$base" metadata --all
    code=0
    "$CPR" app list "$base" metadata 2>/dev/null || code=$?
    ((code == 66)) && echo "forgotten:"
    echo "transferred: $(step_of "$base/there" metadata)"
    write_step "$base" ranks 10 --rank 0 --ranks 2 --session a
    list half "$base" ranks
    write_step "$base" ranks 11 --rank 1 --ranks 2 --session a
    list whole "$base" ranks
    echo "rank 0: $(step_of "$base" ranks --rank 0)"
    echo "rank 1: $(step_of "$base" ranks --rank 1)"
    printf 'of its own' >"$base/notes.txt"
    "$CPR" app write "$base" files --file "$base/notes.txt" --quiet
    "$CPR" app restore "$base" files -o "$base/restored" --quiet
    echo "file: $(cat "$base/restored/notes.txt")"
    write_step "$base" wrong 1
    code=0
    "$CPR" app verify "$base" wrong --generation 9 2>/dev/null || code=$?
    echo "no such generation: -$code"
}

# What the job's checkpoints are seen as by a script: it is listened to beside it.
job() {
    local event number times image name code=0
    coproc LISTEN { exec "$CPR" listen; }
    heard() { read -r event number times image name <&"${LISTEN[0]}"; }
    heard
    [[ $event == listening ]]
    "$CPR" checkpoint --quiet --restarted-code 9 "$GRIDCPR_JOB" || code=$?
    if ((code == 9)); then
        # What was said before the checkpoint was not read so far.
        while [[ $event != restart ]]; do heard; done
        echo restart
        echo "restarted $times $number $image $name"
    else
        ((code == 0))
        heard
        echo "$event"
        heard
        echo "$event"
        echo "continued 0 0"
    fi
    heard
    [[ $event == told ]]
    echo "told: $number $times $image $name"
    echo end
}

case "$1:$#" in
job:1) job ;;
write:3) write_one "$2" ;;
read:3) read_one "$2" ;;
cases:2) mkdir -p "$2" && cases "$2" ;;
*) exit 64 ;;
esac
