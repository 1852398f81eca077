"""Streams of interactive jobs: a pipe with a name that the job reads, and files that it writes."""

from __future__ import annotations

import errno
import os
import time
from typing import Any, Optional

from .errors import IncorrectState, NoSuccess, Timeout

__all__ = ["InputStream", "OutputStream"]

_PAUSE_S = 0.02


class InputStream:
    """What a job reads. `close` is the end of it."""

    def __init__(self, path: str, job: Any) -> None:
        self._path, self._job = path, job
        self._descriptor: Optional[int] = None

    def _open(self) -> int:
        while self._descriptor is None:
            try:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.set_blocking(self._descriptor, True)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise NoSuccess(f"the job's input cannot be reached: {error.strerror}", self._job) from error
                if self._job.get_state() != "Running":
                    raise IncorrectState("the job does not run, and reads nothing", self._job) from error
                time.sleep(_PAUSE_S)
        return self._descriptor

    def write(self, data: bytes) -> int:
        """Writes all of it."""
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.write(self._open(), view[done:])
        return done

    def close(self) -> None:
        """The job comes to the end of its input."""
        descriptor = self._open()
        os.close(descriptor)
        self._descriptor = None


class OutputStream:
    """What a job has written, from the beginning."""

    def __init__(self, path: str, job: Any) -> None:
        self._path, self._job, self._at = path, job, 0

    def _more(self) -> bytes:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._at)
                return file.read()
        except FileNotFoundError:
            return b""

    def read(self) -> bytes:
        """What has come since the last call, when there is something; empty when the job has ended."""
        while True:
            over = self._job.get_state() not in ("Running", "Suspended")
            data = self._more()
            if data or over:
                self._at += len(data)
                return data
            time.sleep(_PAUSE_S)

    def read_line(self, timeout: float = -1) -> bytes:
        """The next line; Timeout where none comes in so many seconds; empty when the job has ended."""
        deadline = time.monotonic() + timeout if timeout >= 0 else None
        while True:
            over = self._job.get_state() not in ("Running", "Suspended")
            data = self._more()
            line, newline, _ = data.partition(b"\n")
            if newline or over:
                taken = line + newline
                self._at += len(taken)
                return taken
            if deadline is not None and time.monotonic() >= deadline:
                raise Timeout(f"the job has written no line in {timeout:g} s", self._job)
            time.sleep(_PAUSE_S)

    def close(self) -> None:
        """Nothing is held."""
