"""Errors: the classes of SAGA Core (GFD.90, error handling), the most specific first.

Every error has a message for people, the class and the object that it is about. Where several classes fit, the one that
comes first here is raised.
"""

from __future__ import annotations

from typing import Any, Optional

__all__ = [
    "AlreadyExists", "AuthenticationFailed", "AuthorizationFailed", "BadParameter", "DoesNotExist", "IncorrectState",
    "IncorrectURL", "NoSuccess", "NotImplemented", "PermissionDenied", "SagaException", "Timeout",
]


class SagaException(Exception):
    """What all of them are."""

    def __init__(self, message: str, object: Optional[Any] = None) -> None:
        super().__init__(message)
        self.message = message
        self.object = object

    def get_message(self) -> str:
        """What failed and why."""
        return self.message

    def get_object(self) -> Any:
        """The object that it is about; DoesNotExist where it is about none."""
        if self.object is None:
            raise DoesNotExist("the error is about no object")
        return self.object

    def get_type(self) -> str:
        """Name of the class, as the specification has it."""
        return type(self).__name__


class NotImplemented(SagaException):  # noqa: A001 - the name that the specification gives it
    """A back end cannot do this."""


class IncorrectURL(SagaException):
    """A URL that cannot be handled: its scheme or form."""


class BadParameter(SagaException):
    """An ill-formed, unusable or out-of-range parameter."""


class AlreadyExists(SagaException):
    """Something that was to be made is there, and must not be overwritten."""


class DoesNotExist(SagaException):
    """Something that is needed is not there."""


class IncorrectState(SagaException):
    """The state of the object forbids the call."""


class PermissionDenied(SagaException):
    """An identity that is known and accepted lacks the right."""


class AuthorizationFailed(SagaException):
    """No context of the session is authorized."""


class AuthenticationFailed(SagaException):
    """No context of the session could be authenticated."""


class Timeout(SagaException):
    """A remote operation, or the network, took too long."""


class NoSuccess(SagaException):
    """Any other failure; its cause is in the message."""
