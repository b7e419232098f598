"""Bandwidth allocation: how the band is shared among the devices, for each direction on its own.

Pure functions, used by the base station and by the simulator alike. Like :mod:`payloads.wdmoe.gating` they call
only methods of the arrays, so that whoever merely checks a campaign file imports no NumPy.

A kind of allocation is a function ``(settings, loads) -> shares`` over the devices' loads in bytes: ``loads`` (D,)
is not negative, ``shares`` (D,) is not negative and sums to 1. What rate a share gives is the channel's matter
(:mod:`payloads.linkd.channel`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

__all__ = [
    "ALLOCATION_KINDS",
    "DEFAULT_FLOOR",
    "LEAVE_ALONE",
    "PERIODS",
    "AllocationKind",
    "allocate",
    "changed",
    "check_bandwidth",
    "period_of",
]

Settings = Mapping[str, Any]

LEAVE_ALONE: Settings = {"kind": "scenario"}
"""The settings of a policy that says nothing about bandwidth."""

PERIODS = ("layer", "token", "trial")
"""How often an allocation may be made anew."""

DEFAULT_FLOOR = 0.01
CHANGE = 0.01


class AllocationKind(NamedTuple):
    """A kind of allocation.

    Attributes:
        shares: The function that decides.
        follows_load: Whether it looks at the loads; one that does not is made once, at a trial's start.
        source: Where it comes from.
    """

    shares: Callable[[Settings, NDArray[floating[Any]]], NDArray[floating[Any]]]
    follows_load: bool
    source: str


def allocate(settings: Settings, loads: NDArray[floating[Any]]) -> NDArray[floating[Any]]:
    """Share the band of one direction among the devices.

    Args:
        settings: ``kind`` and the kind's own settings, as :func:`check_bandwidth` accepts them. The kind
            ``scenario`` allocates nothing: whoever has it does not ask.
        loads: (D,) bytes that each device sends or is sent, not negative.

    Returns:
        (D,) shares that sum to 1.

    Raises:
        KeyError: The kind allocates nothing, or is not known.
    """
    return ALLOCATION_KINDS[settings["kind"]].shares(settings, loads)


def changed(before: NDArray[floating[Any]], after: NDArray[floating[Any]]) -> bool:
    """Return whether any share differs by more than 1 % of itself: less is not worth telling the links."""
    return bool((abs(after - before) > CHANGE * before).any())


def period_of(settings: Settings) -> Optional[str]:
    """Return how often the allocation is made anew, of :data:`PERIODS`; ``None`` where it follows no load."""
    kind = ALLOCATION_KINDS.get(settings["kind"])
    return str(settings.get("per", PERIODS[0])) if kind is not None and kind.follows_load else None


def check_bandwidth(settings: Settings) -> List[str]:
    """Return what is wrong with a policy's settings, one line each; an empty list if nothing is."""
    kind = settings.get("kind")
    kinds = sorted([LEAVE_ALONE["kind"], *ALLOCATION_KINDS])
    if kind not in kinds:
        return [f"kind: expected one of {', '.join(kinds)}, got {kind!r}"]
    known = {"kind"}
    problems = []
    if kind in ALLOCATION_KINDS and ALLOCATION_KINDS[kind].follows_load:
        known |= {"per", "floor"}
        per, floor = settings.get("per", PERIODS[0]), settings.get("floor", DEFAULT_FLOOR)
        if per not in PERIODS:
            problems.append(f"per: expected one of {', '.join(PERIODS)}, got {per!r}")
        if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor < 1:
            problems.append(f"floor: expected a share of the band from 0 to below 1, got {floor!r}")
    problems += [f"{name}: unknown setting of the kind {kind}" for name in settings if name not in known]
    return problems


def _uniform(settings: Settings, loads: NDArray[floating[Any]]) -> NDArray[floating[Any]]:
    """Give every device the same share."""
    shares: NDArray[floating[Any]] = loads * 0.0 + 1.0 / len(loads)
    return shares


def _proportional(settings: Settings, loads: NDArray[floating[Any]]) -> NDArray[floating[Any]]:
    """Share by load, so that all loaded devices with equally good channels would finish together.

    Every device keeps ``floor`` of the band (at most an equal share): acknowledgements travel in the direction
    that carries no load too, and a link without any rate is none.
    """
    total = loads.sum()
    if not total > 0:
        return _uniform(settings, loads)
    floor = min(float(settings.get("floor", DEFAULT_FLOOR)), 1.0 / len(loads))
    shares: NDArray[floating[Any]] = floor + (1.0 - floor * len(loads)) * (loads / total)
    return shares


ALLOCATION_KINDS: Dict[str, AllocationKind] = {
    "uniform": AllocationKind(_uniform, False, "the baseline of WDMoE: equal bandwidth"),
    "proportional": AllocationKind(_proportional, True, "a plain rule of ours: bandwidth by bytes"),
}
