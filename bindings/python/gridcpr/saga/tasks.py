"""Tasks (SAGA Core, task model): every method of an asynchronous class has three further forms.

`object.method(…, ttype=SYNC)` gives a task that is Done or Failed, `ttype=ASYNC` one that is Running, and
`ttype=TASK` one that is New and waits for `run()`. Without `ttype` the method itself is called.
"""

from __future__ import annotations

import functools
import threading
import time
import uuid
from typing import Any, Callable, Dict, List, Optional, TypeVar

from .base import SagaObject
from .errors import BadParameter, DoesNotExist, IncorrectState, NoSuccess, SagaException
from .monitoring import LocalMetric, Monitorable

__all__ = [
    "ALL", "ANY", "ASYNC", "CANCELED", "DONE", "FAILED", "NEW", "RUNNING", "SUSPENDED", "SYNC", "TASK", "Task",
    "TaskContainer", "asynchronous",
]

SYNC, ASYNC, TASK = "Sync", "Async", "Task"
NEW, RUNNING, SUSPENDED, DONE, CANCELED, FAILED = "New", "Running", "Suspended", "Done", "Canceled", "Failed"
FINAL = (DONE, CANCELED, FAILED)
ALL, ANY = "All", "Any"

Method = TypeVar("Method", bound=Callable[..., Any])


