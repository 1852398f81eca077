"""Checkpoints in the name space (SAGA CPR, class checkpoint, here `cpr_entry`).

A checkpoint is the whole state of an application at one time, made of any number of files. Each has a number that no
other file of the checkpoint has. Checkpoints form a tree: each has at most one parent, the one before it.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from typing import Any, Dict, List, Optional, Union

from . import s3
from .attributes import Attribute, Attributes
from .errors import AlreadyExists, BadParameter, DoesNotExist, PermissionDenied
from .files import CprFile, copy_file, local_path
from .flags import Flags, check
from .grid import own_job
from .ns_entry import NsEntry
from .session import Session
from .tasks import asynchronous
from .url import Url

__all__ = ["CprEntry", "checkpoint", "cpr_entry"]

DEFAULT = Flags.CreateParents | Flags.Lock
OPEN = (Flags.Create | Flags.Excl | Flags.Lock | Flags.CreateParents | Flags.Overwrite | Flags.Read | Flags.Write
        | Flags.ReadWrite)
_VECTOR = "saga-vector:"


def _mode(value: str) -> Optional[str]:
    return None if value in ("full", "inc 1", "inc 2") else "is none of full, inc 1 and inc 2"


def _ttl(value: str) -> Optional[str]:
    return None if int(value) >= 0 else "is less than 0"


class CprEntry(NsEntry, Attributes):
    """A checkpoint that is open. Attributes: time (seconds since 1970), nfiles, ttl (seconds; -1: no limit), mode
    (full, inc 1: what has changed since the last full one, inc 2: since the last one), parent (URL, or empty) and
    childs (URLs). Others may be added."""

    TYPE = "CprEntry"
    KIND = "checkpoint"
    EXTENSIBLE = True
    ATTRIBUTES = {
        "time": Attribute(type="Time", writable=False, default=""),
        "nfiles": Attribute(type="Int", writable=False, default="0"),
        "ttl": Attribute(type="Int", default="-1", check=_ttl),
        "mode": Attribute(type="Enum", default="full", check=_mode),
        "parent": Attribute(type="URL", writable=False, default=""),
        "childs": Attribute(type="URL", vector=True, writable=False, default=[]),
    }

    def __init__(self, url: Union[str, Url], flags: int = DEFAULT, session: Optional[Session] = None,
                 _base: Optional[Url] = None, _open: bool = True) -> None:
        """Opens a checkpoint. By default one that is missing is made, directories on the way as well, and it is
        locked."""
        self._begin(session, url, _base)
        check(self, flags, OPEN, "open")
        self._flags = flags
        if _open:
            self._enter(flags)

    def _make(self, parents: bool) -> Dict[str, Any]:
        # The lifetime that the job has said that this program is part of, or else the one that jobs have by default.
        lifetime = os.environ.get("SAGA_CPR_TIME_TO_LIVE", "")
        job = own_job(self._grid.address)
        return self._post(op="make", path=self._path, kind="checkpoint", parents=parents, job=job,
                          ttl_s=int(lifetime) if lifetime.isdigit() else 2500000)

    # Attributes.

    def _values(self) -> Dict[str, Any]:
        record = self._record()
        values: Dict[str, Any] = {
            key: json.loads(value[len(_VECTOR):]) if value.startswith(_VECTOR) else value
            for key, value in record["attributes"].items()
        }
        values.update(
            time=f"{record['time_ms'] / 1000:.3f}",
            nfiles=str(len(record["files"])),
            ttl=str(record["ttl_s"] if record["ttl_s"] is not None else -1),
            mode=record["mode"],
            parent=str(self._url(record["parent_path"])) if record["parent_path"] else "",
            childs=[str(self._url(path)) for path in record["children"]],
        )
        return values

    def _store(self, key: str, value: Any) -> None:
        if key == "ttl" and value is not None:
            self._change(ttl_s=int(value))
        elif key == "mode" and value is not None:
            if self._record()["checkpoint"] is not None and value != "full":
                raise PermissionDenied("mode: the grid keeps whole images, whose mode is full", self)
            self._change(mode=value)
        else:
            text = _VECTOR + json.dumps(value) if isinstance(value, list) else value
            self._change(attributes={key: text})

    def attribute_is_removable(self, key: str) -> bool:
        """Whether it can be removed: only what was added."""
        return self._definition(key).writable and key not in self.ATTRIBUTES

    # The tree.

    def _generations(self, generations: int) -> int:
        if isinstance(generations, bool) or not isinstance(generations, int) or generations < 1:
            raise BadParameter(f"{generations!r} is no number of generations", self)
        return generations

    def _above(self, generations: int) -> Optional[str]:
        path: Optional[str] = self._path
        for _ in range(generations):
            path = self._grid.get("/v1/names", self, path=path)["items"][0]["parent_path"]
            if not path:
                return None
        return path

    @asynchronous
    def get_parent(self, generations: int = 1) -> Url:
        """The URL of the checkpoint so many generations before; DoesNotExist where there is none."""
        self._alive()
        path = self._above(self._generations(generations))
        if path is None:
            raise DoesNotExist(f"{self._path!r} has no parent {generations} generations back", self)
        return self._url(path)

    @asynchronous
    def set_parent(self, url: Union[str, Url], generations: int = 1) -> None:
        """Puts a checkpoint before this one; with more generations, before the one that many less one before it."""
        parent = self._place(url)
        below: Optional[str] = self._path
        if self._generations(generations) > 1:
            below = self._above(generations - 1)
            if below is None:
                raise DoesNotExist(f"{self._path!r} has no parent {generations - 1} generations back", self)
        self._post(op="change", path=below, parent=parent)

    @asynchronous
    def remove_parent(self) -> None:
        """Makes it a root of the tree."""
        self._change(parent="")

    @asynchronous
    def set_child(self, url: Union[str, Url]) -> None:
        """Puts a checkpoint after this one."""
        self._post(op="change", path=self._place(url), parent=self._path)

    @asynchronous
    def remove_child(self, url: Union[str, Url]) -> None:
        """Makes a child of this one a root of the tree; DoesNotExist where it is no child of it."""
        path = self._place(url)
        if path not in self._record()["children"]:
            raise DoesNotExist(f"{path!r} is no child of {self._path!r}", self)
        self._post(op="change", path=path, parent="")

    @asynchronous
    def get_children(self) -> List[Url]:
        """URLs of the checkpoints after it."""
        return [self._url(path) for path in self._record()["children"]]

    @asynchronous
    def create_child(self, flags: int = Flags.None_) -> "CprEntry":
        """Makes a new checkpoint after this one, beside it, with the next number that is free in its name."""
        check(self, flags, OPEN, "create_child")
        record = self._record()
        directory, name = posixpath.split(self._path)
        found = re.match(r"(.*\.)([0-9]+)(\.[^.]*)?\Z", name)
        stem, number, end = name + ".", 0, ""
        if found:
            stem, number, end = found.group(1), int(found.group(2)), found.group(3) or ""
        while True:
            number += 1
            path = posixpath.join(directory, f"{stem}{number}{end}")
            try:
                self._post(op="make", path=path, kind="checkpoint", parent=self._path, ttl_s=record["ttl_s"],
                           job=record["job"])
            except AlreadyExists:
                continue
            return CprEntry(self._url(path), flags & (Flags.Lock | Flags.Read | Flags.Write | Flags.ReadWrite),
                            self._session)

    # Files.

    def _file(self, index: int) -> Dict[str, Any]:
        if isinstance(index, bool) or not isinstance(index, int):
            raise BadParameter(f"{index!r} is no number of a file", self)
        for file in self._record()["files"]:
            if file["index"] == index:
                return file
        raise DoesNotExist(f"{self._path!r} has no file {index}", self)

    def _may_write(self) -> None:
        self._alive()
        if self._flags & Flags.Read:
            raise PermissionDenied(f"{self._path!r} is open for reading only", self)

    @asynchronous
    def add_file(self, file: Union[str, Url]) -> int:
        """Adds a file; gives its number."""
        self._may_write()
        url = Url(file)
        if not url.get_scheme():
            path = os.path.abspath(url.get_path())
            url = Url("file://localhost/")
            url.set_path(path)
        # The numbers grow, and ours is of the newest file of this URL.
        record = self._change(add_files=[str(url)])
        return max(known["index"] for known in record["files"] if known["url"] == str(url))

    @asynchronous
    def remove_file(self, id: int) -> Url:
        """Takes a file out of the checkpoint, and gives its URL. The file itself stays."""
        self._may_write()
        url = Url(self._file(id)["url"])
        self._change(remove_files=[id])
        return url

    @asynchronous
    def update_file(self, id: int, file_new: Union[str, Url]) -> None:
        """Puts another file in the place of one."""
        self._may_write()
        self._file(id)
        self._change(update_files=[{"index": id, "url": str(Url(file_new))}])

    @asynchronous
    def get_file(self, id: int) -> Url:
        """The URL of a file; DoesNotExist where there is none of this number."""
        return Url(self._file(id)["url"])

    @asynchronous
    def list_files(self) -> List[Url]:
        """URLs of all files, by their numbers."""
        return [Url(file["url"]) for file in self._record()["files"]]

    @asynchronous
    def get_file_num(self) -> int:
        """How many files there are."""
        return len(self._record()["files"])

    @asynchronous
    def open_file(self, id: int, flags: int = Flags.Read) -> CprFile:
        """Opens a file, for reading where flags say nothing else."""
        file = self._file(id)
        if flags & (Flags.Write | Flags.ReadWrite | Flags.Truncate | Flags.Append):
            self._may_write()
        sealed = not any(known["index"] == id for known in self._own_files(self._record()))
        return CprFile(file["url"], flags, self._session, sealed)

    @asynchronous
    def stage(self, target: Union[str, Url], id: int = -1) -> None:
        """Copies a file, or all with -1, to a directory (`file:`, or a path) or to a bucket (`s3://BUCKET/PREFIX`).
        Files that a program has added are where they were copied to from then on; images are kept where they are by
        the grid besides, and the attribute `staged` lists their copies."""
        url = Url(target)
        wanted = self._record()["files"] if id == -1 else [self._file(id)]
        own = [file["index"] for file in self._own_files(self._record())]
        moved, staged = [], []
        for file in wanted:
            source = Url(file["url"])
            name = posixpath.basename(source.get_path())
            if url.get_scheme() == "s3":
                to = Url(str(url).rstrip("/") + "/")
                to.set_path(posixpath.join(to.get_path() or "/", name))
                s3.put(to, local_path(source, self), self)
            else:
                directory = local_path(url, self)
                to = Url("file://localhost/")
                to.set_path(os.path.join(os.path.abspath(directory), name))
                copy_file(source, to.get_path(), self)
            if file["index"] in own:
                moved.append({"index": file["index"], "url": str(to)})
            else:
                staged.append(str(to))
        if moved:
            self._change(update_files=moved)
        if staged:
            before = self.get_vector_attribute("staged") if self.attribute_exists("staged") else []
            self._store("staged", before + [one for one in staged if one not in before])


cpr_entry = CprEntry
checkpoint = CprEntry
