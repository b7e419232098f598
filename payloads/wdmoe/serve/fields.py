"""A JSON request, field by field: what is there is checked, and what nobody knows is refused. Pure."""

from __future__ import annotations

import json
import math
from typing import Any, Container, Dict, Mapping, NoReturn, Optional, Set

from payloads.json_input import parse_json
from payloads.wdmoe.serve.errors import ApiError, bad_request

__all__ = ["Fields", "read_json"]

MAX_DIGITS = 20  # reading a number takes time by the square of its digits


def read_json(body: bytes) -> Dict[str, Any]:
    """Return the JSON object of a request's body.

    Raises:
        ApiError: It is none.
    """
    try:
        value = parse_json(body, parse_constant=_no_constant, parse_int=_whole)
    except ValueError as error:
        raise bad_request(None, f"the body is not JSON: {_short(str(error))}") from None
    if not isinstance(value, dict):
        raise bad_request(None, "the body must be a JSON object")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("a whole number has too many digits")
    return int(text)


class Fields:
    """Reads the fields of one object; ``null`` is as if the field was not there.

    Args:
        body: The object.
        within: What to call its fields, such as ``stream_options.``.
    """

    def __init__(self, body: Mapping[str, Any], within: str = "") -> None:
        self._body = body
        self._within = within
        self._known: Set[str] = set()

    def raw(self, name: str) -> Any:
        """Return a field as it is; ``None`` where it is not there."""
        self._known.add(name)
        return self._body.get(name)

    def wrong(self, name: str, message: str, code: Optional[str] = None) -> ApiError:
        """Return the error that a field is wrong."""
        return bad_request(self._within + name, message, code)

    def text(self, name: str) -> Optional[str]:
        """Return a text."""
        value = self.raw(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, f"expected a string, got {_shown(value)}")
        return value

    def flag(self, name: str) -> bool:
        """Return a truth value; false where it is not there."""
        value = self.raw(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, f"expected true or false, got {_shown(value)}")
        return bool(value)

    def whole(self, name: str, least: int, most: int) -> Optional[int]:
        """Return a whole number within bounds."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(name, f"expected a whole number from {least} to {most}, got {_shown(value)}")
        return value

    def number(self, name: str, least: float, most: float, default: float) -> float:
        """Return a number within bounds."""
        value = self.raw(name)
        if value is None:
            return default
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not least <= value <= most:
            raise self.wrong(name, f"expected a number from {least:g} to {most:g}, got {_shown(value)}")
        return float(value)

    def inner(self, name: str) -> Optional[Fields]:
        """Return the fields of an object within this one."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, f"expected an object, got {_shown(value)}")
        return Fields(value, f"{self._within}{name}.")

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse a field that asks for what is not done here.

        Args:
            name: The field.
            *allowed: The values that ask for nothing.
        """
        value = self.raw(name)
        if value is not None and value not in allowed:
            expected = " or ".join(json.dumps(one) for one in allowed)
            raise self.wrong(name, f"not supported here; leave it out or let it be {expected}")

    def no_others(self, ignored: Container[str] = ()) -> None:
        """Refuse the fields that were not read: what is asked for and not done would go unnoticed.

        Args:
            ignored: Those that change nothing about the answer.
        """
        for name in self._body:
            if name not in self._known and name not in ignored:
                raise self.wrong(_short(name), "unrecognised field", "unknown_parameter")


def _shown(value: Any) -> str:
    return _short(json.dumps(value))


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