def check_timeout(timeout: float) -> Optional[float]:
    """Seconds to wait: none where it is for ever (negative timeouts)."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout != timeout:
        raise BadParameter(f"{timeout!r} is no timeout in seconds")
    return None if timeout < 0 else float(timeout)


class Task(SagaObject, Monitorable):
    """A call under way."""

    TYPE = "Task"

    def __init__(self, about: Any, call: Callable[[], Any]) -> None:
        SagaObject.__init__(self, getattr(about, "_session", None))
        self._about, self._call = about, call
        self._state, self._result = NEW, None
        self._error: Optional[BaseException] = None
        self._changed = threading.Condition()
        self._add_metric(LocalMetric("task.state", "state of the task", "ReadOnly", "1", "Enum", NEW))

    def _become(self, state: str) -> None:
        with self._changed:
            if self._state in FINAL:
                return
            self._state = state
            self._changed.notify_all()
        self.get_metric("task.state")._report(self, state)

    def _work(self) -> None:
        try:
            result = self._call()
        except BaseException as error:  # noqa: B902 - it is raised again where somebody asks
            self._error = error
            self._become(FAILED)
        else:
            self._result = result
            self._become(DONE)

    def run(self) -> None:
        """Begins; IncorrectState where it has begun."""
        with self._changed:
            if self._state != NEW:
                raise IncorrectState(f"the task is {self._state}, and can be run when New only", self)
        self._become(RUNNING)
        threading.Thread(target=self._work, name="gridcpr-saga-task", daemon=True).start()

    def wait(self, timeout: float = -1) -> bool:
        """Waits for a final state: for ever with a negative timeout, not at all with 0. False where it has none yet."""
        seconds = check_timeout(timeout)
        with self._changed:
            if self._state == NEW:
                raise IncorrectState("the task is New, and would never end", self)
            return self._changed.wait_for(lambda: self._state in FINAL, seconds)

    def cancel(self, timeout: float = 0) -> None:
        """Ends it; what it had begun elsewhere may still happen. No effect in a final state."""
        check_timeout(timeout)
        if self._state == NEW:
            raise IncorrectState("the task is New, and cannot be cancelled", self)
        self._become(CANCELED)

    def get_state(self) -> str:
        """New, Running, Done, Canceled or Failed."""
        return self._state

    def get_result(self) -> Any:
        """What the method gives, once it has; raises what it raised."""
        self.wait()
        self.rethrow()
        if self._state == CANCELED:
            raise IncorrectState("the task was cancelled, and has no result", self)
        return self._result

    def get_object(self) -> Any:
        """The object whose method it is."""
        return self._about

    def rethrow(self) -> None:
        """Raises what made it fail, as often as it is called; nothing where it did not fail."""
        if self._state == FAILED and self._error is not None:
            if isinstance(self._error, SagaException):
                raise self._error
            raise NoSuccess(f"the task failed: {self._error}", self) from self._error


def asynchronous(method: Method) -> Method:
    """Gives a method its three further forms."""

    @functools.wraps(method)
    def with_forms(self: Any, *arguments: Any, **named: Any) -> Any:
        form = named.pop("ttype", None)
        if form is None:
            return method(self, *arguments, **named)
        if form not in (SYNC, ASYNC, TASK):
            raise BadParameter(f"{form!r} is none of {SYNC}, {ASYNC} and {TASK}", self)
        task = Task(self, lambda: method(self, *arguments, **named))
        if form != TASK:
            task.run()
        if form == SYNC:
            task.wait()
        return task

    return with_forms  # type: ignore[return-value]


class TaskContainer(SagaObject, Monitorable):
    """Tasks, jobs among them, that are run, waited for and cancelled together."""

    TYPE = "TaskContainer"

    def __init__(self) -> None:
        SagaObject.__init__(self)
        self._tasks: Dict[str, Any] = {}

    def add(self, task: Any) -> str:
        """Adds a task; gives the cookie that it is known by."""
        for cookie, known in self._tasks.items():
            if known is task:
                return cookie
        cookie = str(uuid.uuid4())
        self._tasks[cookie] = task
        return cookie

    def remove(self, cookie: str) -> Any:
        """Takes a task out, and gives it; DoesNotExist where there is none."""
        if cookie not in self._tasks:
            raise DoesNotExist(f"the container has no task {cookie!r}", self)
        return self._tasks.pop(cookie)

    def _all(self) -> List[Any]:
        if not self._tasks:
            raise DoesNotExist("the container is empty", self)
        return list(self._tasks.values())

    def run(self) -> None:
        """Begins all."""
        for task in self._all():
            task.run()

    def wait(self, mode: str = ALL, timeout: float = -1) -> Any:
        """Waits for all of them, or for any, and takes out and gives one that is in a final state; none in time:
        None."""
        if mode not in (ALL, ANY):
            raise BadParameter(f"{mode!r} is neither {ALL} nor {ANY}", self)
        seconds = check_timeout(timeout)
        tasks = self._all()
        deadline = None if seconds is None else time.monotonic() + seconds
        pause = 0.005
        while True:
            ended = [task for task in tasks if task.get_state() in FINAL]
            if len(ended) == len(tasks) or (mode == ANY and ended):
                break
            left = pause if deadline is None else min(pause, deadline - time.monotonic())
            if left <= 0:
                return None
            waited = next(task for task in tasks if task not in ended)
            if waited.get_state() == NEW:
                raise IncorrectState("a task is New, and would never end", self)
            waited.wait(left)
            pause = min(pause * 1.5, 0.2)
        for cookie, task in list(self._tasks.items()):
            if task is ended[0]:
                del self._tasks[cookie]
        return ended[0]

    def cancel(self, timeout: float = 0) -> None:
        """Cancels all."""
        for task in self._all():
            task.cancel(timeout)

    def size(self) -> int:
        """How many there are."""
        return len(self._tasks)

    def list_tasks(self) -> List[str]:
        """Their cookies."""
        return list(self._tasks)

    def get_task(self, cookie: str) -> Any:
        """The task of a cookie."""
        if cookie not in self._tasks:
            raise DoesNotExist(f"the container has no task {cookie!r}", self)
        return self._tasks[cookie]

    def get_tasks(self) -> List[Any]:
        """All of them."""
        return list(self._tasks.values())

    def get_states(self) -> List[str]:
        """The state of each."""
        return [task.get_state() for task in self._tasks.values()]
