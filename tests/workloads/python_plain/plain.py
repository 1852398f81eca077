#!/usr/bin/python3
"""One process, one thread: dictionaries, big integers, a generator, random numbers. Usage: plain.py ROUNDS OUTPUT"""
import hashlib
import random
import sys

rounds, output = int(sys.argv[1]), sys.argv[2]
chance = random.Random(2002)


def fibonacci():
    a, b = 0, 1
    while True:
        yield a
        a, b = b, a + b


numbers = fibonacci()
table = {}
with open(output, "w") as out:
    for number in range(rounds):
        for _ in range(15000):
            key = chance.randrange(5000)
            table[key] = table.get(key, 0) + chance.random()
        big = next(numbers) ** 7
        digest = hashlib.sha256(repr(sorted(table.items())).encode() + str(big).encode()).hexdigest()
        print(number, digest, file=out, flush=True)
