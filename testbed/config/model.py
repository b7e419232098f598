"""From a YAML file to a checked model, with every mistake in words that a person would use."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError

from testbed.config.yaml import Document, Place, dotted, read_yaml
from testbed.errors import InputError

__all__ = [
    "Count",
    "FilePath",
    "Model",
    "Name",
    "Port",
    "Problem",
    "Rate",
    "ReadableFile",
    "load_model",
    "problems_error",
    "readable",
    "validate",
]

M = TypeVar("M", bound=BaseModel)


class Model(BaseModel):
    """What every file's models share: nothing unknown is taken, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe each attribute by the text that follows it.

        Pydantic does the same by ``use_attribute_docstrings``, but for each class when it is made: to read all
        sources took every command longer than all else that it does with a file.
        """
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        texts = {name: text for kind in reversed(cls.__mro__) for name, text in attribute_texts(kind).items()}
        for name, field in cls.model_fields.items():
            found = properties.get(field.alias or name)
            # What is said of the model that it refers to is not said twice.
            if found is None or name not in texts or _said_of(found, handler) == texts[name]:
                continue
            found.setdefault("description", texts[name])
        return schema


def _said_of(found: dict[str, Any], handler: GetJsonSchemaHandler) -> Any:
    return handler.resolve_ref_schema(found).get("description") if "$ref" in found else None


@functools.cache
def attribute_texts(kind: type) -> Mapping[str, str]:
    """Return the texts that follow attributes in the source of a model, by the attributes' names."""
    if not issubclass(kind, Model) or kind is Model:
        return {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        before.target.id: inspect.cleandoc(after.value.value)
        for before, after in pairwise(tree.body)
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(after.value.value, str)
    }


def _from_base(path: Path, info: ValidationInfo) -> Path:
    path = path.expanduser()
    base = (info.context or {}).get("base")
    return path if base is None else Path(os.path.normpath(Path(base) / path))


FilePath = Annotated[Path, AfterValidator(_from_base)]
"""A path; a relative one starts at the folder of the file that holds it."""


def readable(path: Path) -> Path:
    """Return a path, once it is seen that it is a file that can be read; a ValueError says why not."""
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


ReadableFile = Annotated[FilePath, AfterValidator(readable)]
"""A file that can be read."""


Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?$",
        max_length=63,
        json_schema_extra={"expected": "a name of small letters, digits, dots and dashes"},
    ),
]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
Count = Annotated[int, Field(strict=True, ge=1)]
Rate = Annotated[float, Field(strict=True, gt=0)]


@dataclass(frozen=True)
class Problem:
    """One mistake that a model's own check found.

    Attributes:
        place: Where, from the root of the file.
        text: What was expected there.
        see: Another place that the mistake has to do with; its line is named.
    """

    place: Place
    text: str
    see: Place | None = None


def problems_error(problems: Iterable[Problem]) -> PydanticCustomError:
    """Return the error by which a model's own check names places of the file."""
    listed = list(problems)
    text = "; ".join(f"{dotted(p.place)}: {p.text}" if p.place else p.text for p in listed)
    return PydanticCustomError("problems", "{text}", {"text": text, "problems": listed})


def load_model(path: Path, model: type[M]) -> M:
    """Read a YAML file into a model.

    Args:
        path: The file.
        model: The model's class.

    Raises:
        InputError: The file cannot be read or holds a mistake; one line for each.
    """
    return validate(read_yaml(path), model)


def validate(
    document: Document,
    model: type[M],
    *,
    data: Any = None,
    relocate: Callable[[Place], Place] = lambda place: place,
) -> M:
    """Check a document against a model.

    Args:
        document: The file's data and lines.
        model: The model's class.
        data: Data made from the document's, where they differ.
        relocate: Turns a place in ``data`` into the place in the document that it came from.

    Raises:
        InputError: The document holds a mistake; one line for each.
    """
    data = document.data if data is None else data
    if data is None:
        raise InputError.at(document.file, None, "", "the file is empty")
    if not isinstance(data, Mapping):
        raise InputError(document.problem((), f"keys and values were expected, not {shown(data)}"))
    try:
        return model.model_validate(data, context={"base": document.file.parent})
    except ValidationError as error:
        schema = model.model_json_schema(by_alias=True)
        lines: dict[str, None] = {}
        found = error.errors(include_url=False)
        for details in found:
            if details["type"] == "too_short" and any(_within(other, details) for other in found):
                continue  # it is short since its entries are wrong
            for problem in _mistakes(details, data, schema):
                see = document.line(relocate(problem.see)) if problem.see else None
                text = f"{problem.text} (line {see})" if see else problem.text
                lines[document.problem(relocate(problem.place), text)] = None
    problems = list(lines)
    if len(problems) == 1:
        raise InputError(problems[0])
    raise InputError(f"{document.file}: {len(problems)} mistakes", problems=problems)


