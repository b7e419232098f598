"""What a layer takes when the band is shared for it as well as it can be: what a selection sees where both are chosen.

At given shares a pair on a poor link looks as if it cost its own time only. In truth it also holds the band that all
others could have. So a policy that shares the band for each layer shows its selection this: for any loads the layer's
latency with the shares that its allocation would give them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from payloads.wdmoe.costs import Demand

if TYPE_CHECKING:
    from numpy import float64, floating
    from numpy.typing import NDArray

    from payloads.station.link_state import LinkState
    from payloads.wdmoe.allocation.bandwidth import Allocator
    from payloads.wdmoe.costs import Costs
    from payloads.wdmoe.routing import Loads

    Floats = NDArray[floating[Any]]

__all__ = ["Band", "TokenDemand", "TokenDemands", "token_loads"]

CostsOf = Callable[["LinkState"], "Costs"]
"""What sending takes on links."""

_STEP = 1e-4
"""By how much shares are changed to see what they are worth."""

_DIGITS = 2.0**20
"""Into how many parts a share is divided where a search looks at it, within each power of two."""


class TokenDemand(NamedTuple):
    """What one token asks of any device for a number of pairs, each with an expert of its own.

    Attributes:
        fixed_s: Of each device, what it takes beside the bits.
        down_bits: Bits to it.
        up_bits: Bits from it.
    """

    fixed_s: List[float]
    down_bits: float
    up_bits: float


class TokenDemands:
    """What one token asks of the devices, for 1 pair, 2 pairs and so on. Kept, since no rate changes it.

    Attributes:
        of_loads: What any loads ask of the links.

    Args:
        demand: That.
        devices: D, the number of devices.
    """

    def __init__(self, demand: Callable[[Loads], Demand], devices: int) -> None:
        self.of_loads = demand
        self._devices = devices
        self._known: List[TokenDemand] = []

    def of(self, pairs: int) -> TokenDemand:
        """Return what a token asks for that has so many pairs on a device, at least one."""
        while len(self._known) < pairs:
            self._known.append(self._worked_out(len(self._known) + 1))
        return self._known[pairs - 1]

    def _worked_out(self, pairs: int) -> TokenDemand:
        demand = self.of_loads(token_loads(self._devices, pairs))
        # A message's size is the same to every device.
        return TokenDemand(
            demand.fixed_s.tolist(), float(demand.downlink_bits[0]), float(demand.uplink_bits[0])
        )


def token_loads(devices: int, pairs: int) -> Loads:
    """Return loads in which one token goes to every device, to ``pairs`` experts of its own on each."""
    import numpy as np

    from payloads.wdmoe.routing import Loads

    ones = np.ones(devices, dtype=np.int64)
    experts = np.repeat(np.arange(devices), pairs)
    return Loads(ones, pairs * ones, pairs * ones, np.ones(len(experts), dtype=np.int64), experts)


class Band:
    """The band of one layer; called with loads it returns the layer's attention waiting latency in seconds.

    Args:
        allocator: Who shares the band.
        links: The links in the state that they are in; their shares are the scenario's.
        costs_of: What sending takes on links.
        token_demands: What a token asks for; by the same latency model.
    """

    __slots__ = ("_alone", "_costs_of", "_demands", "_most", "_shares", "_tokens", "allocator", "links")

    def __init__(
        self, allocator: Allocator, links: LinkState, costs_of: CostsOf, token_demands: TokenDemands
    ) -> None:
        self.allocator = allocator
        self.links = links
        self._costs_of = costs_of
        self._demands = token_demands
        self._tokens: Dict[Tuple[Tuple[int, int], ...], float] = {}
        self._shares: Dict[Tuple[Tuple[int, int], ...], NDArray[float64]] = {}
        self._alone: Dict[int, Tuple[float, float]] = {}
        self._most: Optional[List[List[float]]] = None

    def __call__(self, loads: Loads) -> float:
        """Return the layer's latency in seconds when the band is shared for these loads."""
        return self.outcome(loads)[0]

    def outcome(self, loads: Loads) -> Tuple[float, Costs]:
        """Return the latency, and what sending takes at the shares that these loads get."""
        demand = self._demands.of_loads(loads)
        costs = self._costs_of(self._given_nearly(demand))
        return float(costs.demand_s(demand).max()), costs

    def at(self, links: LinkState) -> Costs:
        """Return what sending takes on links."""
        return self._costs_of(links)

    def given(self, demand: Demand) -> LinkState:
        """Return the links with the shares that a demand gets."""
        return self.links.with_shares(self.allocator.shares_for(demand, self.links))

    def given_token(self, loads: Loads, demand: Demand) -> LinkState:
        """Return the links with the shares that a single token gets, as they were found when it was asked for.

        Args:
            loads: What the token asks of the devices.
            demand: What that asks of the links.
        """
        held = tuple((device, pairs) for device, pairs in enumerate(loads.pairs.tolist()) if pairs)
        shares = self._shares.get(held)
        return self.given(demand) if shares is None else self.links.with_shares(shares)

    def token_s(self, held: Mapping[int, int]) -> float:
        """Return the latency of a layer with a single token.

        Args:
            held: How many pairs it has on each device that it is sent to, each with an expert of its own.
        """
        key = tuple(held.items()) if len(held) == 1 else tuple(sorted(held.items()))
        known = self._tokens.get(key)
        if known is None:
            known = self._tokens[key] = self._token_s(key)
        return known

    def alone_s(self, device: int, pairs: int) -> float:
        """Return what a token takes at least on one device, whatever the shares are."""
        speeds = self._alone.get(device)
        if speeds is None:
            speeds = self._alone[device] = self._alone_speeds(device)
        fixed_s, down_bits, up_bits = self._demands.of(pairs)
        return fixed_s[device] + down_bits * speeds[0] + up_bits * speeds[1]

    def prices(self, loads: Loads) -> Tuple[Costs, Floats]:
        """Return what sending takes at the shares that these loads get, and what a second of each device is worth.

        The prices are the multipliers of the allocation: how much later the layer is done for each second that a
        device takes longer at those shares. A device that nobody waits for is worth nothing. One that is left out is
        taken to have a single pair.

        Returns:
            The costs, and (D,) prices, the largest 1.
        """
        import numpy as np

        from payloads.wdmoe.routing import Loads

        alone = loads.pairs == 0
        experts = np.concatenate([loads.device_of, alone.nonzero()[0]])
        counts = np.concatenate([loads.counts, np.ones(int(alone.sum()), dtype=np.int64)])
        every = Loads(loads.tokens + alone, loads.pairs + alone, loads.experts + alone, counts, experts)
        demand = self._demands.of_loads(every)
        links = self._given_nearly(demand)
        costs = self._costs_of(links)
        more = self._costs_of(links.with_shares(links.shares * (1 + _STEP)))
        seconds = costs.demand_s(demand)
        saved_s = np.maximum((seconds - more.demand_s(demand)) / _STEP, 0.0)
        # The device whose share saves more time needs less of its price: price * saved / share is the same for all.
        price = links.shares.mean(axis=0) / np.maximum(saved_s, 1e-12)
        price[(saved_s <= 0.0) | (seconds < (1 - 1e-3) * seconds.max())] = 0.0
        most = price.max()
        return costs, price / most if most > 0 else np.ones(len(price))

    def _given_nearly(self, demand: Demand) -> LinkState:
        """Return the links with the shares that a demand gets, rounded down to some six digits.

        The solver's last digits depend on how the devices are numbered, and where all of them are done at once, they
        would decide which one a search takes to be the slowest.
        """
        return self.links.with_shares(_rounded_down(self.allocator.shares_for(demand, self.links)))

    def _token_s(self, held: Tuple[Tuple[int, int], ...]) -> float:
        import numpy as np

        links = self.links
        devices = links.states.shape[1]
        fixed_s, down_bits, up_bits = [0.0] * devices, [0.0] * devices, [0.0] * devices
        loaded = [False] * devices
        for device, pairs in held:
            asked = self._demands.of(pairs)
            fixed_s[device] = asked.fixed_s[device]
            down_bits[device], up_bits[device] = asked.down_bits, asked.up_bits
            loaded[device] = True
        demand = Demand(np.array(fixed_s), np.array(down_bits), np.array(up_bits), np.array(loaded))
        shares = self._shares[held] = self.allocator.shares_for(demand, links)
        down, up = shares.tolist()
        down_states, up_states = links.states.tolist()
        rate_mbit = links.rule.rate_mbit
        slowest_s = 0.0
        for device, _ in held:
            seconds = fixed_s[device]
            seconds += 1e-6 * down_bits[device] / rate_mbit(down_states[device], down[device])
            seconds += 1e-6 * up_bits[device] / rate_mbit(up_states[device], up[device])
            slowest_s = max(slowest_s, seconds)
        return slowest_s

    def _alone_speeds(self, device: int) -> Tuple[float, float]:
        """Return the least seconds that a bit to a device and one from it can take."""
        rule, states = self.links.rule, self.links.states
        if rule.kind == "table":  # more of the band may mean less of a rate
            return 1e-6 / rule.max_mbit, 1e-6 / rule.max_mbit
        if self._most is None:
            self._most = self.allocator.limits(self.links)[1].tolist()
        down, up = self._most
        return (
            1e-6 / rule.rate_mbit(float(states[0, device]), down[device]),
            1e-6 / rule.rate_mbit(float(states[1, device]), up[device]),
        )


def _rounded_down(shares: NDArray[float64]) -> NDArray[float64]:
    """Return shares with some six digits each."""
    import numpy as np

    mantissas, exponents = np.frexp(shares)
    rounded: NDArray[float64] = np.ldexp(np.floor(mantissas * _DIGITS) / _DIGITS, exponents)
    return rounded
