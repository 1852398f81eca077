#!/usr/bin/python3
"""Threads, queues, locks and conditions. Usage: threads.py ROUNDS OUTPUT"""
import hashlib
import queue
import sys
import threading

rounds, output = int(sys.argv[1]), sys.argv[2]
WORKERS = 8
tasks, results = queue.Queue(maxsize=2 * WORKERS), {}
changed = threading.Condition()
local = threading.local()
served = [0] * WORKERS


def work(me):
    local.count = 0
    while (number := tasks.get()) is not None:
        seed = number
        for _ in range(10000):
            seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        local.count += 1
        with changed:
            results[number] = hashlib.sha256(b"%d" % seed).hexdigest()
            changed.notify_all()
    served[me] = local.count


threads = [threading.Thread(target=work, args=(me,)) for me in range(WORKERS)]
for thread in threads:
    thread.start()


def feed():
    for number in range(rounds):
        tasks.put(number)
    for _ in threads:
        tasks.put(None)


feeder = threading.Thread(target=feed)
feeder.start()
with open(output, "w") as out:
    for number in range(rounds):
        with changed:
            changed.wait_for(lambda: number in results)
            print(number, results.pop(number), file=out, flush=True)
    for thread in [feeder, *threads]:
        thread.join()
    print("served", sum(served), file=out)
