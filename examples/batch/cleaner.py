#!/usr/bin/env python3
"""Lets go of what nobody needs any more in a grid: of each of the caller's jobs the newest complete checkpoints stay.

    cleaner.py KEEP

It is a user's program like any other, and may run wherever the grid is reached from: it does all through libgridcpr, with the
rights of whoever runs it. It prints a line for each checkpoint that goes.
"""

import sys

import gridcpr


def clean(keep):
    complete = {}
    for known in gridcpr.command("checkpoints")["checkpoints"]:
        if known["state"] == "complete":
            complete.setdefault(known["job"], []).append(known["id"])
    for job, checkpoints in sorted(complete.items()):
        for old in sorted(checkpoints)[:-keep]:
            try:
                gridcpr.command("free", str(old))
            except gridcpr.Error as error:
                # Its job runs from it: another time.
                print(f"{old} of job {job} stays: {error}")
                continue
            print(f"{old} of job {job} goes", flush=True)


if __name__ == "__main__":
    clean(max(1, int(sys.argv[1])))
