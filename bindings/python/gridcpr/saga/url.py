"""URLs (SAGA Core, class url): parsed, escaped, and resolved against a working directory.

Checkpoints and their directories have URLs of the scheme `gridcpr` (SAGA CPR, section 2.1.1); the scheme `any` leaves
it to the implementation which scheme and host are meant.
"""

from __future__ import annotations

import posixpath
import re
from typing import Union
from urllib.parse import quote, unquote

from .errors import BadParameter, IncorrectURL

__all__ = ["Url"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\Z")
_BAD = re.compile(r"[\x00-\x20\x7f\"<>\\^`{|}]")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9_.~-]*\Z|\[[0-9A-Fa-f:.]+\]\Z")


class Url:
    """A URL; `str()` gives it escaped, `get_path()` as it is meant. Wildcards such as `#JobID#` and `*` may be in it.
    """

    def __init__(self, url: Union[str, "Url"] = "") -> None:
        self.set_string(url)

    def set_string(self, url: Union[str, "Url"] = "") -> None:
        """Takes another URL; IncorrectURL where it is none."""
        if not isinstance(url, (str, Url)):
            raise BadParameter(f"{url!r} is no URL")
        text = str(url)
        if _BAD.search(text):
            raise IncorrectURL(f"{text!r} is no URL: it has characters that must be escaped")
        if _ESCAPE.search(text):
            raise IncorrectURL(f"{text!r} is no URL: % begins an escape of two hexadecimal digits")
        scheme, authority, rest = "", "", text
        head, colon, tail = text.partition(":")
        if colon and "/" not in head:
            if not _SCHEME.match(head):
                raise IncorrectURL(f"{text!r} is no URL: {head!r} is no scheme")
            scheme, rest = head.lower(), tail
        if rest.startswith("//"):
            authority, slash, path = rest[2:].partition("/")
            rest = slash + path
        user, at, host = authority.rpartition("@")
        port = -1
        found = re.match(r"(.*):([^:\]]*)\Z", host)
        if found:
            host = found.group(1)
            if not found.group(2).isdigit() or int(found.group(2)) > 65535:
                raise IncorrectURL(f"{text!r} is no URL: {found.group(2)!r} is no port")
            port = int(found.group(2))
        if not _HOST.match(host):
            raise IncorrectURL(f"{text!r} is no URL: {host!r} is no host")
        path, question, query = rest.partition("?")
        self.scheme, self.userinfo, self.host, self.port = scheme, unquote(user), host, port
        self.path, self.query = unquote(path), unquote(query)
        if "\0" in self.path or any(ord(letter) < 32 for letter in self.path):
            raise IncorrectURL(f"{text!r} is no URL: its path has control characters")

    def get_string(self) -> str:
        """The whole, escaped."""
        return str(self)

    def get_scheme(self) -> str:
        """Scheme; empty where there is none."""
        return self.scheme

    def get_host(self) -> str:
        """Host; empty where there is none."""
        return self.host

    def get_port(self) -> int:
        """Port; -1 where there is none."""
        return self.port

    def get_userinfo(self) -> str:
        """What stands before the host."""
        return self.userinfo

    def get_path(self) -> str:
        """Path, not escaped."""
        return self.path

    def get_query(self) -> str:
        """What follows a question mark."""
        return self.query

    def set_scheme(self, scheme: str = "") -> None:
        """Another scheme."""
        if scheme and not _SCHEME.match(scheme):
            raise BadParameter(f"{scheme!r} is no scheme")
        self.scheme = scheme.lower()

    def set_host(self, host: str = "") -> None:
        """Another host."""
        if not _HOST.match(host):
            raise BadParameter(f"{host!r} is no host")
        self.host = host

    def set_port(self, port: int = -1) -> None:
        """Another port; -1: none."""
        if not -1 <= port <= 65535:
            raise BadParameter(f"{port!r} is no port")
        self.port = port

    def set_path(self, path: str = "") -> None:
        """Another path, not escaped."""
        self.path = path

    def authority(self) -> str:
        """Host and port."""
        return self.host + (f":{self.port}" if self.port >= 0 else "")

    def translate(self, scheme: str) -> "Url":
        """The same place by another scheme."""
        other = self.clone()
        other.set_scheme(scheme)
        return other

    def resolve(self, base: Union[str, "Url"]) -> "Url":
        """This URL as seen from a directory: whole ones stay, relative paths go below it; `.` and `..` are removed."""
        base = Url(base)
        other = self.clone()
        if not self.scheme and not self.host:
            other.scheme, other.userinfo, other.host, other.port = base.scheme, base.userinfo, base.host, base.port
            if not self.path.startswith("/"):
                other.path = base.path.rstrip("/") + "/" + self.path
        other.path = normal(other.path)
        return other

    def clone(self) -> "Url":
        """A copy."""
        return Url(str(self))

    def __str__(self) -> str:
        text = f"{self.scheme}:" if self.scheme else ""
        authority = self.authority()
        if self.userinfo:
            authority = f"{quote(self.userinfo)}@{authority}"
        if authority or self.scheme:
            text += "//" + authority
        text += quote(self.path, safe="/#*?~!$&'()+,;=:@[]-._".replace("?", ""))
        return text + (f"?{quote(self.query, safe='/#*?=&:')}" if self.query else "")

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (str, Url)) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def normal(path: str) -> str:
    """An absolute path without `.`, `..` and doubled slashes."""
    return posixpath.normpath("/" + path.lstrip("/"))
