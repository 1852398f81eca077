"""The cases of suite.c in Python. Needs numpy, for arrays in Fortran order."""

import os
import sys
import threading
import time

import gridcpr
import numpy

NUMBERS = {"incomplete": 0, "complete": 1, "damaged": 2}


def variables(seed: int) -> dict:
    spread = numpy.full(13, -1, dtype="float32")
    spread[::3] = seed + numpy.arange(5)
    row, column = numpy.indices((3, 4))
    return {
        "step": numpy.array(seed, dtype="int64"),
        "field": seed + numpy.arange(1000) * 0.5,
        "grid": numpy.asfortranarray(seed + 10.0 * row + column),
        "spread": spread,
        "counts": (seed * numpy.arange(7)).astype("int32"),
    }


def protect(app: gridcpr.Checkpoint, named: dict) -> None:
    for name, array in named.items():
        app.protect(name, array[::3] if name == "spread" else array)


def write_one(base: str, seed: int) -> None:
    with gridcpr.Checkpoint("suite", base) as app:
        protect(app, variables(seed))
        app.set_attribute("writer", "python")
        print(app.write())


def read_one(base: str, seed: int) -> None:
    with gridcpr.Checkpoint("suite", base) as app:
        found = variables(-1)
        found["spread"][:] = -1
        protect(app, found)
        generation = app.restore()
        for name, wanted in variables(seed).items():
            numpy.testing.assert_array_equal(found[name], wanted)
        print(generation, app.attribute(generation, "writer"))


def show(what: str, app: gridcpr.Checkpoint) -> None:
    print(what + ":", *(f"{g.number}/{NUMBERS[g.state]}/{g.needs}" for g in app.generations()))


def code(work) -> int:
    try:
        work()
    except gridcpr.Error as error:
        return error.code
    return 0


def cases(base: str) -> None:
    step = numpy.zeros((), dtype="int64")
    with gridcpr.Checkpoint("increments", base, sequence="FIi") as app:
        big = bytearray(3 << 20)
        app.protect("big", big)
        for i in range(3):
            big[i << 20] = i + 1
            app.write()
        show("increments", app)
        big[:] = bytes(len(big))
        app.restore()
        print("restored:", big[0], big[1 << 20], big[2 << 20])
        print("needed:", code(lambda: app.free(1)))
    with gridcpr.Checkpoint("keep", base, keep=2) as app:
        app.protect("step", step)
        for step[()] in range(1, 5):
            app.write()
        show("kept", app)
    with gridcpr.Checkpoint("expire", base, lifetime=1) as app:
        app.protect("step", step)
        app.write()
        time.sleep(1.2)
        app.write()
        show("lives", app)
    with gridcpr.Checkpoint("metadata", base) as app:
        app.protect("step", step)
        for step[()] in range(1, 4):
            app.set_attribute("phase", "spin-up" if step == 2 else "run")
            app.write()
        found = app.find("phase", "run")
        print(f"found: {len(found)}, the last {found[-1].number}")
        app.update(3, "phase", "done", 60)
        print("updated:", app.attribute(3, "phase"), app.generations()[2].lifetime)
        print("read:", int.from_bytes(app.read(2, "step", 0, 8), sys.byteorder))
        app.validate(2)
        app.free(2)
        show("freed", app)
        app.transfer(3, os.path.join(base, "there"))
        app.forget()
        show("forgotten", app)
    with gridcpr.Checkpoint("metadata", os.path.join(base, "there")) as app:
        app.protect("step", step)
        step[()] = 0
        app.restore()
        print("transferred:", step)
    with gridcpr.Checkpoint("ranks", base, rank=0, ranks=2, session="a") as one:
        with gridcpr.Checkpoint("ranks", base, rank=1, ranks=2, session="a") as two:
            one.protect("step", step)
            two.protect("step", step)
            step[()] = 10
            one.write()
            show("half", one)
            step[()] = 11
            two.write()
            show("whole", one)
            one.restore()
            print("rank 0:", step)
            two.restore()
            print("rank 1:", step)
    with gridcpr.Checkpoint("background", base) as app:
        app.protect("step", step)
        app.prepare()
        step[()] = 7
        app.write_begin()
        step[()] = 8
        generation = app.wait()
        under_way, done, total = app.progress()
        app.restore()
        print(f"background: {generation} {int(under_way)} {done} of {total}, {step}")
    with gridcpr.Checkpoint("files", base) as app:
        app.protect("step", step)
        with open(app.route("notes.txt"), "w") as file:
            file.write("of its own")
        with open(app.file(app.write(), "notes.txt")) as file:
            print("file:", file.read())
    with gridcpr.Checkpoint("wrong", base) as app:
        app.protect("step", step)
        print("none:", app.restore())
        app.write()
        app.protect("step", numpy.zeros((), dtype="int32"))
        print("another type:", code(app.restore))
        print("no such generation:", code(lambda: app.validate(9)))
        print("open twice:", code(lambda: gridcpr.Checkpoint("wrong", base)))


def job() -> None:
    told = threading.Event()

    def callback(notice: gridcpr.Notice) -> None:
        print(notice.event + (": " + notice.reason if notice.reason else ""), flush=True)
        if notice.event == "told":
            told.set()

    with gridcpr.Callback(callback):
        with gridcpr.critical(), gridcpr.critical():
            pass
        gridcpr.file_policy("*.txt", "nocheck,nottruncate")
        image = gridcpr.checkpoint_job()
        with gridcpr.critical():  # Not before the callbacks have returned.
            restart = gridcpr.last_restart()
            assert (image is None) == (restart is not None)
            if restart:
                print("restarted", restart.times, restart.generation, restart.image, restart.job, flush=True)
            else:
                print("continued", gridcpr.restarted(), 0, flush=True)
        told.wait()
    print("end")


if __name__ == "__main__":
    words = sys.argv[1:]
    if len(words) == 3 and words[0] == "write":
        write_one(words[1], int(words[2]))
    elif len(words) == 3 and words[0] == "read":
        read_one(words[1], int(words[2]))
    elif len(words) == 2 and words[0] == "cases":
        cases(words[1])
    elif words == ["job"]:
        job()
    else:
        sys.exit(64)
