"""Permissions (SAGA Core, interface permissions): what others than the owner may do with an entry."""

from __future__ import annotations

import grp
import pwd
from typing import Any, Dict

from .errors import BadParameter
from .tasks import asynchronous

__all__ = ["ALL", "EXEC", "NONE", "OWNER", "Permissions", "QUERY", "READ", "WRITE"]

NONE, QUERY, READ, WRITE, EXEC, OWNER, ALL = 0, 1, 2, 4, 8, 16, 31
"""Query: see that it is there and what it is of; Read: read what is in it; Write: change it; Exec:
nothing more, as images are recovered from by their own user only; Owner: whatever its owner may."""


def key_of(identifier: str, about: Any) -> str:
    """How the grid calls a user, a group (`group-NAME`) or everybody (`*`). Plain names are users, or else groups."""
    if identifier == "*":
        return "*"
    if not isinstance(identifier, str) or not identifier:
        raise BadParameter(f"{identifier!r} is neither a user nor a group", about)
    user, group = identifier, identifier
    if identifier.startswith("user-"):
        user, group = identifier[5:], ""
    elif identifier.startswith("group-"):
        user, group = "", identifier[6:]
    try:
        return f"user:{pwd.getpwnam(user).pw_name}"
    except KeyError:
        pass
    try:
        return f"group:{grp.getgrnam(group).gr_gid}"
    except KeyError:
        raise BadParameter(f"{identifier!r} is neither a user nor a group here", about) from None


class Permissions:
    """An object with permissions; classes say how they are read and changed."""

    def _record(self) -> Dict[str, Any]:
        raise NotImplementedError

    def _change(self, **what: Any) -> Dict[str, Any]:
        raise NotImplementedError

    def _bits(self, perm: int) -> int:
        if isinstance(perm, bool) or not isinstance(perm, int) or not 0 < perm <= ALL:
            raise BadParameter(f"{perm!r} is no permission", self)
        return perm

    @asynchronous
    def permissions_allow(self, id: str, perm: int) -> None:
        """Allows a user, a group or everybody something; Owner not to everybody."""
        key, bits = key_of(id, self), self._bits(perm)
        if key == "*" and bits & OWNER:
            raise BadParameter("not everybody can be the owner", self)
        before = self._record()["permissions"].get(key, 0)
        self._change(permissions={key: before | bits})

    @asynchronous
    def permissions_deny(self, id: str, perm: int) -> None:
        """Takes back what was allowed."""
        key, bits = key_of(id, self), self._bits(perm)
        if key == "*" and bits == OWNER:
            raise BadParameter("not everybody can be the owner", self)
        before = self._record()["permissions"].get(key, 0)
        self._change(permissions={key: before & ~bits})

    @asynchronous
    def permissions_check(self, id: str, perm: int) -> bool:
        """Whether a user, a group or everybody may do all of that."""
        key, bits = key_of(id, self), self._bits(perm)
        record = self._record()
        if key == f"user:{record['owner']['name']}":
            return True
        has = record["permissions"].get(key, 0) | record["permissions"].get("*", 0)
        if key.startswith("user:"):
            primary = pwd.getpwnam(key[5:]).pw_gid
            has |= record["permissions"].get(f"group:{primary}", 0)
        return bool(has & OWNER) or has & bits == bits

    @asynchronous
    def get_owner(self) -> str:
        """Login name of the owner."""
        return self._record()["owner"]["name"]

    @asynchronous
    def get_group(self) -> str:
        """The owner's group."""
        gid = self._record()["owner"]["gid"]
        try:
            return grp.getgrgid(gid).gr_name
        except KeyError:
            return str(gid)
