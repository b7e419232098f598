"""Which kinds of expert selection there are, and what settings each takes. Imports neither NumPy nor torch.

A kind's code is loaded when a selector is made, so that whoever merely checks a campaign file stays light.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Sequence

if TYPE_CHECKING:
    from payloads.wdmoe.gating import Selector

__all__ = ["COMMON_SETTINGS", "REQUIRED", "SELECTOR_KINDS", "SelectorKind", "Setting", "Settings", "value_of"]

Settings = Mapping[str, Any]

REQUIRED = object()
"""The default of a setting that has none: it has to be given."""


class Setting(NamedTuple):
    """One setting of a kind.

    Attributes:
        expected: What values are good, in words, for the line that names a mistake.
        good: Says whether a value is good.
        default: What holds where it is left out; :data:`REQUIRED` where it must not be.
        meaning: What it does, in one sentence.
    """

    expected: str
    good: Callable[[Any], bool]
    default: Any
    meaning: str


class SelectorKind(NamedTuple):
    """A kind of expert selection.

    Attributes:
        make: Makes a selector of settings that :func:`payloads.wdmoe.gating.check_selection` accepts. One serves
            one trial or one quality pass.
        settings: Its own settings by name.
        follows_links: Whether it looks at what sending takes, so that its quality depends on the scenario.
        source: Where it comes from.
    """

    make: Callable[[Settings], Selector]
    settings: Mapping[str, Setting]
    follows_links: bool
    source: str


def value_of(settings: Settings, name: str) -> Any:
    """Return a setting's value, or its default where it is left out or ``None``.

    Args:
        settings: ``kind`` and the settings that were given.
        name: The setting.

    Raises:
        KeyError: The kind has no such setting.
    """
    value = settings.get(name)
    if value is not None:
        return value
    known = {**COMMON_SETTINGS, **SELECTOR_KINDS[settings["kind"]].settings}
    return known[name].default


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _count() -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _between(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: _number(value) and low <= value <= high


def _above(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: _number(value) and low < value <= high


def _at_least(low: float) -> Callable[[Any], bool]:
    return lambda value: _number(value) and value >= low


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in words


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _list_of(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and bool(value) and all(map(good, value))


def _matrix(value: Any) -> bool:
    """Whether a value is a square matrix of shares, or a list of such, one for each layer."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    if all(isinstance(row, (list, tuple)) and row and isinstance(row[0], (list, tuple)) for row in value):
        return all(_square(matrix) for matrix in value)
    return _square(value)


def _square(matrix: Sequence[Any]) -> bool:
    good = _list_of(_between(-1, 1))
    return all(good(row) and len(row) == len(matrix) for row in matrix)


def _kind(
    module: str, name: str, settings: Mapping[str, Setting], follows_links: bool, source: str
) -> SelectorKind:
    def make(given: Settings) -> Selector:
        selector: Selector = getattr(import_module(f"payloads.wdmoe.selectors.{module}"), name)(given)
        return selector

    return SelectorKind(make, settings, follows_links, source)


COMMON_SETTINGS: Mapping[str, Setting] = {
    "renormalise": Setting(
        "sum, none, or a number from 0 to 1",
        lambda value: value in ("sum", "none") if isinstance(value, str) else _between(0, 1)(value),
        "sum",
        "Whether the weights that a token keeps are scaled to the sum that all had: sum, none, or part of the way.",
    ),
}
"""What every kind takes."""

