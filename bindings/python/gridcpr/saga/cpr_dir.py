"""Directories of checkpoints (SAGA CPR, class directory, here `cpr_dir`; SAGA Core, class ns_directory)."""

from __future__ import annotations

import fnmatch
import posixpath
from typing import Any, Dict, List, Optional, Sequence, Union

from .attributes import Attribute, Attributes
from .cpr_entry import DEFAULT, CprEntry
from .errors import BadParameter, DoesNotExist
from .files import CprFile
from .flags import Flags, check
from .ns_entry import _COPY, NsEntry, find, follow
from .session import Session
from .tasks import asynchronous
from .url import Url

__all__ = ["CprDir", "cpr_dir", "directory"]

_DIRECTORY = (Flags.Create | Flags.Excl | Flags.Lock | Flags.CreateParents | Flags.Overwrite | Flags.Read | Flags.Write
              | Flags.ReadWrite)
Name = Union[str, Url]


def _wild(name: Name) -> bool:
    return isinstance(name, str) and "://" not in name and any(letter in name for letter in "*?[")


class CprDir(NsEntry, Attributes):
    """A directory that is open. What a checkpoint does it does as well, with the name of the checkpoint before."""

    TYPE = "CprDir"
    KIND = "directory"
    EXTENSIBLE = True
    ATTRIBUTES: Dict[str, Attribute] = {}

    def __init__(self, url: Name = "any:///", flags: int = Flags.None_, session: Optional[Session] = None,
                 _base: Optional[Url] = None) -> None:
        """Opens a directory; with Create or CreateParents one that is missing is made."""
        self._begin(session, url, _base)
        check(self, flags, _DIRECTORY, "open_dir")
        self._enter(flags)

    def _values(self) -> Dict[str, Any]:
        return dict(self._record()["attributes"])

    def _store(self, key: str, value: Any) -> None:
        self._change(attributes={key: value})

    def _base(self) -> Url:
        return self._url(self._path)

    def _matching(self, pattern: str) -> List[str]:
        """Paths of the entries that match a pattern, in the directory that it names."""
        directory, name = posixpath.split(pattern)
        if _wild(directory):
            raise BadParameter(f"{pattern!r}: only the last part can have wildcards", self)
        path = self._place(directory) if directory else self._path
        items = self._grid.pages("/v1/names", self, below=path, limit=1000)
        return [item["path"] for item in items if fnmatch.fnmatchcase(posixpath.basename(item["path"]), name)]

    # The directory itself.

    @asynchronous
    def change_dir(self, url: Name) -> None:
        """Goes to another directory; DoesNotExist where it is missing."""
        record = follow(self._grid, self._place(url), self)
        if record["kind"] != "directory":
            raise BadParameter(f"{record['path']!r} is no directory", self)
        self._path = record["path"]

    @asynchronous
    def list(self, pattern: str = "*", flags: int = Flags.None_) -> List[Url]:
        """Names of the entries that match a pattern as of a shell, relative to the directory; none: an empty list."""
        self._alive()
        check(self, flags, Flags.Dereference, "list")
        paths = self._matching(pattern or "*")
        here = self._path.rstrip("/") + "/"
        names = []
        for path in paths:
            url = Url()
            url.set_path(path[len(here):] if path.startswith(here) else path)
            names.append(url)
        return names

    @asynchronous
    def find(self, name_pattern: str = "*", meta_pattern: Sequence[str] = (), flags: int = Flags.None_,
             spec: str = "") -> List[Url]:
        """URLs of the checkpoints whose names match, and all of whose patterns `ATTRIBUTE=VALUE` of metadata; with
        Recursive also below. `spec` is a directory to begin at."""
        self._alive()
        check(self, flags, Flags.Recursive | Flags.Dereference, "find")
        if isinstance(meta_pattern, str):
            meta_pattern = [meta_pattern]
        start = self._place(spec) if spec else self._path
        query = {"below": start, "limit": 1000}
        if flags & Flags.Recursive:
            query["recursive"] = "true"
        found = []
        for item in self._grid.pages("/v1/names", self, **query):
            if item["kind"] != "checkpoint" or not fnmatch.fnmatchcase(posixpath.basename(item["path"]), name_pattern):
                continue
            entry = CprEntry(self._url(item["path"]), Flags.None_, self._session, _open=False)
            entry.__dict__["_record"] = lambda item=item: item
            if all(entry.find_attributes(pattern) for pattern in meta_pattern):
                found.append(self._url(item["path"]))
        return found

    @asynchronous
    def exists(self, url: Name) -> bool:
        """Whether there is an entry of this name."""
        path = self._place(url)
        try:
            find(self._grid, path, self)
        except DoesNotExist:
            return False
        return True

    @asynchronous
    def get_num_entries(self) -> int:
        """How many entries there are."""
        self._alive()
        return sum(1 for _ in self._grid.pages("/v1/names", self, below=self._path, limit=1000))

    @asynchronous
    def get_entry(self, entry: int) -> Url:
        """The name of the entry of this number, from 0; DoesNotExist where there are fewer."""
        self._alive()
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < 0:
            raise BadParameter(f"{entry!r} is no number of an entry", self)
        items = list(self._grid.pages("/v1/names", self, below=self._path, limit=1000))
        if entry >= len(items):
            raise DoesNotExist(f"{self._path!r} has {len(items)} entries, and none of the number {entry}", self)
        url = Url()
        url.set_path(posixpath.basename(items[entry]["path"]))
        return url

    @asynchronous
    def make_dir(self, url: Name, flags: int = Flags.None_) -> "CprDir":
        """Makes a directory; AlreadyExists where there is one, unless Overwrite says that it does not matter."""
        allowed = Flags.Overwrite | Flags.Recursive | Flags.CreateParents | Flags.Create | Flags.Excl
        check(self, flags, allowed, "make_dir")
        path = self._place(url)
        there = find(self._grid, path, self) if flags & Flags.Overwrite and self.exists(url) else None
        if there is None or there["kind"] != "directory":
            parents = bool(flags & (Flags.CreateParents | Flags.Recursive))
            self._post(op="make", path=path, kind="directory", parents=parents)
        return CprDir(self._url(path), Flags.None_, self._session)

    @asynchronous
    def open_dir(self, url: Name, flags: int = Flags.None_) -> "CprDir":
        """Opens a directory."""
        self._alive()
        return CprDir(self._url(self._place(url)), flags, self._session)

    @asynchronous
    def open(self, url: Name, flags: int = DEFAULT) -> CprEntry:
        """Opens a checkpoint. By default one that is missing is made, directories on the way as well, and it is
        locked."""
        self._alive()
        return CprEntry(self._url(self._place(url)), flags, self._session)

    # Entries by their names. Without one it is the directory itself.

    @asynchronous
    def is_dir(self, url: Name = "", flags: int = Flags.None_) -> bool:
        """Whether a name is that of a directory."""
        check(self, flags, Flags.Dereference, "is_dir")
        return self._found(self._place(url), flags)["kind"] == "directory"

    @asynchronous
    def is_entry(self, url: Name = "", flags: int = Flags.None_) -> bool:
        """Whether a name is that of a checkpoint."""
        check(self, flags, Flags.Dereference, "is_entry")
        return self._found(self._place(url), flags)["kind"] == "checkpoint"

    @asynchronous
    def is_link(self, url: Name = "") -> bool:
        """Whether a name is that of a link."""
        return find(self._grid, self._place(url), self)["kind"] == "link"

    @asynchronous
    def read_link(self, url: Name = "") -> Url:
        """Where a link leads, one step; IncorrectState where it is none."""
        return self._read_link(self._place(url))

    def _many(self, source: Name, target: Name, flags: int, do: Any) -> None:
        if not _wild(source):
            path = self._place(source)
            do(path, self._target(target, path, flags), flags)
            return
        directory = self._place(target)
        if flags & Flags.CreateParents:
            self._parents(posixpath.join(directory, "any"), flags)
        try:
            record = follow(self._grid, directory, self)
        except DoesNotExist:
            record = {"kind": "nothing", "path": directory}
        if record["kind"] != "directory":
            raise BadParameter(f"{directory!r} is no directory, which the target of a pattern has to be", self)
        paths = self._matching(str(source))
        if not paths:
            raise DoesNotExist(f"nothing matches {str(source)!r}", self)
        for path in paths:
            do(path, posixpath.join(record["path"], posixpath.basename(path)), flags)

    @asynchronous
    def copy(self, source: Name, target: Name, flags: int = Flags.None_) -> None:  # type: ignore[override]
        """Makes copies, files included. The source may have wildcards; then the target is a directory."""
        check(self, flags, _COPY, "copy")
        self._many(source, target, flags, self._copy)

    @asynchronous
    def link(self, source: Name, target: Name, flags: int = Flags.None_) -> None:  # type: ignore[override]
        """Makes links that lead to the source."""
        check(self, flags, _COPY, "link")
        self._many(source, target, flags, self._link)

    @asynchronous
    def move(self, source: Name, target: Name, flags: int = Flags.None_) -> None:  # type: ignore[override]
        """Calls entries otherwise."""
        check(self, flags, _COPY, "move")
        self._many(source, target, flags, self._move)

    @asynchronous
    def remove(self, target: Name = "", flags: int = Flags.None_) -> None:  # type: ignore[override]
        """Removes entries and their files. Without a name the directory goes, and the object is closed."""
        self._alive()
        check(self, flags, Flags.Recursive | Flags.Dereference, "remove")
        if _wild(target):
            paths = self._matching(str(target))
            if not paths:
                raise DoesNotExist(f"nothing matches {str(target)!r}", self)
            for path in paths:
                self._remove(path, flags)
        elif str(target):
            self._remove(self._place(target), flags)
        else:
            self._remove(self._path, flags)
            self._closed, self._holder = True, ""

    # Checkpoints by their names.

    def _entry(self, checkpoint: Name) -> CprEntry:
        self._alive()
        return CprEntry(self._url(self._place(checkpoint)), Flags.None_, self._session)

    def _there(self, url: Name) -> Url:
        return self._url(self._place(url))

    @asynchronous
    def set_parent(self, checkpoint: Name, url: Name, generations: int = 1) -> None:
        """As `CprEntry.set_parent`."""
        self._entry(checkpoint).set_parent(self._there(url), generations)

    @asynchronous
    def get_parent(self, checkpoint: Name, generations: int = 1) -> Url:
        """As `CprEntry.get_parent`."""
        return self._entry(checkpoint).get_parent(generations)

    @asynchronous
    def remove_parent(self, checkpoint: Name) -> None:
        """As `CprEntry.remove_parent`."""
        self._entry(checkpoint).remove_parent()

    @asynchronous
    def set_child(self, checkpoint: Name, url: Name) -> None:
        """As `CprEntry.set_child`."""
        self._entry(checkpoint).set_child(self._there(url))

    @asynchronous
    def remove_child(self, checkpoint: Name, url: Name) -> None:
        """As `CprEntry.remove_child`."""
        self._entry(checkpoint).remove_child(self._there(url))

    @asynchronous
    def get_children(self, checkpoint: Name) -> List[Url]:
        """As `CprEntry.get_children`."""
        return self._entry(checkpoint).get_children()

    @asynchronous
    def create_child(self, checkpoint: Name, flags: int = Flags.None_) -> CprEntry:
        """As `CprEntry.create_child`."""
        return self._entry(checkpoint).create_child(flags)

    @asynchronous
    def add_file(self, checkpoint: Name, file: Name) -> int:
        """As `CprEntry.add_file`."""
        return self._entry(checkpoint).add_file(file)

    @asynchronous
    def remove_file(self, checkpoint: Name, id: int) -> Url:
        """As `CprEntry.remove_file`."""
        return self._entry(checkpoint).remove_file(id)

    @asynchronous
    def update_file(self, checkpoint: Name, id: int, file: Name) -> None:
        """As `CprEntry.update_file`."""
        self._entry(checkpoint).update_file(id, file)

    @asynchronous
    def get_file(self, checkpoint: Name, id: int) -> Url:
        """As `CprEntry.get_file`."""
        return self._entry(checkpoint).get_file(id)

    @asynchronous
    def list_files(self, checkpoint: Name) -> List[Url]:
        """As `CprEntry.list_files`."""
        return self._entry(checkpoint).list_files()

    @asynchronous
    def get_file_num(self, checkpoint: Name) -> int:
        """As `CprEntry.get_file_num`."""
        return self._entry(checkpoint).get_file_num()

    @asynchronous
    def open_file(self, checkpoint: Name, id: int, flags: int = Flags.Read) -> CprFile:
        """As `CprEntry.open_file`."""
        return self._entry(checkpoint).open_file(id, flags)

    @asynchronous
    def stage(self, checkpoint: Name, target: Name, id: int = -1) -> None:
        """As `CprEntry.stage`."""
        self._entry(checkpoint).stage(target, id)


cpr_dir = CprDir
directory = CprDir
