"""Sessions and contexts (SAGA Core, classes session and context): by which credentials a grid knows who calls.

A grid knows users of its own machine by its socket (`unix`), others by a certificate (`x509`) or a token (`token`).
"""

from __future__ import annotations

import json
import os
import pwd
import threading
from typing import Any, Dict, List, Optional

from .attributes import Attribute, Attributes
from .errors import BadParameter, DoesNotExist, NoSuccess

__all__ = ["Context", "Session"]

_FIELDS = {
    "GRIDCPR_CA": "ca", "GRIDCPR_CERTIFICATE": "certificate", "GRIDCPR_KEY": "key", "GRIDCPR_TOKEN_FILE": "token_file",
}
TYPES = ("unix", "x509", "token", "ssh")


def _type(value: str) -> Optional[str]:
    return None if value in TYPES else f"is none of the types {', '.join(TYPES)}"


def chosen() -> Dict[str, str]:
    """The grid that was chosen with `cpr context use`, and how it is reached; empty where none was, or where the
    environment says which grid is meant."""
    if os.environ.get("GRIDCPR_GRID"):
        return {}
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    try:
        with open(os.path.join(base, "gridcpr/contexts.json"), encoding="utf-8") as file:
            known = json.load(file)
        grid = known["grids"][known["context"]]
        return {key: value for key, value in grid.items() if isinstance(value, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _said(variable: str) -> str:
    """The file that a variable of the environment, or else the chosen grid, names."""
    return os.environ.get(variable, "") or chosen().get(_FIELDS[variable], "")


class Context(Attributes):
    """Credentials of one type. `set_defaults` fills in what the environment and the usual places say."""

    TYPE = "Context"
    ATTRIBUTES = {
        "Type": Attribute(type="Enum", check=_type),
        "Server": Attribute(type="URL"),
        "CertRepository": Attribute(),
        "UserCert": Attribute(),
        "UserKey": Attribute(),
        "UserID": Attribute(),
        "UserPass": Attribute(),
        "LifeTime": Attribute(type="Int", default="-1"),
        "RemoteID": Attribute(writable=False),
    }

    def __init__(self, type: str = "") -> None:
        if type:
            self.set_attribute("Type", type)

    def set_defaults(self) -> None:
        """Fills in what is not set; NoSuccess where credentials of the type are not to be found."""
        if not self.attribute_exists("Type"):
            raise NoSuccess("the context has no type, and so no defaults", self)
        kind = self.get_attribute("Type")
        if kind == "unix":
            self._default("UserID", pwd.getpwuid(os.geteuid()).pw_name)
        elif kind == "x509":
            self._file("CertRepository", "GRIDCPR_CA")
            self._file("UserCert", "GRIDCPR_CERTIFICATE")
            self._file("UserKey", "GRIDCPR_KEY")
        elif kind == "token":
            self._file("CertRepository", "GRIDCPR_CA", needed=False)
            if not self.attribute_exists("UserPass"):
                path = _said("GRIDCPR_TOKEN_FILE")
                if not path:
                    raise NoSuccess("there is no token: GRIDCPR_TOKEN_FILE names no file", self)
                self.set_attribute("UserPass", _read(path))
        else:
            self._default("UserID", pwd.getpwuid(os.geteuid()).pw_name)
            for name in ("id_ed25519", "id_ecdsa", "id_rsa"):
                path = os.path.expanduser(f"~/.ssh/{name}")
                if os.path.exists(path):
                    self._default("UserKey", path)
                    self._default("UserCert", path + ".pub")
            if not self.attribute_exists("UserKey"):
                raise NoSuccess("there is no key in ~/.ssh", self)

    def _default(self, key: str, value: str) -> None:
        if not self.attribute_exists(key):
            self.set_attribute(key, value)

    def _file(self, key: str, variable: str, needed: bool = True) -> None:
        if self.attribute_exists(key):
            path = self.get_attribute(key)
        else:
            path = _said(variable)
        if not path:
            if needed:
                raise NoSuccess(f"{key} is not set, and {variable} names no file", self)
            return
        if not os.path.exists(path):
            raise NoSuccess(f"{key}: there is no file {path}", self)
        self._default(key, path)

    def get_type(self) -> str:
        """Name of the class; that of the credentials is the attribute `Type`."""
        return self.TYPE

    def clone(self) -> "Context":
        """A copy."""
        other = Context()
        other._values().update(self._values())
        return other


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        raise NoSuccess(f"the token in {path} cannot be read: {error.strerror}") from error


class Session:
    """Contexts that objects act with. Objects of different sessions share no credentials.

    `timeout` is how many seconds a grid may take to answer."""

    TYPE = "Session"
    _default: Optional["Session"] = None
    _lock = threading.Lock()

    def __init__(self, default: bool = True, grid: str = "") -> None:
        """`default`: with the contexts that the environment has. `grid`: the grid of URLs that name none; the one that
        `GRIDCPR_GRID` says where it is empty."""
        self.grid = grid
        self.timeout = 60.0
        self._contexts: List[Context] = []
        self._grids: Dict[str, Any] = {}
        if default:
            for kind in ("unix", "x509", "token"):
                context = Context(kind)
                try:
                    context.set_defaults()
                except NoSuccess:
                    continue
                self._contexts.append(context)

    def get_type(self) -> str:
        """Name of the class."""
        return self.TYPE

    def get_session(self) -> "Session":
        """Itself."""
        return self

    @classmethod
    def default(cls) -> "Session":
        """The session of objects that are made without one."""
        with cls._lock:
            if cls._default is None:
                cls._default = Session()
            return cls._default

    def add_context(self, context: Context) -> None:
        """Adds a context, which a later change of it does not reach; BadParameter where it has no type."""
        if not isinstance(context, Context) or not context.attribute_exists("Type"):
            raise BadParameter("a context needs a type", self)
        self._contexts.append(context.clone())
        self._grids.clear()

    def remove_context(self, context: Context) -> None:
        """Takes out a context with the same attributes; DoesNotExist where there is none."""
        for known in self._contexts:
            if known._values() == context._values():
                self._contexts.remove(known)
                self._grids.clear()
                return
        raise DoesNotExist("the session has no such context", self)

    def list_contexts(self) -> List[Context]:
        """Copies of its contexts."""
        return [context.clone() for context in self._contexts]
