"""The sweep file: one campaign, simulated again and again with some of its values changed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, model_validator

from testbed.config.campaign import Campaign
from testbed.config.model import Count, Model, Name, Problem, ReadableFile, problems_error, validate
from testbed.config.yaml import Document, Place, read_yaml
from testbed.errors import InputError

__all__ = ["MOST_POINTS", "Axis", "Point", "Sweep", "changed", "load_sweep", "points_of"]

MOST_POINTS = 10_000
ALL = "*"


class Axis(Model):
    """One thing that is varied."""

    change: Annotated[str | tuple[str, ...] | None, Field(alias="set")] = None
    """Which value of the campaign file is set, such as `policies.joint-0.97.selection.tau`; entries of a list go by
    their name, and `*` stands for all of them. A list of such sets them all together."""
    to: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """The values that it is set to."""
    devices: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """In place of the two: how many devices take part. Beyond those of the inventory, they are copied in turn."""

    @property
    def values(self) -> tuple[Any, ...]:
        """The values along the axis."""
        return self.to if self.to is not None else self.devices or ()

    @property
    def targets(self) -> tuple[str, ...]:
        """What is set; nothing for the number of devices."""
        if self.change is None:
            return ()
        return (self.change,) if isinstance(self.change, str) else self.change


class Sweep(Model):
    """A sweep: every combination of the values of its axes is one point."""

    sweep: Name
    """The sweep's name; its folders are named after it."""
    campaign: ReadableFile
    """The campaign file, from the folder of this file."""
    inventory: ReadableFile | None = None
    """Another lab than the campaign's."""
    repeats: Count | None = None
    """Other repeats than the campaign's, each with links of its own."""
    batch_tokens: Count | None = None
    """How many tokens the prompts of a model without weights have."""
    vary: Annotated[dict[str, Axis], Field(min_length=1)]
    """What is varied, by a name for the tables."""
    _document: Document | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        taken = {"point", "trial", "policy", "scenario", "repeat"}
        for name, axis in self.vary.items():
            if (axis.devices is None) == (axis.change is None) or (axis.change is None) != (axis.to is None):
                text = "either `set` and `to` were expected, or `devices`"
                problems.append(Problem(("vary", name), text))
            if name in taken or not name.replace("_", "").isalnum():
                text = (
                    f"a name of letters, digits and _ that is none of {', '.join(sorted(taken))} was expected"
                )
                problems.append(Problem(("vary", name), text))
        if sum(axis.devices is not None for axis in self.vary.values()) > 1:
            problems.append(Problem(("vary",), "`devices` stands twice"))
        count = 1
        for axis in self.vary.values():
            count *= len(axis.values)
        if count > MOST_POINTS:
            problems.append(Problem(("vary",), f"at most {MOST_POINTS} points were expected, not {count}"))
        if problems:
            raise problems_error(problems)
        return self

    @property
    def document(self) -> Document:
        """The file as it was read."""
        assert self._document is not None
        return self._document


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        number: Its place in the sweep, from 0.
        values: The value of each axis, by its name.
        devices: How many devices take part; None for the inventory's.
    """

    number: int
    values: Mapping[str, Any]
    devices: int | None


def load_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        InputError: It cannot be read or holds a mistake; one line for each.
    """
    document = read_yaml(path)
    sweep = validate(document, Sweep)
    sweep._document = document
    return sweep


def points_of(sweep: Sweep) -> list[Point]:
    """Return the points of a sweep: every combination, the last axis changing fastest."""
    names = list(sweep.vary)
    points = []
    for number, values in enumerate(itertools.product(*(axis.values for axis in sweep.vary.values()))):
        chosen = dict(zip(names, values, strict=True))
        counts = [chosen[name] for name, axis in sweep.vary.items() if axis.devices is not None]
        points.append(Point(number, chosen, counts[0] if counts else None))
    return points


def changed(sweep: Sweep, point: Point, campaign: Document) -> Campaign:
    """Return the campaign of one point.

    Args:
        sweep: The sweep.
        point: The point.
        campaign: The campaign file.

    Raises:
        InputError: The campaign has no such value, or the changed campaign holds a mistake.
    """
    data = copy.deepcopy(campaign.data)
    for name, axis in sweep.vary.items():
        for number, target in enumerate(axis.targets):
            places = list(_places(data, target.split("."), ()))
            if not places:
                place: Place = ("vary", name, "set", *((number,) if isinstance(axis.change, tuple) else ()))
                raise InputError(
                    sweep.document.problem(place, f"{campaign.file} has nothing that {target} could name")
                )
            for found in places:
                _put(data, found, point.values[name])
    if sweep.repeats is not None and isinstance(data, dict):
        data["repeats"] = sweep.repeats
    try:
        made = validate(campaign, Campaign, data=data)
    except InputError as error:
        where = ", ".join(f"{name} = {value}" for name, value in point.values.items())
        raise InputError(f"{sweep.document.file}: point {point.number} ({where}): {error.message}") from error
    made._document = campaign
    return made


def _places(data: Any, words: Sequence[str], before: Place) -> Iterator[Place]:
    """Yield the places that dotted words name; names may hold dots themselves."""
    if not words:
        yield before
        return
    for length in range(len(words), 0, -1):
        word, rest = ".".join(words[:length]), words[length:]
        if isinstance(data, list):
            for index, entry in enumerate(data):
                name = entry.get("name") if isinstance(entry, dict) else None
                if word in (ALL, name):
                    yield from _places(entry, rest, (*before, index))
        elif isinstance(data, dict):
            keys = list(data) if word == ALL else [word] if word in data or not rest else []
            for key in keys:
                # A last word may be a key that has its default so far; the check of the whole finds wrong ones.
                if key in data or length == 1:
                    yield from _places(data.get(key), rest, (*before, key))


def _put(data: Any, place: Place, value: Any) -> None:
    for key in place[:-1]:
        data = data[key]
    data[place[-1]] = copy.deepcopy(value)
