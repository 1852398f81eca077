"""The attribute interface (SAGA Core, interface attributes): values are set and read as strings, or lists of strings.
"""

from __future__ import annotations

import fnmatch
import re
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from .errors import BadParameter, DoesNotExist, IncorrectState, PermissionDenied

__all__ = ["Attribute", "Attributes"]


class Attribute(NamedTuple):
    """What is known of an attribute of a class."""

    type: str = "String"
    """String, Int, Float, Bool, Time, Enum or URL."""
    vector: bool = False
    """It is a list."""
    writable: bool = True
    """It can be set."""
    default: Any = None
    """Its value where none was set; none: it is not there then."""
    check: Optional[Callable[[str], Optional[str]]] = None
    """Says what is wrong with a value, of a type that is right."""


def _wrong(definition: Attribute, value: str) -> Optional[str]:
    """What is wrong with a value."""
    kind = definition.type
    if kind == "Int" and not re.match(r"[+-]?[0-9]+\Z", value):
        return "is no whole number"
    if kind == "Time" and not re.match(r"[0-9]+(\.[0-9]+)?\Z", value):
        return "is no time, in seconds since 1970"
    if kind == "Bool" and value not in ("True", "False"):
        return "is neither True nor False"
    if kind == "Float":
        try:
            float(value)
        except ValueError:
            return "is no number"
    return definition.check(value) if definition.check else None


class Attributes:
    """An object with attributes. Those that its class defines are in `ATTRIBUTES`; where `EXTENSIBLE`, others can be
    added, as strings."""

    ATTRIBUTES: Dict[str, Attribute] = {}
    EXTENSIBLE = False

    # What classes that keep values elsewhere override.

    def _values(self) -> Dict[str, Any]:
        """Values that are set: strings, or lists of them."""
        return self.__dict__.setdefault("_attribute_values", {})

    def _store(self, key: str, value: Any) -> None:
        """Keeps a value that was found good; none: it is removed."""
        if value is None:
            self._values().pop(key, None)
        else:
            self._values()[key] = value

    # What users call.

    def set_attribute(self, key: str, value: Any) -> None:
        """Sets a scalar. BadParameter for an ill-formed value, DoesNotExist for an unknown attribute, IncorrectState
        for a vector, PermissionDenied for one that can only be read."""
        definition = self._definition(key, setting=True)
        if definition.vector:
            raise IncorrectState(f"{key} is a vector: use set_vector_attribute", self)
        if not definition.writable:
            raise PermissionDenied(f"{key} can only be read", self)
        self._store(key, self._checked(key, definition, value))

    def get_attribute(self, key: str) -> str:
        """A scalar, as a string."""
        value = self._get(key)
        if isinstance(value, list):
            raise IncorrectState(f"{key} is a vector: use get_vector_attribute", self)
        return value

    def set_vector_attribute(self, key: str, values: List[Any]) -> None:
        """Sets a vector."""
        definition = self._definition(key, setting=True, vector=True)
        if not definition.vector:
            raise IncorrectState(f"{key} is a scalar: use set_attribute", self)
        if not definition.writable:
            raise PermissionDenied(f"{key} can only be read", self)
        if isinstance(values, str) or not hasattr(values, "__iter__"):
            raise BadParameter(f"{key}: {values!r} is no list of strings", self)
        self._store(key, [self._checked(key, definition, value) for value in values])

    def get_vector_attribute(self, key: str) -> List[str]:
        """A vector, as a list of strings."""
        value = self._get(key)
        if not isinstance(value, list):
            raise IncorrectState(f"{key} is a scalar: use get_attribute", self)
        return list(value)

    def remove_attribute(self, key: str) -> None:
        """Takes a value away; an attribute with a default has that again."""
        definition = self._definition(key)
        if not definition.writable or not self.attribute_is_removable(key):
            raise PermissionDenied(f"{key} cannot be removed", self)
        if key not in self._values() and definition.default is None:
            raise DoesNotExist(f"there is no attribute {key}", self)
        self._store(key, None)

    def list_attributes(self) -> List[str]:
        """Names of those that are set or have a default."""
        values = self._values()
        defined = [key for key, known in self.ATTRIBUTES.items() if known.default is not None or key in values]
        return defined + [key for key in values if key not in self.ATTRIBUTES]

    def find_attributes(self, *patterns: Any) -> List[str]:
        """Names of those that match any of the patterns `KEY` or `KEY=VALUE`, in which * ? [abc] are as in a shell."""
        wanted: List[str] = []
        for pattern in patterns:
            wanted.extend([pattern] if isinstance(pattern, str) else pattern)
        return [key for key in self.list_attributes() if any(self._matches(key, pattern) for pattern in wanted)]

    def attribute_exists(self, key: str) -> bool:
        """Whether it has a value or a default."""
        return key in self.list_attributes()

    def attribute_is_readonly(self, key: str) -> bool:
        """Whether it can only be read."""
        return not self._definition(key).writable

    def attribute_is_writable(self, key: str) -> bool:
        """Whether it can be set."""
        return self._definition(key).writable

    def attribute_is_removable(self, key: str) -> bool:
        """Whether it can be removed."""
        return self._definition(key).writable

    def attribute_is_vector(self, key: str) -> bool:
        """Whether it is a list."""
        return self._definition(key).vector

    def _definition(self, key: str, setting: bool = False, vector: bool = False) -> Attribute:
        if not isinstance(key, str) or not key:
            raise BadParameter(f"{key!r} is no name of an attribute", self)
        known = self.ATTRIBUTES.get(key)
        if known is not None:
            return known
        if key in self._values() or (setting and self.EXTENSIBLE):
            value = self._values().get(key)
            return Attribute(vector=isinstance(value, list) or (value is None and vector))
        raise DoesNotExist(f"there is no attribute {key}", self)

    def _checked(self, key: str, definition: Attribute, value: Any) -> str:
        if isinstance(value, (list, tuple, dict, bytes)) or value is None:
            raise BadParameter(f"{key}: {value!r} is no string", self)
        text = str(value)
        wrong = "has a null byte" if "\0" in text else _wrong(definition, text)
        if wrong:
            raise BadParameter(f"{key}: {text!r} {wrong}", self)
        return text

    def _get(self, key: str) -> Any:
        definition = self._definition(key)
        value = self._values().get(key, definition.default)
        if value is None:
            raise DoesNotExist(f"attribute {key} has no value", self)
        return value

    def _matches(self, key: str, pattern: str) -> bool:
        name, equals, wanted = pattern.partition("=")
        if not fnmatch.fnmatchcase(key, name.strip()):
            return False
        if not equals:
            return True
        value = self._get(key)
        values = value if isinstance(value, list) else [value]
        return any(fnmatch.fnmatchcase(one, wanted.strip()) for one in values)
