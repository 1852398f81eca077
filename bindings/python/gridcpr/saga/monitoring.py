"""Monitoring (SAGA Core, interfaces monitorable, steerable and callback): metrics, and functions that hear of them.

A callback is any function, or object with a method `cb`, of three arguments: the object, the metric, and a context. It
stays where it gives True and is removed where it gives anything else. Calls of one callback come one after the other.
"""

from __future__ import annotations

import threading
import traceback
import uuid
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

from .attributes import Attribute, Attributes
from .errors import BadParameter, DoesNotExist, IncorrectState, PermissionDenied
from .session import Context

__all__ = ["LocalMetric", "Metric", "Monitorable", "Steerable"]


class _Callback:
    """A function that is called for one event after the other, by a thread that lives as long as there are any."""

    def __init__(self, function: Any, owner: "Metric", cookie: str) -> None:
        self.function = getattr(function, "cb", function)
        if not callable(self.function):
            raise BadParameter(f"{function!r} is no callback")
        self.owner, self.cookie = owner, cookie
        self.waiting: Deque[Tuple[Any, Any, Any]] = deque()
        self.running = False
        self.removed = False
        self.thread: Optional[threading.Thread] = None
        self.changed = threading.Condition()

    def post(self, event: Tuple[Any, Any, Any]) -> None:
        with self.changed:
            if self.removed:
                return
            self.waiting.append(event)
            if self.running:
                return
            self.running = True
            self.thread = threading.Thread(target=self._work, name="gridcpr-saga-callback", daemon=True)
            self.thread.start()

    def _work(self) -> None:
        while True:
            with self.changed:
                if self.removed or not self.waiting:
                    self.running = False
                    self.changed.notify_all()
                    return
                event = self.waiting.popleft()
            try:
                stays = self.function(*event) is True
            except Exception:  # noqa: B902 - a callback that fails is not called again
                traceback.print_exc()
                stays = False
            if not stays:
                with self.changed:
                    self.removed = True
                self.owner._callbacks.pop(self.cookie, None)

    def remove(self) -> None:
        with self.changed:
            self.removed = True
            if self.thread is not threading.current_thread():
                self.changed.wait_for(lambda: not self.running)


