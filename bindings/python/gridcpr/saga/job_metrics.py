"""Metrics of jobs: the grid passes on what one program fires to all who have callbacks, wherever they run."""

from __future__ import annotations

import threading
from typing import Any, Dict, Optional

from .errors import DoesNotExist, IncorrectState, NotImplemented, SagaException
from .grid import Events, own_job
from .monitoring import Metric
from .tasks import FINAL

_PAUSE_S = 0.25
"""Between two questions of a program that hears of itself."""

__all__ = ["JobMetric", "Listener", "SAGA_STATES", "STATE_METRICS"]

SAGA_STATES = {
    "queued": "Running", "starting": "Running", "running": "Running", "suspended": "Suspended", "finished": "Done",
    "failed": "Failed", "cancelled": "Canceled",
}
DETAILS = {"queued": "Queued", "starting": "Starting", "running": "Running", "suspended": "Suspended"}
STATE_METRICS = {
    "job.state": ("state of the job", "Enum"),
    "job.state_detail": ("what it does in that state: Queued, Starting, Running, Checkpointing, Recovering", "String"),
    "job.performance": ("performance of the job", "Float"),
    "job.signal": ("the last signal that was sent to it", "Int"),
    "job.cpu_time": ("time on processors, of all its processes and all its starts", "Float"),
    "job.memory_use": ("memory in use; the most there was when it has ended", "Float"),
    "job.vmemory_use": ("address space in use; the most there was when it has ended", "Float"),
}
METRIC_UNITS = {"job.cpu_time": "seconds", "job.memory_use": "megabyte", "job.vmemory_use": "megabyte"}
_SIZES = {"job.memory_use": ("memory", "most_memory"), "job.vmemory_use": ("virtual_memory", "most_virtual_memory")}


def _signal_of(event: Dict[str, Any]) -> str:
    """The number of the signal that an event tells of: "signal 10 was sent to job 5"."""
    return str(event["text"]).split()[1]


class JobMetric(Metric):
    """A metric of a job. What it fires is heard by every program that watches the same job."""

    def add_callback(self, callback: Any) -> str:
        """Has a function called on every change; gives its cookie."""
        cookie = super().add_callback(callback)
        self._object._listen()
        return cookie

    def get_attribute(self, key: str) -> str:
        """One of its attributes; `Value` as it is now."""
        if key == "Value":
            self._values()["Value"] = self._now()
        return super().get_attribute(key)

    def _now(self) -> str:
        name = self._values()["Name"]
        if name == "job.performance":
            raise NotImplemented("a grid does not know how well a job performs", self._object)
        if name == "job.state":
            return self._object.get_state()
        if name == "job.state_detail":
            return self._object._detail()
        if self._object._native is None:
            return self._values()["Value"]
        if name == "job.signal":
            sent = list(self._object._grid.pages("/v1/events", self._object, job=self._object._native,
                                                 kind="job.signalled"))
            return _signal_of(sent[-1]) if sent else ""
        if name == "job.cpu_time":
            return f"{self._object._used()['cpu_ms'] / 1000:.3f}"
        if name in _SIZES:
            now, most = _SIZES[name]
            over = self._object.get_state() in FINAL
            return f"{self._object._used()[most if over else now] / 2**20:.3f}"
        found = self._object._remote_metrics().get(name)
        if found is None:
            raise DoesNotExist(f"there is no metric {name!r} any more", self._object)
        return found["value"]

    def set_attribute(self, key: str, value: Any) -> None:
        """Sets the value, of which nobody is told before `fire`."""
        super().set_attribute(key, value)
        if key == "Value" and self._object._native is not None:
            self._object._post_metric(op="set", name=self._values()["Name"], value=str(value))

    def fire(self) -> None:
        """Has all told who watch it, in whichever program. IncorrectState where the job has ended."""
        self._may_fire()
        if self._object._native is None:
            raise IncorrectState("the job is New: nobody hears of it", self._object)
        self._object._post_metric(op="fire", name=self._values()["Name"], value=self._values()["Value"])

    def _report_remote(self, value: str) -> None:
        self._report(self._object, value)


class Listener:
    """Hears what happens to a job, for as long as anybody wants to know."""

    def __init__(self, job: Any, after: str) -> None:
        self._job, self._after = job, after
        self._state: Optional[str] = None
        self._detail: Optional[str] = None
        self._stopped = threading.Event()
        # A program that held a connection could not be saved with that: it asks again and again instead.
        self._asks = job._native == own_job(job._grid.address)
        if self._asks and not after:
            self._after = str(self._newest())
        self._events: Optional[Events] = None if self._asks else job._grid.events(after, job=job._native)
        threading.Thread(target=self._work, name="gridcpr-saga-listener", daemon=True).start()

    def stop(self) -> None:
        """Hears no more."""
        self._stopped.set()
        events = self._events
        if events is not None:
            events.close()

    def _newest(self) -> int:
        newest = 0
        for event in self._job._grid.pages("/v1/events", job=self._job._native, limit=1000):
            newest = event["id"]
        return newest

    def _ask(self) -> None:
        while not self._stopped.wait(_PAUSE_S):
            try:
                for event in self._job._grid.pages("/v1/events", job=self._job._native, after=self._after):
                    self._after = str(event["id"])
                    self._hear(event)
            except SagaException:
                self._stopped.wait(1.0)

    def _work(self) -> None:
        if self._asks:
            self._ask()
            return
        while not self._stopped.is_set():
            if self._events is not None:
                for event in self._events:
                    self._after = str(event["id"])
                    self._hear(event)
                    if self._stopped.is_set():
                        return
            try:
                self._events = self._job._grid.events(self._after, job=self._job._native)
            except SagaException:
                self._events = None
                self._stopped.wait(1.0)

    def _hear(self, event: Dict[str, Any]) -> None:
        kind, metrics = event["kind"], self._job._metrics()
        if kind.startswith("metric."):
            metric = metrics.get(kind[len("metric."):])
            if metric is not None:
                metric._report_remote(event["text"])
            return
        if kind == "job.signalled":
            self._tell("job.signal", _signal_of(event))
            return
        family, _, what = kind.partition(".")
        detail = None
        if family == "job" and what in SAGA_STATES:
            state = SAGA_STATES[what]
            if state != self._state:
                self._state = state
                self._tell("job.state", state)
            detail = DETAILS.get(what, "")
            if what in ("queued", "starting") and self._job._recovering:
                detail = "Recovering"
        elif kind == "checkpoint.pending":
            detail = "Checkpointing"
        elif kind in ("checkpoint.complete", "checkpoint.stored", "checkpoint.failed"):
            detail = DETAILS["running"] if self._detail == "Checkpointing" else None
        if detail is not None and detail != self._detail:
            self._detail = detail
            self._tell("job.state_detail", detail)

    def _tell(self, name: str, value: str) -> None:
        metric = self._job._metrics().get(name)
        if metric is not None:
            metric._report_remote(value)
