"""Checkpoints that a program writes itself, and its part in checkpoints of the whole program.

    import numpy, gridcpr

    field, step = numpy.zeros((1000, 1000)), numpy.zeros((), "int64")
    with gridcpr.Checkpoint("heat", base="/scratch") as checkpoint:
        checkpoint.protect("field", field)
        checkpoint.protect("step", step)
        checkpoint.restore()
        while step < 10000:
            advance(field)
            step += 1
            if step % 100 == 0:
                checkpoint.write()

Anything with the buffer protocol can be protected: arrays of numpy and of the module array, bytearray, memoryview,
ctypes. It is written without a copy where its elements lie one after the other. The library itself, libgridcpr.so.0, is
looked for where GRIDCPR_LIBRARY says, then where the dynamic linker finds it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from typing import Any, Callable, Iterator, NamedTuple, Optional

__all__ = [
    "Callback", "Checkpoint", "Error", "Generation", "Later", "Notice", "Restart", "command", "critical", "checkpoint_job",
    "file_policy", "last_restart", "restarted", "version",
]


class Error(Exception):
    """What the library says went wrong. `code` is the negative number of gridcpr.h, GRIDCPR_E_*."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Later(Exception):
    """To be raised by a callback that cannot have a checkpoint just now."""


class Notice(NamedTuple):
    """What a callback is told."""

    event: str
    """"before" a checkpoint, "continue" after it, "restart", or "told" that something has happened."""
    failed: bool
    """With "continue": there is no checkpoint after all."""
    restarts: int
    """How often the program was restarted."""
    checkpoint: int
    """Number of the checkpoint, the same before and after it."""
    reason: str
    """With "told": what has happened (`cpr notify`)."""


class Restart(NamedTuple):
    """The newest restart of the program."""

    times: int
    """How often it was restarted."""
    generation: int
    """Number of the checkpoint that it goes on from, as callbacks were told (`Notice.checkpoint`)."""
    image: str
    """Identifier of the image."""
    job: str
    """Name of the job."""


class Generation(NamedTuple):
    """A generation of a checkpoint."""

    number: int
    """Its number, from 1."""
    time_ns: int
    """When writing began: nanoseconds since the epoch."""
    bytes: int
    """Of all its files."""
    lifetime: int
    """Seconds, where that was set for this one; else 0."""
    state: str
    """"incomplete", "complete" or "damaged"."""
    parts: int
    """Parts that are there."""
    ranks: int
    """Parts that there have to be."""
    needs: int
    """How many other generations it needs."""


class _Options(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_uint32),
        ("rank", ctypes.c_uint32),
        ("ranks", ctypes.c_uint32),
        ("keep", ctypes.c_uint32),
        ("lifetime", ctypes.c_uint64),
        ("sequence", ctypes.c_char_p),
        ("session", ctypes.c_char_p),
    ]


class _Generation(ctypes.Structure):
    _fields_ = [
        ("generation", ctypes.c_uint64),
        ("time_ns", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("lifetime", ctypes.c_uint64),
        ("state", ctypes.c_int32),
        ("parts", ctypes.c_uint32),
        ("ranks", ctypes.c_uint32),
        ("needs", ctypes.c_uint32),
    ]


class _Restart(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_uint32),
        ("times", ctypes.c_uint32),
        ("image", ctypes.c_char * 40),
        ("job", ctypes.c_char * 72),
    ]


class _Notice(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_uint32),
        ("event", ctypes.c_int32),
        ("failed", ctypes.c_int32),
        ("restarts", ctypes.c_uint32),
        ("checkpoint", ctypes.c_uint64),
        ("reason", ctypes.c_char_p),
    ]


_Call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Notice), ctypes.c_void_p)
_EVENTS = {1: "before", 2: "continue", 3: "restart", 4: "told"}
_READY, _LATER, _REFUSE = range(3)
_TYPES = {
    "b": 0,
    "B": 4,
    "f": 8,
    "d": 9,
    "Zf": 10,
    "Zd": 11,
    "c": 12,
    "?": 4,
}
_STATES = ("incomplete", "complete", "damaged")


