#!/usr/bin/python3
"""NumPy arrays, threads and a multiprocessing pool. Usage: arrays.py ROUNDS OUTPUT"""
import hashlib
import multiprocessing
import os
import sys
import threading

os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")
import numpy  # noqa: E402  (the number of threads has to be set before)

rounds, output = int(sys.argv[1]), sys.argv[2]
SIZE = 120


def crunch(number):
    """A worker of the pool: sorts and sums an array of its own."""
    values = numpy.random.default_rng(number).random(40000)
    return number, float(numpy.sort(values)[::7].sum())


def spectrum(array, into, at):
    """A thread: releases the interpreter's lock most of the time."""
    into[at] = float(numpy.abs(numpy.fft.fft2(array)).sum())


if __name__ == "__main__":
    matrix = numpy.random.default_rng(2002).random((SIZE, SIZE))
    with multiprocessing.get_context("fork").Pool(3) as pool, open(output, "w") as out:
        for number in range(rounds):
            pending = pool.map_async(crunch, range(number * 6, number * 6 + 6))
            q, r = numpy.linalg.qr(matrix)
            matrix = r @ q + numpy.eye(SIZE) * 0.01
            spectra = [0.0] * 3
            threads = [threading.Thread(target=spectrum, args=(matrix + k, spectra, k)) for k in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            digest = hashlib.sha256(matrix.tobytes()).hexdigest()
            print(number, digest, spectra, pending.get(), file=out, flush=True)
        pool.close()
        pool.join()
