"""Files of checkpoints, which are opened one by one (SAGA CPR, section 2.3.2)."""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any, BinaryIO, Optional

from .base import SagaObject
from .errors import (
    AlreadyExists, BadParameter, DoesNotExist, IncorrectState, IncorrectURL, NoSuccess, PermissionDenied, SagaException,
)
from .flags import Flags, check
from .url import Url

__all__ = ["CprFile"]

_ALLOWED = (Flags.Overwrite | Flags.Create | Flags.Excl | Flags.Lock | Flags.CreateParents | Flags.Truncate
            | Flags.Append | Flags.Read | Flags.Write | Flags.ReadWrite | Flags.Binary)


def of_os(error: OSError, what: str, about: Any) -> SagaException:
    """An error of the system as one of ours."""
    text = f"{what}: {error.strerror or error}"
    kinds = ((FileNotFoundError, DoesNotExist), (FileExistsError, AlreadyExists), (PermissionError, PermissionDenied),
             (IsADirectoryError, BadParameter))
    return next((ours for theirs, ours in kinds if isinstance(error, theirs)), NoSuccess)(text, about)


def local_path(url: Url, about: Any) -> str:
    """The path by which this machine reaches a file: that of the URL, whichever host shares it with this one."""
    if url.get_scheme() not in ("file", ""):
        raise IncorrectURL(f"{str(url)!r} is no file that can be opened here", about)
    return url.get_path()


class CprFile(SagaObject):
    """An open file of a checkpoint."""

    TYPE = "File"

    def __init__(self, url: Any, flags: int = Flags.Read, session: Any = None, sealed: bool = False) -> None:
        SagaObject.__init__(self, session)
        self._url = Url(url)
        check(self, flags, _ALLOWED, "open")
        self._file: Optional[BinaryIO] = None
        kinds = flags & (Flags.Read | Flags.Write | Flags.ReadWrite)
        if kinds & (kinds - 1):
            raise BadParameter("of Read, Write and ReadWrite only one can be given", self)
        self._reads = not flags & (Flags.Write | Flags.Append) or bool(flags & Flags.ReadWrite)
        self._writes = bool(flags & (Flags.Write | Flags.ReadWrite | Flags.Append | Flags.Truncate))
        if kinds == Flags.Read and flags & (Flags.Truncate | Flags.Append):
            raise BadParameter("what is opened for reading only is neither emptied nor appended to", self)
        if self._writes and sealed:
            raise PermissionDenied(f"{self._url} is an image that the grid keeps: it cannot be changed", self)
        mode = os.O_RDWR if self._writes and self._reads else os.O_WRONLY if self._writes else os.O_RDONLY
        mode |= os.O_TRUNC if flags & Flags.Truncate else 0
        mode |= os.O_APPEND if flags & Flags.Append else 0
        mode |= os.O_CREAT if flags & (Flags.Create | Flags.CreateParents) else 0
        mode |= os.O_EXCL if flags & Flags.Excl and flags & (Flags.Create | Flags.CreateParents) else 0
        path = local_path(self._url, self)
        try:
            if flags & Flags.CreateParents:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(path, mode | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise of_os(error, f"open {self._url}", self) from error
        how = "r+b" if self._writes and self._reads else "wb" if self._writes else "rb"
        self._file = os.fdopen(descriptor, how, buffering=0)  # type: ignore[assignment]

    def _open(self) -> BinaryIO:
        if self._file is None:
            raise IncorrectState(f"{self._url} is closed", self)
        return self._file

    def get_url(self) -> Url:
        """Its URL."""
        self._open()
        return self._url.clone()

    def get_size(self) -> int:
        """Bytes."""
        return os.fstat(self._open().fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        """Reads so many bytes at most, or all; PermissionDenied where it is open for writing only."""
        file = self._open()
        if not self._reads:
            raise PermissionDenied(f"{self._url} is open for writing only", self)
        return file.read(size) if size >= 0 else b"".join(iter(lambda: file.read(1 << 20), b""))

    def write(self, data: bytes) -> int:
        """Writes all bytes; PermissionDenied where it is open for reading only."""
        file = self._open()
        if not self._writes:
            raise PermissionDenied(f"{self._url} is open for reading only", self)
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += file.write(view[done:])
        except OSError as error:
            raise of_os(error, f"write {self._url}", self) from error
        return done

    def seek(self, offset: int, whence: str = "Start") -> int:
        """Goes to a place counted from Start, Current or End; gives it."""
        places = {"Start": os.SEEK_SET, "Current": os.SEEK_CUR, "End": os.SEEK_END}
        if whence not in places:
            raise BadParameter(f"{whence!r} is none of {', '.join(places)}", self)
        try:
            return self._open().seek(offset, places[whence])
        except OSError as error:
            raise BadParameter(f"{self._url} has no place {offset} from {whence}", self) from error

    def close(self, timeout: float = 0) -> None:
        """Closes it, when what was written is on disk. May be called again."""
        if self._file is not None:
            if self._writes:
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def __enter__(self) -> "CprFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def copy_file(source: Url, target: str, about: Any) -> None:
    """Copies a file that this machine reaches, and has it on disk."""
    path = local_path(source, about)
    if source.get_host() not in ("", "localhost", socket.gethostname()) and not os.path.exists(path):
        raise NoSuccess(f"{source} is on {source.get_host()}, and this machine does not reach it", about)
    part = f"{target}.part-{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        with open(path, "rb") as reader, open(part, "xb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())
        os.replace(part, target)
    except OSError as error:
        if os.path.exists(part):
            os.unlink(part)
        raise of_os(error, f"copy {source} to {target}", about) from error