def _type_of(view: memoryview) -> int:
    """The number of the library's type for the elements of a buffer."""
    foreign = ">!" if sys.byteorder == "little" else "<"
    if view.format[0] in foreign and view.itemsize > 1:
        raise TypeError("elements in another byte order than this machine's cannot be saved")
    form = view.format.lstrip("@=<>!")
    if len(form) == 1 and form in "hilqn":
        return {2: 1, 4: 2, 8: 3}[view.itemsize]
    if len(form) == 1 and form in "HILQN":
        return {2: 5, 4: 6, 8: 7}[view.itemsize]
    if form not in _TYPES:
        raise TypeError(f"elements of the kind {view.format!r} cannot be saved")
    return _TYPES[form]


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ.get("GRIDCPR_LIBRARY", "libgridcpr.so.0"))
    library.gridcpr_error.restype = ctypes.c_char_p
    library.gridcpr_version.restype = ctypes.c_char_p
    library.gridcpr_app_open.restype = ctypes.c_void_p
    library.gridcpr_app_open.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Options)]
    app, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64
    numbers = ctypes.POINTER(ctypes.c_uint64)
    for name, arguments in {
        "close": [app],
        "protect_strided": [
            app, text, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, numbers, numbers, ctypes.c_int
        ],
        "unprotect": [app, text],
        "set_attribute": [app, text, text],
        "write": [app],
        "prepare": [app],
        "write_begin": [app],
        "progress": [app, numbers, numbers],
        "wait": [app],
        "restore": [app, number],
        "query": [app, ctypes.POINTER(_Generation), ctypes.c_size_t],
        "get_attribute": [app, number, text, ctypes.c_char_p, ctypes.c_size_t],
        "update": [app, number, text, text, number],
        "find": [app, text, text, ctypes.POINTER(_Generation), ctypes.c_size_t],
        "read": [app, number, ctypes.c_uint32, text, number, ctypes.c_void_p, ctypes.c_size_t],
        "route": [app, text, ctypes.c_char_p, ctypes.c_size_t],
        "file": [app, number, text, ctypes.c_char_p, ctypes.c_size_t],
        "forget": [app],
        "free": [app, number],
        "validate": [app, number],
        "transfer": [app, number, text],
    }.items():
        function = getattr(library, f"gridcpr_app_{name}")
        function.argtypes = arguments
        if name in ("write", "wait", "restore"):
            function.restype = ctypes.c_int64
    library.gridcpr_register.argtypes = [_Call, ctypes.c_void_p, ctypes.c_int]
    library.gridcpr_explain.argtypes = [text]
    library.gridcpr_checkpoint.argtypes = [ctypes.c_uint, ctypes.c_char_p, ctypes.c_size_t]
    library.gridcpr_command.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_char_p, ctypes.c_size_t]
    library.gridcpr_command.restype = ctypes.c_int64
    library.gridcpr_file_policy.argtypes = [text, text]
    library.gridcpr_generation.argtypes = []
    library.gridcpr_generation.restype = ctypes.c_int64
    library.gridcpr_restarted.argtypes = [ctypes.POINTER(_Restart)]
    return library


_library: Optional[ctypes.CDLL] = None


def _lib() -> ctypes.CDLL:
    global _library
    if _library is None:
        _library = _load()
    return _library


def _checked(result: int) -> int:
    if result < 0:
        raise Error(result, _lib().gridcpr_error().decode(errors="replace"))
    return result


def _text(text: Any) -> bytes:
    return os.fsencode(text)


def version() -> str:
    """Version of the library."""
    return _lib().gridcpr_version().decode()


@contextlib.contextmanager
def critical() -> Iterator[None]:
    """A section in which no checkpoint of the whole program is taken. Sections nest, and belong to a thread."""
    _checked(_lib().gridcpr_block())
    try:
        yield
    finally:
        _checked(_lib().gridcpr_unblock())


