#!/usr/bin/python3
"""What the Python package adds to the time of a checkpoint of one array of 1 GiB: `make bench-app`.

Writes the same array of numpy in turn with Checkpoint.write() and with the functions of libgridcpr called as a C program
calls them; now the one is first, now the other. Prints the median of the runs and what Python adds.

Usage: bench-app.py DIRECTORY, with the package on PYTHONPATH and the library in GRIDCPR_LIBRARY
"""

import ctypes
import os
import statistics
import sys
import tempfile
import time

import gridcpr
import numpy

BYTES = 1 << 30
RUNS = 8


def main() -> None:
    library = ctypes.CDLL(os.environ["GRIDCPR_LIBRARY"])
    library.gridcpr_app_open.restype = ctypes.c_void_p
    library.gridcpr_app_write.restype = ctypes.c_int64
    array = numpy.random.default_rng(1).integers(0, 1 << 63, BYTES // 8, dtype="int64")
    times: dict[str, list[float]] = {"libgridcpr": [], "Python": []}
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as base:
        app = ctypes.c_void_p(library.gridcpr_app_open(base.encode(), b"c", None))
        shape = (ctypes.c_uint64 * 1)(BYTES // 8)
        assert library.gridcpr_app_protect(app, b"array", ctypes.c_void_p(array.ctypes.data), 3, 1, shape, 0) == 0
        with gridcpr.Checkpoint("python", base) as checkpoint:
            checkpoint.protect("array", array)

            def called_directly() -> None:
                begun = time.monotonic()
                generation = library.gridcpr_app_write(app)
                times["libgridcpr"].append(time.monotonic() - begun)
                assert library.gridcpr_app_free(app, ctypes.c_uint64(generation)) == 0

            def from_python() -> None:
                begun = time.monotonic()
                generation = checkpoint.write()
                times["Python"].append(time.monotonic() - begun)
                checkpoint.free(generation)

            for run in range(RUNS):
                both = (called_directly, from_python)
                for write in both if run % 2 == 0 else reversed(both):
                    write()
        library.gridcpr_app_close(app)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:26} {median[name]:7.3f} s ({min(values):.3f} to {max(values):.3f})")
    print(f"{'Python adds':26} {100 * (median['Python'] / median['libgridcpr'] - 1):+7.1f} %")


main()
