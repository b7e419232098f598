"""Bandwidth allocation: how the band is shared among the devices.

Pure functions and one class that remembers, used by the base station and by the simulator alike. Importing it and
checking settings imports no NumPy; the solvers are loaded by whoever allocates.

Row 0 of all shares is the downlink, row 1 the uplink. A scenario may keep a part of a band to itself: what its shares
are together is what is shared anew, and "the band" below. What rate a share gives is the channel's matter
(:mod:`payloads.linkd.rule`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from payloads.station.link_state import LinkState
    from payloads.wdmoe.latency import Demand

    Array = NDArray[np.float64]

__all__ = [
    "ALLOCATION_KINDS",
    "DEFAULT_FLOOR",
    "DEFAULT_ROUNDS",
    "DIRECTIONS",
    "LEAVE_ALONE",
    "PERIODS",
    "AllocationKind",
    "Allocator",
    "allocate",
    "changed",
    "check_bandwidth",
    "kept_share",
    "period_of",
    "rounds_of",
]

Settings = Mapping[str, Any]

LEAVE_ALONE: Settings = {"kind": "scenario"}
"""The settings of a policy that says nothing about bandwidth."""

PERIODS = ("layer", "token", "trial")
"""How often an allocation may be made anew."""

DIRECTIONS = ("same", "separate")
"""Whether a device has one share for both directions (the papers' B_k), or one of each band."""

DEFAULT_FLOOR = 0.01
DEFAULT_ROUNDS = 3
_MOST_ROUNDS = 100
#: Demands that one allocation for a whole trial looks at, at most: a long request has thousands of layers.
_MOST_DEMANDS = 512
_CHANGE = 0.01


class AllocationKind(NamedTuple):
    """A kind of allocation.

    Attributes:
        shares: ``(settings, demands, links, bands) -> (2, D)``: the function that decides. The demands are those of one
            layer or of several, ``bands`` (2,) what there is to share.
        settings: The names of its settings.
        source: Where it comes from.
    """

    shares: Callable[[Settings, Sequence[Demand], LinkState, Array], Array]
    settings: Sequence[str]
    source: str

    @property
    def follows_load(self) -> bool:
        """Whether it looks at the demands; one that does not is made once, at a trial's start."""
        return "per" in self.settings


def allocate(
    settings: Settings, demands: Sequence[Demand], links: LinkState, bands: Optional[Array] = None
) -> Array:
    """Share both bands among the devices.

    Args:
        settings: ``kind`` and the kind's own settings, as :func:`check_bandwidth` accepts them. The kind ``scenario``
            allocates nothing: whoever has it does not ask.
        demands: What one layer, or several that get one allocation together, ask of the links.
        links: The links as they are.
        bands: (2,), what there is to share; what the links' shares are together where left out.

    Returns:
        (2, D) shares, none negative, in each direction ``bands`` together at most.

    Raises:
        KeyError: The kind allocates nothing, or is not known.
    """
    if bands is None:
        bands = links.shares.sum(axis=1)
    return ALLOCATION_KINDS[settings["kind"]].shares(settings, demands, links, bands)


def changed(before: Array, after: Array) -> bool:
    """Return whether any share differs by more than 1 % of itself: less is not worth telling the links."""
    return bool((abs(after - before) > _CHANGE * before).any())


def period_of(settings: Settings) -> Optional[str]:
    """Return how often the allocation is made anew, of :data:`PERIODS`; ``None`` where it follows no load."""
    kind = ALLOCATION_KINDS.get(settings["kind"])
    return str(settings.get("per", PERIODS[0])) if kind is not None and kind.follows_load else None


def kept_share(floor: float, devices: int) -> float:
    """Return the part of a band that every device keeps: the floor, but at most half of an equal share.

    With many devices a floor would otherwise leave nothing to allocate.
    """
    return min(floor, 0.5 / devices)


def rounds_of(settings: Settings) -> int:
    """Return how often a selection and this allocation are made in turn for one layer, at most.

    Only an allocation for each layer can follow a selection that follows it; all others go once.
    """
    if period_of(settings) != "layer" or "rounds" not in ALLOCATION_KINDS[settings["kind"]].settings:
        return 1
    return int(settings.get("rounds", DEFAULT_ROUNDS))


def check_bandwidth(settings: Settings) -> List[str]:
    """Return what is wrong with a policy's settings, one line each; an empty list if nothing is."""
    kind = settings.get("kind")
    kinds = sorted([LEAVE_ALONE["kind"], *ALLOCATION_KINDS])
    if kind not in kinds:
        return [f"kind: expected one of {', '.join(kinds)}, got {kind!r}"]
    known = ALLOCATION_KINDS[kind].settings if kind in ALLOCATION_KINDS else ()
    problems = []
    for name, value in settings.items():
        if name == "kind":
            continue
        if name not in known:
            problems.append(f"{name}: unknown setting of the kind {kind}")
            continue
        good, expected = _CHECKS[name]
        if not good(value):
            problems.append(f"{name}: expected {expected}, got {value!r}")
    if not problems and period_of(settings) != "layer":
        problems += [f"{name}: {why}" for name, why in _PER_LAYER.items() if name in settings]
    return problems


class Allocator:
    """The bandwidth allocation of one trial: when it is made anew, and by which demands.

    Every method returns the shares (2, D) that should be in force now, or ``None`` where those of the links that it is
    shown are to stay; it is for the caller to put them in force. Shares that would change by less than 1 % stay.

    Attributes:
        shares_at_start: (2, D), the scenario's shares.
        bands: (2,), what there is to share.

    Args:
        settings: The allocation, as :func:`check_bandwidth` accepts it.
        shares_at_start: (2, D), the scenario's shares.
    """

    def __init__(self, settings: Settings, shares_at_start: Array) -> None:
        self._settings = settings
        self.shares_at_start = shares_at_start
        self.bands: Array = shares_at_start.sum(axis=1)
        self._period = period_of(settings)
        self._request: Optional[str] = None
        self._done = settings["kind"] == LEAVE_ALONE["kind"]
        self._demands: Dict[Any, Demand] = {}
        self._odd_start: Optional[bool] = None

    @property
    def period(self) -> Optional[str]:
        """How often it is made anew, of :data:`PERIODS`; ``None`` where it follows no load."""
        return self._period

    @property
    def rounds(self) -> int:
        """How often a selection and :meth:`layer` may be made in turn for one layer, at most."""
        return rounds_of(self._settings)

    @property
    def gain_s(self) -> float:
        """By how much earlier a layer must be done for an allocation of its own, in seconds."""
        return 1e-3 * float(self._settings.get("gain_ms", 0.0))

    @property
    def settings(self) -> Settings:
        """The allocation's settings."""
        return self._settings

    def shares_for(self, demand: Demand, links: LinkState) -> Array:
        """Return the shares (2, D) that one layer gets where an allocation is made for each; nothing is remembered.

        Where ``minmax`` cannot do what the scenario's shares do, as when these leave a device less than the floor,
        the better of both are returned.

        Args:
            demand: What the layer asks of the links.
            links: The links as they are.
        """
        shares = allocate(self._settings, [demand], links, self.bands)
        if self._start_may_win(links):
            start = self.shares_at_start
            if _layer_s(demand, links.with_shares(start)) < _layer_s(demand, links.with_shares(shares)):
                return start
        return shares

    def limits(self, links: LinkState) -> Tuple[Array, Array]:
        """Return (2, D) the least and (2, D) the largest shares that :meth:`shares_for` may give."""
        import numpy as np

        devices = links.states.shape[1]
        kept = 0.0
        if self._settings["kind"] == "minmax" and not self._start_may_win(links):
            kept = kept_share(float(self._settings.get("floor", DEFAULT_FLOOR)), devices)
        each = np.repeat(self.bands[:, None], devices, axis=1)
        return each * kept, each * (1.0 - kept * (devices - 1))

    def one_share(self, links: LinkState) -> bool:
        """Return whether :meth:`shares_for` gives a device the same part of both bands."""
        one = self._settings.get("directions", DIRECTIONS[0]) == DIRECTIONS[0]
        return self._settings["kind"] == "minmax" and one and not self._start_may_win(links)

    def _start_may_win(self, links: LinkState) -> bool:
        """Return whether the scenario's shares may be none that ``minmax`` would find, and no worse."""
        if self._settings["kind"] != "minmax":
            return False
        if links.rule.kind == "table":
            return True
        if self._odd_start is None:
            start = self.shares_at_start
            parts = start / self.bands[:, None]
            kept = kept_share(float(self._settings.get("floor", DEFAULT_FLOOR)), start.shape[1])
            one = self._settings.get("directions", DIRECTIONS[0]) == DIRECTIONS[0]
            uneven = one and (abs(parts[0] - parts[1]) > 1e-9).any()
            self._odd_start = bool((parts < kept * (1 - 1e-9)).any() or uneven)
        return self._odd_start

    def begin(self, links: LinkState) -> Optional[Array]:
        """Make an allocation that depends on nothing that the trial brings."""
        if self._done or self._period is not None:
            return None
        self._done = True
        return self._allocate([], links)

    def before_token(self, request: str, step: int, links: LinkState) -> Optional[Array]:
        """Share by what the token step before this one sent, or once by what the first request sent.

        Args:
            request: The request.
            step: Its token step, 0 for the prompt.
            links: The links as they are.
        """
        another = self._request is not None and request != self._request
        self._request = request
        if self._done or not self._demands or self._period in (None, "layer"):
            return None
        if self._period == "trial":
            if not another:
                return None
            self._done = True  # once is enough
        demands = list(self._demands.values())
        self._demands.clear()
        return self._allocate(demands, links)

    def layer(self, layer: int, step: int, demand: Demand, links: LinkState) -> Optional[Array]:
        """Share by what this layer is about to send, or remember it for later.

        May be called again for the same layer with another demand: the last one counts.

        Args:
            layer: The layer.
            step: The token step, 0 for the prompt.
            demand: What the layer is about to ask of the links.
            links: The links as they are.
        """
        if self._done or self._period is None:
            return None
        if self._period == "layer":
            return self._allocate([demand], links)
        key = layer if self._period == "token" else (layer, step)
        if key in self._demands or len(self._demands) < _MOST_DEMANDS:
            self._demands[key] = demand
        return None

    def _allocate(self, demands: Sequence[Demand], links: LinkState) -> Optional[Array]:
        shares = allocate(self._settings, demands, links, self.bands)
        return shares if changed(links.shares, shares) else None


def _layer_s(demand: Demand, links: LinkState) -> float:
    """Return the latency of one layer at the shares of its links, in seconds."""
    down_mbit, up_mbit = links.rates_mbit()
    link_s = 1e-6 * (demand.downlink_bits / down_mbit + demand.uplink_bits / up_mbit)
    return float((demand.fixed_s + link_s).max())


def _uniform(settings: Settings, demands: Sequence[Demand], links: LinkState, bands: Array) -> Array:
    """Give every device the same share."""
    import numpy as np

    devices = links.states.shape[1]
    return np.repeat(np.asarray(bands, float)[:, None] / devices, devices, axis=1)


def _proportional(settings: Settings, demands: Sequence[Demand], links: LinkState, bands: Array) -> Array:
    """Share each direction by the bits in it, so that devices with equally good channels would finish together.

    Every device keeps ``floor`` of the band (at most half of an equal share): acknowledgements travel in the direction
    that carries no load too, and a link without any rate is none.
    """
    shares = _uniform(settings, demands, links, bands)
    devices = shares.shape[1]
    floor = kept_share(float(settings.get("floor", DEFAULT_FLOOR)), devices)
    for row, direction in enumerate(("downlink_bits", "uplink_bits")):
        bits = sum((getattr(demand, direction) for demand in demands), shares[row] * 0.0)
        total = bits.sum()
        if total > 0:
            shares[row] = bands[row] * (floor + (1.0 - floor * devices) * (bits / total))
    return shares


def _minmax(settings: Settings, demands: Sequence[Demand], links: LinkState, bands: Array) -> Array:
    """Minimise the attention waiting latency, or over several layers the sum of theirs."""
    directions = str(settings.get("directions", DIRECTIONS[0]))
    floor = float(settings.get("floor", DEFAULT_FLOOR))
    if len(demands) == 1:
        from payloads.wdmoe.allocation.minmax import minmax

        return minmax(demands[0], links, bands.tolist(), directions, floor)
    from payloads.wdmoe.allocation.epigraph import epigraph

    return epigraph(demands, links, bands.tolist(), directions, floor, quick=True)


def _is_share(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value < 1


def _is_rounds(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int) and 1 <= value <= _MOST_ROUNDS


def _is_gain(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= value < float("inf")


_PER_LAYER = {
    "rounds": "only an allocation per layer is made in turn with a selection",
    "gain_ms": "only an allocation per layer is left out where it gains little",
}
_CHECKS: Dict[str, Any] = {
    "per": (lambda value: value in PERIODS, f"one of {', '.join(PERIODS)}"),
    "floor": (_is_share, "a share of the band from 0 to below 1"),
    "directions": (lambda value: value in DIRECTIONS, f"one of {', '.join(DIRECTIONS)}"),
    "rounds": (_is_rounds, f"a whole number from 1 to {_MOST_ROUNDS}"),
    "gain_ms": (_is_gain, "milliseconds, at least 0"),
}

ALLOCATION_KINDS: Dict[str, AllocationKind] = {
    "uniform": AllocationKind(_uniform, (), "the baseline of WDMoE: equal bandwidth"),
    "proportional": AllocationKind(
        _proportional, ("per", "floor"), "a plain rule of ours: bandwidth by bits"
    ),
    "minmax": AllocationKind(
        _minmax,
        ("per", "floor", "directions", "rounds", "gain_ms"),
        "WDMoE's bandwidth allocation (reconstruction): least attention waiting latency",
    ),
}
