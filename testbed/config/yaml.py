"""YAML files read with the line of every key and element, so that each mistake is named with its place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from testbed.errors import InputError

__all__ = ["Document", "Key", "Place", "dotted", "parse_yaml", "read_yaml"]

Key = str | int
Place = tuple[Key, ...]

MAX_ELEMENTS = 100_000  # a few nested aliases can otherwise ask for more elements than memory holds


@dataclass(frozen=True)
class Document:
    """One file's data and where each part of it stands.

    Attributes:
        file: The file, as the user named it.
        data: Dictionaries, lists, text, numbers, booleans and None.
        lines: The line of every key and list element, by its place; the whole document is ``()``.
        text: The file as it was read.
    """

    file: Path
    data: Any
    lines: Mapping[Place, int]
    text: str = field(default="", repr=False)

    def line(self, place: Place) -> int | None:
        """Return the line of a place, or of the nearest part around it that the file holds."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.lines:
                return self.lines[place[:length]]
        return None

    def problem(self, place: Place, expected: str) -> str:
        """Return one mistake as ``file:line: key: what was expected``."""
        line = self.line(place)
        where = f"{self.file}:{line}" if line else str(self.file)
        key = dotted(place)
        return f"{where}: {key}: {expected}" if key else f"{where}: {expected}"


def dotted(place: Place) -> str:
    """Return a place as people write it, such as ``policies[0].name``."""
    text = ""
    for key in place:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f".{key}" if text else key
    return text


def read_yaml(path: Path) -> Document:
    """Read one YAML file.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be read or is not one well-formed YAML document.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError.at(path, None, "", f"text in UTF-8 was expected ({error.reason})") from None
    except OSError as error:
        raise InputError.at(path, None, "", f"cannot be read: {error.strerror or error}") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, file: Path) -> Document:
    """Return the document that a YAML text holds.

    Args:
        text: The text.
        file: The file to name in mistakes.

    Raises:
        InputError: The text is not one well-formed YAML document.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        reader = _Reader(file, loader)
        data = None if node is None else reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "not YAML"
        raise InputError.at(file, mark.line + 1 if mark else None, "", f"not valid YAML: {what}") from None
    except yaml.reader.ReaderError as error:
        raise InputError.at(file, None, "", f"not valid YAML: {error.reason}") from None
    except RecursionError:
        raise InputError.at(file, None, "", "not valid YAML: nested too deep") from None
    finally:
        if loader is not None:
            loader.dispose()
    if reader.problems:
        raise InputError(
            reader.problems[0] if len(reader.problems) == 1 else "the file has mistakes:",
            problems=reader.problems if len(reader.problems) > 1 else (),
        )
    return Document(file, data, {(): 1, **reader.lines}, text)


class _Loader(yaml.SafeLoader):
    """Plain values by YAML 1.2: ``no`` is text, ``22:30`` is text, ``2e9`` is a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


def _resolve(tag: str, pattern: str, first: Iterable[str]) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""])
_resolve("int", r"^[-+]?[0-9]+$", "-+0123456789")
_resolve("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", "-+.0123456789")
_resolve("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+.")
_resolve("merge", r"^<<$", "<")
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 010 is ten


class _Reader:
    """Turns nodes into values, and notes lines and doubled keys on the way."""

    def __init__(self, file: Path, loader: _Loader) -> None:
        self.file = file
        self.loader = loader
        self.lines: dict[Place, int] = {}
        self.problems: list[str] = []
        self.open: set[int] = set()

    def value(self, node: Node, place: Place) -> Any:
        if len(self.lines) > MAX_ELEMENTS:
            raise yaml.composer.ComposerError(None, None, "too many elements", node.start_mark)
        if id(node) in self.open:
            raise yaml.composer.ComposerError(None, None, "an alias inside its own anchor", node.start_mark)
        self.open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, place)
            if isinstance(node, SequenceNode):
                return self._sequence(node, place)
            return self._scalar(node)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: MappingNode, place: Place) -> dict[Any, Any]:
        own: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = self._key(key_node), key_node.start_mark.line + 1
            if key in own and not key_node.tag.endswith(":merge"):
                text = f"the key stands twice, first in line {own[key]}"
                self.problems.append(Document(self.file, None, {(): line}).problem((*place, key), text))
            own.setdefault(key, line)
        self.loader.flatten_mapping(node)  # takes in what `<<` names; own keys come last and win
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            self.lines[(*place, key)] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, (*place, key))
        return result

    @staticmethod
    def _key(node: Node) -> str:
        """Return a key as text, whatever it looks like: JSON's keys are text too."""
        if not isinstance(node, ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be text", node.start_mark)
        return str(node.value)

    def _sequence(self, node: SequenceNode, place: Place) -> list[Any]:
        result = []
        for index, item in enumerate(node.value):
            self.lines[(*place, index)] = item.start_mark.line + 1
            result.append(self.value(item, (*place, index)))
        return result

    def _scalar(self, node: Node) -> Any:
        try:
            return self.loader.construct_object(node)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None