def _mistakes(details: ErrorDetails, data: Any, schema: Mapping[str, Any]) -> Iterable[Problem]:
    """Yield what one pydantic error says."""
    kind, given = details["type"], details["input"]
    if kind == "problems":
        yield from details["ctx"]["problems"]
        return
    place = _place_in(schema, data, details["loc"], kind)
    expected = describe(schema_at(schema, place), schema)
    if kind == "missing":
        yield Problem(place, f"this key is missing: {expected}")
    elif kind == "extra_forbidden":
        known = _keys(schema_at(schema, place[:-1]), schema)
        close = difflib.get_close_matches(str(place[-1]), known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known here: {', '.join(sorted(known))}"
        yield Problem(place, f"unknown key; {hint}")
    elif kind in {"value_error", "assertion_error"}:
        yield Problem(place, str(details["ctx"]["error"]))
    elif details["loc"] and details["loc"][-1] == "[key]":
        rule = "a name of small letters, digits, dots and dashes"
        yield Problem(place, f"{rule} was expected as the key, not {shown(given)}")
    else:
        verb = "were" if expected.startswith("keys and values") else "was"
        yield Problem(place, f"{expected} {verb} expected, not {shown(given)}")


def _within(inner: ErrorDetails, outer: ErrorDetails) -> bool:
    """Return whether one error lies beneath another."""
    depth = len(outer["loc"])
    return len(inner["loc"]) > depth and inner["loc"][:depth] == outer["loc"]


def _place_in(schema: Mapping[str, Any], data: Any, loc: tuple[int | str, ...], kind: str) -> Place:
    """Return pydantic's location without the parts that name branches of a union rather than keys."""
    place: list[int | str] = []
    for number, part in enumerate(loc):
        there = isinstance(data, Mapping) and part in data
        there = there or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        last_is_key = number == len(loc) - 1 and kind in {"missing", "extra_forbidden"}
        # A key that the data has not may come from elsewhere (a default), if the model declares it.
        declared = _inner(schema_at(schema, tuple(place)), part, schema, declared=True)
        if there or last_is_key or declared:
            data = data[part] if there else None
            place.append(part)
    return tuple(place)


def shown(value: Any) -> str:
    """Return a value as an error message shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "keys and values"
    if isinstance(value, list | tuple):
        return f"a list with {_entries(len(value))}" if value else "an empty list"
    # The password of an address does not belong into a message either.
    text = re.sub(r"//[^/\s]*@", "//...@", repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        extra = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], **extra}
    return schema


def _branches(schema: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the branches of a union, whether or not something tells which one data belongs to."""
    branches: Sequence[Mapping[str, Any]] = schema.get("anyOf") or schema.get("oneOf") or ()
    return branches


def _keys(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[str]:
    """Return the keys that a schema, or any branch of it, declares."""
    schema = _resolved(schema, root)
    inner = [key for branch in _branches(schema) for key in _keys(branch, root)]
    return [*schema.get("properties", {}), *inner]


def schema_at(root: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    """Return the part of a JSON schema that describes a place, or an empty one."""
    current = [_resolved(root, root)]
    for key in place:
        found: list[Mapping[str, Any]] = []
        for schema in current:
            found += _inner(schema, key, root)
        current = found
    return current[0] if current else {}


def _inner(
    schema: Mapping[str, Any], key: int | str, root: Mapping[str, Any], *, declared: bool = False
) -> list[Mapping[str, Any]]:
    """Return the schemas of what stands under a key; with ``declared`` only where the key has a name."""
    schema = _resolved(schema, root)
    branches = _branches(schema)
    found = [inner for branch in branches for inner in _inner(branch, key, root, declared=declared)]
    if key in schema.get("properties", {}):
        found.append(schema["properties"][key])
    elif declared and isinstance(key, str):
        return found
    elif isinstance(key, str) and schema.get("patternProperties"):
        found += schema["patternProperties"].values()
    elif isinstance(key, str) and isinstance(schema.get("additionalProperties"), Mapping):
        found.append(schema["additionalProperties"])
    elif isinstance(schema.get("items"), Mapping) and isinstance(key, int):
        found.append(schema["items"])
    return found


def describe(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema asks for."""
    schema = _resolved(schema, root)
    if "expected" in schema:
        return str(schema["expected"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if _branches(schema):
        words = [describe(branch, root) for branch in _branches(schema) if branch.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    kind = schema.get("type")
    if kind in {"integer", "number"}:
        return ("an integer" if kind == "integer" else "a number") + _bounds(schema)
    if kind == "array":
        return "a list" + _length(schema)
    if kind == "object":
        keys = ", ".join(schema.get("properties", {}))
        least = " (at least one)" if schema.get("minProperties") else ""
        return f"keys and values ({keys})" if keys else f"keys and values{least}"
    names = {"string": "a path" if schema.get("format") == "path" else "text", "boolean": "true or false"}
    return names.get(str(kind), "something else")


def _length(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    if high is None:
        return f" with at least {_entries(low)}" if low else ""
    return f" with {_entries(high)}" if low == high else f" with {low} to {_entries(high)}"


def _entries(count: int) -> str:
    return "one entry" if count == 1 else f"{count} entries"


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    words = []
    if above is not None:
        words.append(f"above {above:g}")
    if low is not None:
        words.append(f"of at least {low:g}")
    if below is not None:
        words.append(f"below {below:g}")
    if high is not None:
        words.append(f"of at most {high:g}")
    return " " + " and ".join(words) if words else ""
