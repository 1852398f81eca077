"""A numpy victim of cpr-bench. Usage: heartbeat.py PAGE BYTES. The words of PAGE are those of src/heartbeat.rs."""
import mmap
import os
import sys
import time

import numpy

READY, BEATS, LAST, GAP, WATCH, WATCHING, ORDER, DONE, WRONG = range(9)
END = 1
MATRIX = 256

with open(sys.argv[1], "r+b") as file:
    page = memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")
generator = numpy.random.default_rng(2002)
arrays = [generator.random(1 << 17) for _ in range(int(sys.argv[2]) >> 20)]
sums = [float(array.sum()) for array in arrays]
matrix = generator.random((MATRIX, MATRIX))
page[READY] = 1
last = order = 0
while True:
    now = time.monotonic_ns()
    if page[WATCH] == page[WATCHING]:
        page[GAP] = max(page[GAP], now - last)
    else:
        page[GAP] = 0
        page[WATCHING] = page[WATCH]
    last = page[LAST] = now
    page[BEATS] += 1
    if page[ORDER] != order:
        order = page[ORDER]
        if order & 255 == END:
            os._exit(0)
        page[WRONG] += sum(float(array.sum()) != expected for array, expected in zip(arrays, sums))
        page[DONE] += 1
    # Some work, far shorter than a stop.
    row = int(now) % MATRIX
    matrix[row] = numpy.sin(matrix[row] + matrix[(row + 1) % MATRIX])
    time.sleep(0.0001)
