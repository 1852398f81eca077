"""What all objects have (SAGA Core, class object): an identifier, a type, a session, and copies that are deep."""

from __future__ import annotations

import copy
import uuid
from typing import Any, Dict, Optional

from .session import Session

__all__ = ["SagaObject"]


class SagaObject:
    """An object of this API."""

    def __init__(self, session: Optional[Session] = None) -> None:
        self._id = str(uuid.uuid4())
        self._session = session

    def get_id(self) -> str:
        """An identifier that no other object has."""
        return self._id

    def get_type(self) -> str:
        """Name of the class, as the specification has it."""
        return getattr(type(self), "TYPE", type(self).__name__)

    def get_session(self) -> Session:
        """The session that it acts in: its own, or else the default one of the program."""
        return self._session or Session.default()

    def clone(self) -> Any:
        """A copy that shares nothing with it but the session."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: Dict[int, Any]) -> Any:
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        for key, value in self.__dict__.items():
            other.__dict__[key] = value if key in ("_session", "_grid") else copy.deepcopy(value, memo)
        other._id = str(uuid.uuid4())
        return other
