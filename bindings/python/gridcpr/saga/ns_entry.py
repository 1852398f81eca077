"""Entries of the name space (SAGA Core, class ns_entry): what directories and checkpoints have in common."""

from __future__ import annotations

import os
import posixpath
import uuid
from typing import Any, Dict, List, Optional, Union

from .base import SagaObject
from .errors import (
    AlreadyExists, BadParameter, DoesNotExist, IncorrectState, IncorrectURL, SagaException,
)
from .files import copy_file, local_path
from .flags import Flags, check
from .grid import Grid, connect
from .permissions import Permissions
from .session import Session
from .tasks import asynchronous
from .url import Url, normal

__all__ = ["NsEntry"]

_COPY = Flags.Overwrite | Flags.Recursive | Flags.Dereference | Flags.CreateParents
_HOPS = 40
LOCK_S = 3600
"""Seconds that a lock holds at most, so that nobody is locked out by a program that has died."""


def find(grid: Grid, path: str, about: Any) -> Dict[str, Any]:
    """What the grid knows of a path."""
    if path == "/":
        owner = {"name": "root", "uid": 0, "gid": 0}
        return {"path": "/", "kind": "directory", "owner": owner, "permissions": {}, "attributes": {}, "id": 0,
                "files": []}
    return grid.get("/v1/names", about, path=path)["items"][0]


def follow(grid: Grid, path: str, about: Any) -> Dict[str, Any]:
    """The same of what links lead to in the end."""
    for _ in range(_HOPS):
        record = find(grid, path, about)
        if record["kind"] != "link":
            return record
        path = record["target"]
    raise DoesNotExist(f"{path!r} is a link that leads nowhere", about)


def place(url: Union[str, Url], base: Optional[Url], about: Any, session: Session) -> Any:
    """The grid and the path that a URL means, as seen from a directory."""
    url = Url(url)
    if url.get_scheme() not in ("", "gridcpr", "any"):
        raise IncorrectURL(f"{str(url)!r} is no URL of a checkpoint: its scheme is neither gridcpr nor any", about)
    if url.get_userinfo() or url.get_query():
        raise IncorrectURL(f"{str(url)!r} is no URL of a checkpoint", about)
    whole = url.resolve(base) if base is not None else url
    if not whole.get_scheme() and not whole.get_path().startswith("/"):
        raise IncorrectURL(f"{str(url)!r} is a relative URL, and there is no directory that it is relative to", about)
    where = whole.translate("any") if not whole.get_host() or whole.get_scheme() == "any" else whole.clone()
    where.set_path("")
    try:
        return connect(where if where.get_host() else "any://", session), normal(whole.get_path())
    except BadParameter as error:
        raise IncorrectURL(str(error), about) from error


