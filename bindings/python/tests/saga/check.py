"""What the checks of gridcpr.saga have in common: a test is a function whose name begins with `test_`."""

import os
import sys
import time
import traceback

PATIENCE = 90.0


def raises(kind, call, *arguments, about=None, **named):
    """The error of exactly this class that a call raises; its message names `about`."""
    try:
        value = call(*arguments, **named)
    except Exception as error:
        assert type(error) is kind, f"{type(error).__name__} instead of {kind.__name__}: {error}"
        assert str(error), "an error without a message"
        if about is not None:
            assert about in str(error), (about, str(error))
        return error
    raise AssertionError(f"no {kind.__name__}: {value!r}")


def until(what, condition):
    """Waits until a condition holds, and gives what it gave."""
    deadline = time.monotonic() + PATIENCE
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def lines(path):
    try:
        with open(path) as file:
            return file.read().split("\n")[:-1]
    except FileNotFoundError:
        return []


def count_to(path, number):
    """Waits until a counter has written that many lines."""
    until(f"{path} comes to {number}", lambda: len(lines(path)) >= number)


def main(names):
    """Runs all tests of a module, or those that are named."""
    wanted = sys.argv[1:]
    failed = 0
    for name, test in list(names.items()):
        if name.startswith("test_") and callable(test) and (not wanted or name in wanted):
            begun = time.monotonic()
            try:
                test()
            except Exception:
                traceback.print_exc()
                print("FAILED", name, flush=True)
                failed += 1
            else:
                print("ok", name, f"{time.monotonic() - begun:.1f} s", flush=True)
    sys.exit(1 if failed else 0)