class Callback:
    """A function that is called around checkpoints of the whole program with a Notice, in a thread of the library. An
    exception in it before a checkpoint refuses the checkpoint, with its text, or puts it off where it is Later.
    Unregistered by close(), or at the end of a `with` statement."""

    def __init__(self, function: Callable[[Notice], object]) -> None:
        """Registers it."""

        def call(notice: Any, unused: Any) -> int:
            told = notice.contents
            reason = (told.reason or b"").decode(errors="replace")
            event = _EVENTS.get(told.event, "unknown")
            try:
                function(Notice(event, bool(told.failed), told.restarts, told.checkpoint, reason))
            except Exception as error:
                _lib().gridcpr_explain(str(error).encode().replace(b"\0", b" "))
                return _LATER if isinstance(error, Later) else _REFUSE
            return _READY

        # As long as it is registered, the library has its address.
        self._call = _Call(call)
        self._number = _checked(_lib().gridcpr_register(self._call, None, 0))

    def __enter__(self) -> "Callback":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes it; a call that runs now runs to its end. Closing twice does nothing."""
        number, self._number = self._number, 0
        if number:
            _checked(_lib().gridcpr_unregister(number))
            # One that runs now still needs it.
            _done.append(self._call)


_done: list[Any] = []


def checkpoint_job(stop: bool = False) -> Optional[str]:
    """Has the whole job checkpointed that the program runs in (`cpr run`). Gives the path of the image, or None in a
    program that has been restarted from it. With `stop` the job ends, and goes on when it is restarted."""
    path = ctypes.create_string_buffer(4096)
    outcome = _checked(_lib().gridcpr_checkpoint(int(stop), path, len(path)))
    return None if outcome else os.fsdecode(path.value)


def command(*arguments: Any) -> Any:
    """Does what `cpr ARGUMENTS --json` does, and gives its result as docs/commands.md has it."""
    words = (ctypes.c_char_p * (len(arguments) + 1))(*map(_text, arguments), None)
    text = ctypes.create_string_buffer(1 << 20)
    length = _checked(_lib().gridcpr_command(words, text, len(text)))
    if length >= len(text):
        raise Error(-70, "the result is too long")
    return json.loads(text.value) if length else None


def restarted() -> int:
    """How often the program was restarted from an image."""
    found = _Restart()
    found.size = ctypes.sizeof(found)
    _checked(_lib().gridcpr_restarted(ctypes.byref(found)))
    return found.times


def file_policy(pattern: "os.PathLike[str] | str", policy: str) -> None:
    """Says how checkpoints of the job that the program runs in treat files, as `cpr run --file PATTERN=POLICY` does."""
    _checked(_lib().gridcpr_file_policy(_text(pattern), _text(policy)))


def last_restart() -> Optional[Restart]:
    """What is known of the newest restart; None in a program that was not restarted."""
    found = _Restart()
    found.size = ctypes.sizeof(found)
    if not _checked(_lib().gridcpr_restarted(ctypes.byref(found))):
        return None
    generation = _checked(_lib().gridcpr_generation())
    return Restart(found.times, generation, found.image.decode(), found.job.decode(errors="replace"))


class Checkpoint:
    """A checkpoint that the program writes itself. To be used by one thread at a time."""

    def __init__(
        self,
        name: str,
        base: "os.PathLike[str] | str" = "",
        *,
        rank: int = 0,
        ranks: int = 1,
        keep: int = 0,
        lifetime: int = 0,
        sequence: str = "",
        session: str = "",
    ) -> None:
        """Opens it; `base` is the directory below which its directory is. The others are as in gridcpr_app_options."""
        options = _Options(
            ctypes.sizeof(_Options), rank, ranks, keep, lifetime, sequence.encode() or None, session.encode() or None
        )
        self._app = _lib().gridcpr_app_open(_text(base), _text(name), ctypes.byref(options))
        if not self._app:
            raise Error(_lib().gridcpr_error_code(), _lib().gridcpr_error().decode(errors="replace"))
        self._kept: dict[str, Any] = {}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_app", None):
            _lib().gridcpr_app_close(self._app)

    def close(self) -> None:
        """Waits for a background write, and closes. Closing twice does nothing."""
        app, self._app = self._app, None
        self._kept.clear()
        if app:
            _checked(_lib().gridcpr_app_close(app))

    def _call(self, name: str, *arguments: Any) -> int:
        if not self._app:
            raise ValueError("the checkpoint is closed")
        return _checked(getattr(_lib(), f"gridcpr_app_{name}")(self._app, *arguments))

    def protect(self, name: str, data: Any) -> None:
        """Names a variable: anything with the buffer protocol that can be written to."""
        view = memoryview(data)
        if view.readonly:
            raise TypeError(f"{name} cannot be written to, so it could not be restored")
        element = _type_of(view)
        fortran = view.f_contiguous and not view.c_contiguous
        strides = None
        if not view.c_contiguous and not fortran:
            if any(stride < 0 for stride in view.strides):
                raise TypeError(f"{name} runs backwards; save the array that it is a view of")
            strides = (ctypes.c_uint64 * view.ndim)(*view.strides)
        shape = (ctypes.c_uint64 * view.ndim)(*view.shape)
        address = _address(data, view)
        self._call("protect_strided", name.encode(), address, element, view.ndim, shape, strides, int(fortran))
        # The buffer can neither go nor move as long as a view of it is there.
        self._kept[name] = (data, view)

    def unprotect(self, name: str) -> None:
        """Forgets a variable."""
        self._call("unprotect", name.encode())
        self._kept.pop(name, None)

    def set_attribute(self, key: str, value: str) -> None:
        """What generations written from now on remember."""
        self._call("set_attribute", key.encode(), value.encode())

    def write(self) -> int:
        """Writes all protected variables; gives the number of the generation. It is on disk then."""
        return self._call("write")

    def prepare(self) -> None:
        """Gets the memory of copies beforehand, so that the first `write_begin` is as short as the others."""
        self._call("prepare")

    def write_begin(self) -> None:
        """Copies all protected variables, and writes the copy while the program goes on."""
        self._call("write_begin")

    def progress(self) -> tuple[bool, int, int]:
        """Whether one is being written, and bytes done and in all."""
        done, total = ctypes.c_uint64(), ctypes.c_uint64()
        under_way = self._call("progress", ctypes.byref(done), ctypes.byref(total))
        return bool(under_way), done.value, total.value

    def wait(self) -> int:
        """Waits for the end of what was begun; gives its number, or 0 where nothing was."""
        return self._call("wait")

    def restore(self, generation: int = 0) -> int:
        """Fills all protected variables from a generation, or from the newest sound one; gives its number, or 0 where
        there is none yet."""
        return self._call("restore", generation)

    def _collect(self, name: str, *arguments: Any) -> list[Generation]:
        room = 64
        while True:
            found = (_Generation * room)()
            count = self._call(name, *arguments, found, room)
            if count <= room:
                return [
                    Generation(
                        g.generation, g.time_ns, g.bytes, g.lifetime, _STATES[g.state], g.parts, g.ranks, g.needs
                    )
                    for g in found[:count]
                ]
            room = count

    def generations(self) -> list[Generation]:
        """All generations, the oldest first."""
        return self._collect("query")

    def find(self, key: str, value: str) -> list[Generation]:
        """Those that remember `value` under `key`."""
        return self._collect("find", key.encode(), value.encode())

    def read(self, generation: int, name: str, offset: int, length: int, rank: int = 0) -> bytes:
        """Bytes of a variable of any rank, in this machine's byte order."""
        place = ctypes.create_string_buffer(length)
        self._call("read", generation, rank, name.encode(), offset, place, length)
        return place.raw

    def route(self, name: str) -> str:
        """Where to write a file that is to belong to the next generation."""
        place = ctypes.create_string_buffer(1 << 16)
        self._call("route", _text(name), place, len(place))
        return os.fsdecode(place.value)

    def file(self, generation: int, name: str) -> str:
        """Where such a file of a generation is, for reading."""
        place = ctypes.create_string_buffer(1 << 16)
        self._call("file", generation, _text(name), place, len(place))
        return os.fsdecode(place.value)

    def attribute(self, generation: int, key: str) -> str:
        """What a generation remembers under `key`."""
        length = self._call("get_attribute", generation, key.encode(), None, 0)
        value = ctypes.create_string_buffer(length + 1)
        self._call("get_attribute", generation, key.encode(), value, len(value))
        return value.value.decode(errors="replace")

    def update(self, generation: int, key: str = "", value: str = "", lifetime: int = 0) -> None:
        """Changes an attribute, the lifetime in seconds, or both."""
        self._call("update", generation, key.encode() or None, value.encode(), lifetime)

    def free(self, generation: int) -> None:
        """Removes a generation that no other one needs."""
        self._call("free", generation)

    def forget(self) -> None:
        """Removes all generations, and what is known of them."""
        self._call("forget")

    def validate(self, generation: int) -> None:
        """Compares every hash of a generation; raises Error where something is wrong."""
        self._call("validate", generation)

    def transfer(self, generation: int, base: "os.PathLike[str] | str") -> None:
        """Copies a complete generation below another base directory."""
        self._call("transfer", generation, _text(base))


class _Buffer(ctypes.Structure):
    """Py_buffer"""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


def _address(data: Any, view: memoryview) -> Optional[int]:
    """Where the first element of a buffer is."""
    full_read_only = 0x11C
    buffer = _Buffer()
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    get.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
    release.argtypes = [ctypes.POINTER(_Buffer)]
    get(view, ctypes.byref(buffer), full_read_only)
    try:
        return buffer.buf
    finally:
        release(ctypes.byref(buffer))
