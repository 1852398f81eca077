"""Counts, and remembers in a file that it has open."""

import os
import time

file = os.fdopen(os.open("count", os.O_RDWR | os.O_CREAT, 0o600), "r+")
count = int(file.read() or 0)
while True:
    count += 1
    file.seek(0)
    file.write(str(count))
    file.flush()
    print(count, flush=True)
    time.sleep(0.05)
