#!/usr/bin/python3
"""Talks to a command on a pseudo-terminal of its own.

Usage: terminal.py COMMAND ARGUMENTS… <STEPS

Steps, one per line:
  > TEXT     type TEXT and the Enter key
  ^]         type a control character
  ^C REGEX   the same again and again until the screen shows a match: a job that is only about to get the terminal
             does not get what was typed for it
  < REGEX    wait until the screen shows a match after what the last `<` took
  .          wait until the command has ended
Everything shown is copied to standard output. Exit code 1: something did not come in time.
"""
import os
import pty
import re
import select
import sys
import time

PATIENCE = 60
AGAIN = 1


def main():
    steps = sys.stdin.read().splitlines()
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(sys.argv[1], sys.argv[1:])
    seen = ""

    def more(deadline):
        """Reads what there is; false where nothing comes in time, none at the end of the command."""
        nonlocal seen
        if not select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(terminal, 65536)
        except OSError:
            return None
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        seen += data.decode("utf-8", "replace")
        return True if data else None

    def shows(pattern, deadline):
        """Waits for a match and takes it; false where none comes in time."""
        nonlocal seen
        while not (match := re.search(pattern, seen)):
            good = more(deadline)
            if good is None:
                sys.exit(f"\nended before: {pattern}")
            if not good:
                return False
        seen = seen[match.end():]
        return True

    def control(key):
        os.write(terminal, bytes([ord(key) & 0x1F]))

    for step in steps:
        deadline = time.monotonic() + PATIENCE
        good = True
        if step.startswith("> "):
            os.write(terminal, step[2:].encode() + b"\r")
        elif re.fullmatch(r"\^.", step):
            control(step[1])
        elif re.match(r"\^. ", step):
            control(step[1])
            while not (good := shows(step[3:], time.monotonic() + AGAIN)) and time.monotonic() < deadline:
                control(step[1])
        elif step.startswith("< "):
            good = shows(step[2:], deadline)
        elif step == ".":
            while good := more(deadline):
                pass
            if good is None:
                sys.exit(0)
        elif step:
            sys.exit(f"what is {step!r}?")
        if not good:
            sys.exit(f"\nnot in {PATIENCE} s: {step}")
    sys.exit("the last step is not `.`")


main()