class Metric(Attributes):
    """A value of an object that others may watch, or fire. Attributes: Name, Description, Mode (ReadOnly, ReadWrite or
    Final), Unit, Type (String, Int, Enum, Float, Bool, Time or Trigger) and Value."""

    TYPE = "Metric"
    ATTRIBUTES = {
        "Name": Attribute(writable=False, default=""),
        "Description": Attribute(writable=False, default=""),
        "Mode": Attribute(type="Enum", writable=False, default="ReadOnly"),
        "Unit": Attribute(writable=False, default="1"),
        "Type": Attribute(type="Enum", writable=False, default="String"),
        "Value": Attribute(default=""),
    }

    def __init__(self, name: str, description: str = "", mode: str = "ReadOnly", unit: str = "1", type: str = "String",
                 value: str = "") -> None:
        if mode not in ("ReadOnly", "ReadWrite", "Final"):
            raise BadParameter(f"Mode: {mode!r} is none of ReadOnly, ReadWrite and Final", self)
        if type not in ("String", "Int", "Enum", "Float", "Bool", "Time", "Trigger"):
            raise BadParameter(f"Type: {type!r} is no type of a metric", self)
        if not isinstance(name, str) or not name:
            raise BadParameter(f"Name: {name!r} is no name of a metric", self)
        self._values().update(Name=name, Description=description, Mode=mode, Unit=unit, Type=type, Value=value)
        self._callbacks: Dict[str, _Callback] = {}
        self._object: Any = None

    def attribute_is_writable(self, key: str) -> bool:
        """Whether it can be set: the value, unless the metric can only be read."""
        return super().attribute_is_writable(key) and self._values()["Mode"] == "ReadWrite"

    def attribute_is_readonly(self, key: str) -> bool:
        """Whether it can only be read."""
        self._definition(key)
        return not self.attribute_is_writable(key)

    def set_attribute(self, key: str, value: Any) -> None:
        """Sets the value, of which nobody hears before `fire`."""
        if key == "Value" and self._values()["Mode"] != "ReadWrite":
            raise PermissionDenied(f"metric {self._values()['Name']} can only be read", self)
        super().set_attribute(key, value)

    def add_callback(self, callback: Any) -> str:
        """Has a function called on every change; gives its cookie."""
        if self._values()["Mode"] == "Final":
            raise IncorrectState(f"metric {self._values()['Name']} is final, and does not change any more", self)
        cookie = str(uuid.uuid4())
        self._callbacks[cookie] = _Callback(callback, self, cookie)
        return cookie

    def remove_callback(self, cookie: str) -> None:
        """Has it called no more; waits until it is not running."""
        found = self._callbacks.pop(cookie, None)
        if found is None:
            raise BadParameter(f"metric {self._values()['Name']} has no callback {cookie!r}", self)
        found.remove()

    def fire(self) -> None:
        """Tells all who watch it. PermissionDenied where it can only be read, IncorrectState where it is final."""
        self._may_fire()
        self._report(self._object, self._values()["Value"])

    def _may_fire(self) -> None:
        mode = self._values()["Mode"]
        if mode == "Final":
            raise IncorrectState(f"metric {self._values()['Name']} is final", self)
        if mode != "ReadWrite":
            raise PermissionDenied(f"metric {self._values()['Name']} can only be read", self)

    def _report(self, about: Any, value: str) -> None:
        """Takes a value that has come about, and calls the callbacks, with the metric as it is now."""
        self._values()["Value"] = value
        session = getattr(about, "_session", None)
        contexts = session.list_contexts() if session else []
        context = contexts[0] if contexts else Context("unix")
        for callback in list(self._callbacks.values()):
            callback.post((about, self._as_told(value), context))

    def _as_told(self, value: str) -> "Metric":
        values = dict(self._values(), Value=value)
        told = Metric.__new__(Metric)
        told.__dict__.update(_attribute_values=values, _callbacks=self._callbacks, _object=self._object)
        return told


LocalMetric = Metric


class Monitorable:
    """An object with metrics."""

    def _metrics(self) -> Dict[str, Metric]:
        return self.__dict__.setdefault("_known_metrics", {})

    def _add_metric(self, metric: Metric) -> Metric:
        metric._object = self
        self._metrics()[metric.get_attribute("Name")] = metric
        return metric

    def list_metrics(self) -> List[str]:
        """Names of its metrics."""
        return list(self._metrics())

    def get_metric(self, name: str) -> Metric:
        """A metric; DoesNotExist where there is none of this name."""
        found = self._metrics().get(name)
        if found is None:
            raise DoesNotExist(f"there is no metric {name!r}", self)
        return found

    def add_callback(self, name: str, callback: Callable[[Any, Metric, Context], Any]) -> str:
        """Has a function called on every change of a metric; gives its cookie."""
        return self.get_metric(name).add_callback(callback)

    def remove_callback(self, name: str, cookie: str) -> None:
        """Has it called no more; waits until it is not running."""
        self.get_metric(name).remove_callback(cookie)


class Steerable(Monitorable):
    """An object to which an application adds metrics of its own."""

    def add_metric(self, metric: Metric) -> bool:
        """Adds a metric; False where there is one of the same name, and nothing changes."""
        if metric.get_attribute("Name") in self.list_metrics():
            return False
        self._add_metric(metric)
        return True

    def remove_metric(self, name: str) -> None:
        """Takes a metric away that an application has added."""
        self.get_metric(name)
        del self._metrics()[name]

    def fire_metric(self, name: str) -> None:
        """Tells all who watch a metric."""
        self.get_metric(name).fire()
