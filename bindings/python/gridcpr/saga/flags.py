"""Flags of the name space and of files (SAGA CPR, class directory, enum flags)."""

from __future__ import annotations

from typing import Any

from .errors import BadParameter

__all__ = ["Flags", "flags"]


class Flags:
    """They are added, or joined with `|`. `None` of the draft is `Flags.None_`, or `getattr(Flags, "None")`."""

    None_ = 0
    """Nothing, not even what holds by default."""
    Overwrite = 1
    """What is there may be replaced."""
    Recursive = 2
    """With everything below."""
    Dereference = 4
    """What a link leads to, and not the link."""
    Create = 8
    """Made where it is missing."""
    Excl = 16
    """With Create: it must be missing."""
    Lock = 32
    """An advisory lock is taken until the object is closed."""
    CreateParents = 64
    """Made where it is missing, and directories on the way as well."""
    Truncate = 128
    """What was in a file goes."""
    Append = 256
    """Written at the end."""
    Read = 512
    """For reading only."""
    Write = 1024
    """For writing only."""
    ReadWrite = 2048
    """For both."""
    Binary = 4096
    """Changes nothing on Linux."""


setattr(Flags, "None", 0)
flags = Flags
NAMES = {name: value for name, value in vars(Flags).items() if isinstance(value, int) and value}


def check(about: Any, given: int, allowed: int, method: str) -> int:
    """The flags; BadParameter for those that the method does not know."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise BadParameter(f"{method}: {given!r} are no flags", about)
    wrong = given & ~allowed
    if wrong:
        names = [name for name, value in NAMES.items() if wrong & value] or [str(wrong)]
        raise BadParameter(f"{method} has no flag {', '.join(names)}", about)
    return given