class NsEntry(SagaObject, Permissions):
    """An entry that is open. `close` ends it; any other call after that raises IncorrectState."""

    TYPE = "NSEntry"
    KIND = ""

    def _begin(self, session: Optional[Session], url: Union[str, Url], base: Optional[Url] = None) -> None:
        SagaObject.__init__(self, session)
        self._grid, self._path = place(url, base, self, self.get_session())
        self._closed = False
        self._holder = ""

    def _enter(self, flags: int) -> None:
        """Finds it, makes it, or locks it, as flags say."""
        makes = flags & (Flags.Create | Flags.CreateParents)
        try:
            record = follow(self._grid, self._path, self)
            if makes and flags & Flags.Excl:
                raise AlreadyExists(f"there is {self._path!r} already", self)
        except DoesNotExist:
            if not makes:
                raise
            record = self._make(bool(flags & Flags.CreateParents))
        if record["kind"] != self.KIND:
            wrong = f"{self._path!r} is a {record['kind']}, and no {self.KIND}"
            raise BadParameter(wrong, self)
        self._path = record["path"]
        if flags & Flags.Lock:
            holder = str(uuid.uuid4())
            self._post(op="lock", path=self._path, holder=holder, seconds=LOCK_S)
            self._holder = holder

    def _make(self, parents: bool) -> Dict[str, Any]:
        return self._post(op="make", path=self._path, kind=self.KIND, parents=parents)

    def _post(self, **what: Any) -> Dict[str, Any]:
        return self._grid.post("/v1/names", what, self)

    def _alive(self) -> None:
        if self._closed:
            raise IncorrectState("the object is closed", self)

    def _record(self) -> Dict[str, Any]:
        self._alive()
        return find(self._grid, self._path, self)

    def _change(self, **what: Any) -> Dict[str, Any]:
        self._alive()
        return self._post(op="change", path=self._path, **what)

    def _url(self, path: str) -> Url:
        return self._grid.url(path)

    def _base(self) -> Url:
        """What relative URLs are relative to."""
        return self._url(posixpath.dirname(self._path))

    def _place(self, url: Union[str, Url]) -> str:
        """The path that a URL means, in the same grid."""
        self._alive()
        grid, path = place(url, self._base(), self, self.get_session())
        if grid.address != self._grid.address:
            raise BadParameter(f"{str(url)!r} is in another grid", self)
        return path

    def _found(self, path: str, flags: int) -> Dict[str, Any]:
        return (follow if flags & Flags.Dereference else find)(self._grid, path, self)

    @asynchronous
    def get_url(self) -> Url:
        """The full URL."""
        self._alive()
        return self._url(self._path)

    @asynchronous
    def get_cwd(self) -> Url:
        """The URL of the directory that it is in."""
        self._alive()
        return self._url(posixpath.dirname(self._path))

    @asynchronous
    def get_name(self) -> str:
        """The last part of the path."""
        self._alive()
        return posixpath.basename(self._path)

    @asynchronous
    def is_dir(self, flags: int = Flags.None_) -> bool:
        """Whether it is a directory."""
        self._alive()
        check(self, flags, Flags.Dereference, "is_dir")
        return self._found(self._path, flags)["kind"] == "directory"

    @asynchronous
    def is_entry(self, flags: int = Flags.None_) -> bool:
        """Whether it is a checkpoint."""
        self._alive()
        check(self, flags, Flags.Dereference, "is_entry")
        return self._found(self._path, flags)["kind"] == "checkpoint"

    @asynchronous
    def is_link(self) -> bool:
        """Whether it is a link."""
        self._alive()
        return find(self._grid, self._path, self)["kind"] == "link"

    @asynchronous
    def read_link(self) -> Url:
        """Where a link leads, one step; IncorrectState where it is none."""
        self._alive()
        return self._read_link(self._path)

    def _read_link(self, path: str) -> Url:
        record = find(self._grid, path, self)
        if record["kind"] != "link":
            raise IncorrectState(f"{path!r} is no link", self)
        return self._url(record["target"])

    @asynchronous
    def copy(self, target: Union[str, Url], flags: int = Flags.None_) -> None:
        """Makes an independent copy, files included."""
        check(self, flags, _COPY, "copy")
        self._copy(self._path, self._target(target, self._path, flags), flags)

    @asynchronous
    def link(self, target: Union[str, Url], flags: int = Flags.None_) -> None:
        """Makes a link that leads here."""
        check(self, flags, _COPY, "link")
        self._link(self._path, self._target(target, self._path, flags), flags)

    @asynchronous
    def move(self, target: Union[str, Url], flags: int = Flags.None_) -> None:
        """Calls it otherwise; what came before and after it stays what it is."""
        check(self, flags, _COPY, "move")
        to = self._target(target, self._path, flags)
        self._move(self._path, to, flags)
        self._path = to

    @asynchronous
    def remove(self, flags: int = Flags.None_) -> None:
        """Removes entry and files, and closes the object. IncorrectState where others need it."""
        self._alive()
        check(self, flags, Flags.Recursive | Flags.Dereference, "remove")
        self._remove(self._path, flags)
        self._holder = ""
        self._closed = True

    @asynchronous
    def close(self, timeout: float = 0) -> None:
        """Closes it, and gives its lock back. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._holder:
            try:
                self._post(op="unlock", path=self._path, holder=self._holder)
            except DoesNotExist:
                pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_holder", "") and not getattr(self, "_closed", True):
            try:
                self.close()
            except SagaException:
                pass

    # What directories do with names, too.

    def _target(self, target: Union[str, Url], source: str, flags: int) -> str:
        """The path of a copy: in a directory that is there it has the same last part."""
        path = self._place(target)
        try:
            record = follow(self._grid, path, self)
        except DoesNotExist:
            return path
        if record["kind"] == "directory":
            return posixpath.join(record["path"], posixpath.basename(source))
        return path

    def _parents(self, path: str, flags: int) -> None:
        directory = posixpath.dirname(path)
        if flags & Flags.CreateParents and directory != "/":
            try:
                self._post(op="make", path=directory, kind="directory", parents=True)
            except AlreadyExists:
                pass

    def _copy(self, source: str, to: str, flags: int) -> None:
        record = self._found(source, flags)
        if record["kind"] == "directory":
            if not flags & Flags.Recursive:
                raise BadParameter(f"{source!r} is a directory: copying it needs the flag Recursive", self)
            if to == source or to.startswith(source + "/"):
                raise BadParameter(f"{source!r} cannot be copied to below itself", self)
            try:
                self._post(op="make", path=to, kind="directory", parents=bool(flags & Flags.CreateParents))
            except AlreadyExists:
                if not flags & Flags.Overwrite:
                    raise
            for inside in self._grid.pages("/v1/names", self, below=source):
                self._copy(inside["path"], posixpath.join(to, posixpath.basename(inside["path"])), flags)
            return
        overwrite, parents = bool(flags & Flags.Overwrite), bool(flags & Flags.CreateParents)
        if record["kind"] == "link":
            self._post(op="make", path=to, kind="link", target=record["target"], parents=parents, overwrite=overwrite)
            return
        if to == record["path"]:
            raise AlreadyExists(f"{to!r} is the checkpoint itself", self)
        if not overwrite:
            try:
                find(self._grid, to, self)
            except DoesNotExist:
                pass
            else:
                raise AlreadyExists(f"there is {to!r} already", self)
        files = []
        for file in self._own_files(record):
            url = Url(file["url"])
            copy = local_path(url, self) + f".copy-{uuid.uuid4().hex[:12]}"
            copy_file(url, copy, self)
            url.set_path(copy)
            files.append(str(url))
        self._post(op="make", path=to, kind="checkpoint", copy_of=record["path"], files=files, parents=parents,
                   overwrite=overwrite)

    @staticmethod
    def _own_files(record: Dict[str, Any]) -> List[Dict[str, Any]]:
        """Files that a program has added; the first ones of a checkpoint of the grid are images that the grid keeps."""
        images = record.get("attributes", {}).get("generation") is not None and record.get("checkpoint") is not None
        return [file for file in record["files"] if not (images and file["url"].endswith(".cpr"))]

    def _link(self, source: str, to: str, flags: int) -> None:
        record = self._found(source, flags)
        self._post(op="make", path=to, kind="link", target=record["path"], parents=bool(flags & Flags.CreateParents),
                   overwrite=bool(flags & Flags.Overwrite))

    def _move(self, source: str, to: str, flags: int) -> None:
        record = self._found(source, flags)
        self._parents(to, flags)
        self._post(op="move", path=record["path"], to=to, overwrite=bool(flags & Flags.Overwrite))

    def _remove(self, path: str, flags: int) -> None:
        record = self._found(path, flags)
        inside = [record]
        if record["kind"] == "directory":
            if not flags & Flags.Recursive:
                raise BadParameter(f"{path!r} is a directory: removing it needs the flag Recursive", self)
            inside += self._grid.pages("/v1/names", self, below=record["path"], recursive="true", limit=1000)
        self._post(op="remove", path=record["path"], recursive=bool(flags & Flags.Recursive))
        for one in inside:
            for file in self._own_files(one):
                try:
                    os.unlink(local_path(Url(file["url"]), self))
                except (OSError, IncorrectURL):
                    # It is gone, or elsewhere; the entry is gone in any case.
                    pass