SELECTOR_KINDS: Dict[str, SelectorKind] = {
    "top_k": _kind(
        "top_k",
        "TopK",
        {
            "k": Setting(
                "a whole number of at least 1",
                _count(),
                REQUIRED,
                "Each token keeps the k experts that its router likes best.",
            )
        },
        False,
        "the baseline of WDMoE: vanilla top-k",
    ),
    "wlr": _kind(
        "wlr",
        "Wlr",
        {
            "theta_start": Setting(
                "a number from 0 to 1", _between(0, 1), 0.5, "The threshold that is tried first."
            ),
            "theta_step": Setting("a number above 0, at most 1", _above(0, 1), 0.1, "By how much it rises."),
            "theta_max": Setting("a number from 0 to 1", _between(0, 1), 1.0, "Where it ends."),
            "gain": Setting(
                "a number of at least 0", _at_least(0), 0.01, "The share that the ratio has to gain."
            ),
            "direction": Setting(
                "one of low, high",
                _one_of("low", "high"),
                "low",
                "Whether tokens lose an expert where weights and latencies point apart, or together.",
            ),
        },
        True,
        "WDMoE, first version (arXiv 2405.03131), a reconstruction",
    ),
    "bottleneck": _kind(
        "bottleneck",
        "Bottleneck",
        {
            "threshold": Setting(
                "a share from 0 to 1",
                _between(0, 1),
                0.3,
                "The bottleneck device is dropped where a token gives it at most this share of its mass.",
            ),
            "smoothing": Setting(
                "a number above 0, at most 1",
                _above(0, 1),
                0.2,
                "How much the newest measured time counts against those before.",
            ),
        },
        True,
        "WDMoE's hardware testbed (arXiv 2411.06681), a reconstruction",
    ),
    "similar": _kind(
        "similar",
        "Similar",
        {
            "tolerance": Setting(
                "a number from 0 to 1",
                _between(0, 1),
                0.2,
                "How much less similar than the expert itself one may be that replaces it.",
            ),
            "skip": Setting(
                "a share from 0 to 1", _between(0, 1), 0.1, "The largest mass of a pair that may be dropped."
            ),
            "similarity": Setting(
                "a square matrix of numbers from -1 to 1, or one for each layer",
                _matrix,
                None,
                "How similar the experts are; by their scores where it is left out.",
            ),
        },
        True,
        "SiftMoE (arXiv 2603.23888), a reconstruction of its idea",
    ),
    "greedy": _kind(
        "greedy",
        "Greedy",
        {
            "k": Setting(
                "a whole number of at least 1", _count(), None, "How many experts; as many as the router."
            ),
            "balance": Setting(
                "a number of at least 0",
                _at_least(0),
                1.0,
                "How much latency counts against score, as its power.",
            ),
        },
        True,
        "a plain channel-aware baseline of ours",
    ),
    "budget": _kind(
        "budget",
        "Budget",
        {
            "tau": Setting(
                "a share from 0 to 1",
                _between(0, 1),
                REQUIRED,
                "The share of the gate's mass that is kept at least.",
            ),
            "scope": Setting(
                "one of block, running",
                _one_of("block", "running"),
                "running",
                "Whether each block keeps that share, or all blocks of a layer so far.",
            ),
            "replace": Setting(
                "true or false",
                _flag,
                False,
                "Whether a pair may go to another device's expert instead of being dropped.",
            ),
            "power": Setting(
                "a number above 0, at most 8",
                _above(0, 8),
                2.0,
                "Quality lost is (lost / kept mass) to this power (scope running).",
            ),
            "most": Setting(
                "a share from 0 to 1",
                _between(0, 1),
                0.5,
                "The largest share of its own mass that a token loses; 1 - tau where that is more.",
            ),
            "renormalise": Setting(
                COMMON_SETTINGS["renormalise"].expected,
                COMMON_SETTINGS["renormalise"].good,
                0.5,
                COMMON_SETTINGS["renormalise"].meaning,
            ),
            "layer_cost": Setting(
                "a list of numbers above 0",
                _list_of(_above(0)),
                None,
                "What losing mass costs in each layer, in any unit: cheap layers get more of the budget.",
            ),
            "cap": Setting(
                "a number of at least 1",
                _at_least(1),
                4096,
                "For how many tokens mass is saved up (scope running).",
            ),
            "memory": Setting(
                "a whole number of at least 1",
                _count(),
                1024,
                "From how many tokens the price of a second is worked out (scope running).",
            ),
            "reserve": Setting(
                "a number of at least 0",
                _at_least(0),
                2.0,
                "Mass that is kept in hand for a bargain (scope running).",
            ),
        },
        True,
        "ours",
    ),
}
"""Every kind that comes with testbed."""


def kind_names() -> List[str]:
    """Return the names of the kinds, sorted."""
    return sorted(SELECTOR_KINDS)
