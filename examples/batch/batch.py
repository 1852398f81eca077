#!/usr/bin/env python3
"""A batch system with one slot, on libgridcpr alone.

Usage: batch.py QUEUE LOG [DAY]

QUEUE has one job on each line: NAME PRIORITY ARRIVAL WINDOW SLICE COMMAND…
  PRIORITY  a job preempts one with a smaller number
  ARRIVAL   seconds after the start at which the job is submitted
  WINDOW    FROM-TO: the job runs only while the clock, seconds after the start, is in it; - for always. The
            clock begins anew after DAY seconds, 86400 unless given
  SLICE     seconds after which another job of the same priority gets the slot; - for none

A job that has to leave the slot is checkpointed and ended with all its processes, and later goes on from its image. LOG
tells what was done: TIME start|preempt|resume|end NAME.
"""

import sys
import time
from typing import NamedTuple, Optional

import gridcpr

TICK = 0.1


class Job(NamedTuple):
    name: str
    priority: int
    arrival: float
    window: Optional[tuple]
    slice: Optional[float]
    command: list

    @staticmethod
    def parse(line):
        name, priority, arrival, window, part, *command = line.split()
        bounds = None if window == "-" else tuple(float(bound) for bound in window.split("-"))
        return Job(name, int(priority), float(arrival), bounds, None if part == "-" else float(part), command)


class Batch:
    def __init__(self, jobs, log, day):
        self.begun = time.monotonic()
        self.log, self.day = log, day
        self.waiting = list(jobs)
        self.started = set()
        self.running = None
        self.since = 0.0

    def now(self):
        return time.monotonic() - self.begun

    def say(self, what, job):
        print(f"{self.now():.1f} {what} {job.name}", file=self.log, flush=True)

    def may_run(self, job):
        clock = self.now() % self.day
        return job.arrival <= self.now() and (job.window is None or job.window[0] <= clock < job.window[1])

    def has_ended(self, job, timeout="1ms"):
        try:
            return gridcpr.command("wait", job.name, "--timeout", timeout)["exit_code"] is not None
        except gridcpr.Error as error:
            if error.code == -76:
                return False
            raise

    def preempt(self):
        job, self.running = self.running, None
        try:
            gridcpr.command("checkpoint", job.name, "--stop")
        except gridcpr.Error:
            # It may have ended by itself at that moment.
            if not self.has_ended(job, "10s"):
                raise
            self.say("end", job)
            return
        self.say("preempt", job)
        self.waiting.append(job)

    def start(self, job):
        self.waiting.remove(job)
        if job.name in self.started:
            gridcpr.command("restart", "-d", job.name)
            self.say("resume", job)
        else:
            gridcpr.command("run", "-d", "--name", job.name, "--", *job.command)
            self.say("start", job)
            self.started.add(job.name)
        self.running, self.since = job, self.now()

    def must_leave(self, candidates):
        job = self.running
        if not self.may_run(job):
            return True
        best = max((other.priority for other in candidates), default=None)
        if best is None:
            return False
        over = job.slice is not None and self.now() - self.since >= job.slice
        return best > job.priority or (over and best == job.priority)

    def step(self):
        if self.running and self.has_ended(self.running):
            self.say("end", self.running)
            self.running = None
        candidates = [job for job in self.waiting if self.may_run(job)]
        if self.running and self.must_leave(candidates):
            self.preempt()
        if not self.running and candidates:
            # Among equals the one that has waited longest: preempted jobs go to the end.
            self.start(max(candidates, key=lambda job: job.priority))

    def run(self):
        while self.waiting or self.running:
            self.step()
            time.sleep(TICK)


def main():
    with open(sys.argv[1]) as queue, open(sys.argv[2], "w") as log:
        jobs = [Job.parse(line) for line in queue if line.strip() and not line.startswith("#")]
        Batch(jobs, log, float(sys.argv[3]) if len(sys.argv) > 3 else 86400.0).run()


main()
