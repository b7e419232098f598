"""The least that the devices could have been waited for, beside what a policy took: the bound of its own budget. Pure.

Only a selection of the kind ``budget`` that replaces nothing promises a share of the mass, so only it has a bound: what
no selection that drops pairs and keeps that share could have gone below. Where the policy shares the band for each
layer, it is a bound over all shares that its allocation may give, too; elsewhere one at the shares in force.

It is a bound on what the links really did. So a token bucket is taken to be full whenever a message comes, and a link
to be as good as it was at any time while the layer was under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple

from payloads.wdmoe.allocation.band import Band, TokenDemands
from payloads.wdmoe.buckets import Buckets
from payloads.wdmoe.costs import Demand
from payloads.wdmoe.routing import LayerView, Loads, Routing
from payloads.wdmoe.selectors.bound import choices_s, lower_bound_s, stream_bound_s, token_loads
from payloads.wdmoe.selectors.bound_together import choices_together_s, lower_bound_together_s
from payloads.wdmoe.selectors.budget import layer_parts
from payloads.wdmoe.selectors.kinds import value_of

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

    from payloads.station.link_state import LinkState
    from payloads.wdmoe.decision import Decider

__all__ = ["WaitBounds", "bounds_of"]

_Choices = List[Tuple[float, float]]


def bounds_of(settings: Mapping[str, Any], decider: Decider) -> Optional[WaitBounds]:
    """Return what bounds a policy's waiting, or ``None`` where it promises nothing.

    Args:
        settings: The settings of its expert selection.
        decider: The policy at work, for its latency model and its allocation.
    """
    if settings["kind"] != "budget" or value_of(settings, "replace"):
        return None
    return WaitBounds(settings, decider)


class WaitBounds:
    """Bounds of one trial.

    A block of several tokens has a bound of its own. Blocks of one token share a budget where the scope is ``running``:
    then only the sum over all of a layer's is a bound, and each token's is its part of that.

    Args:
        settings: The settings of a selection of the kind ``budget``.
        decider: The policy at work.
    """

    def __init__(self, settings: Mapping[str, Any], decider: Decider) -> None:
        self._lose = 1.0 - float(value_of(settings, "tau"))
        self._running = value_of(settings, "scope") == "running"
        self._parts: Sequence[float] = layer_parts(value_of(settings, "layer_cost"))
        self._waits_s: Dict[Hashable, float] = {}
        self._streams: Dict[int, List[Tuple[Hashable, _Choices]]] = {}
        self._decider = decider
        self._free_bits, self._free_s = Buckets(decider.given_model).full
        self._token_demands = TokenDemands(self._least_demand, len(decider.model.devices))

    def add(
        self,
        token: Hashable,
        layer: int,
        step: int,
        routing: Routing,
        device_of: NDArray[int64],
        links: Optional[LinkState],
    ) -> None:
        """Add one layer of one token step.

        Args:
            token: What tells the token step from others.
            layer: The layer.
            step: The token step, 0 for the prompt.
            routing: The router's choice.
            device_of: (E,), the device that serves each expert.
            links: The links with the shares in force, each in the best state that it was in from the decision to the
                last answer; ``None`` where nothing shapes them.
        """
        self._waits_s.setdefault(token, 0.0)
        view = LayerView(layer, step, routing, device_of, self._decider.costs(links))
        tau = self._tau(layer)
        if len(routing.index) > 1:
            self._waits_s[token] += self._of_batch(view, links, tau)
            return
        choices = self._of_token(view, links)
        if self._running:
            self._streams.setdefault(layer, []).append((token, choices))
        else:
            lose = (1.0 - tau) * (1 + 1e-6)
            self._waits_s[token] += min(seconds for seconds, lost in choices if lost <= lose)

    def waits_s(self) -> Dict[Hashable, float]:
        """Return, for each token step that was added, the least that its layers could have been waited for."""
        waits_s = dict(self._waits_s)
        for layer, stream in self._streams.items():
            bounds = stream_bound_s([choices for _, choices in stream], self._tau(layer))
            for (token, _), seconds in zip(stream, bounds.tolist()):
                waits_s[token] += seconds
        return waits_s

    def _tau(self, layer: int) -> float:
        part = self._parts[layer] if layer < len(self._parts) else 1.0
        return 1.0 - min(1.0, self._lose * part)

    def _band(self, links: Optional[LinkState], demands: TokenDemands) -> Optional[Band]:
        """Return the band where the policy shares it for each layer."""
        allocator = self._decider.allocator
        if links is None or allocator is None or allocator.period != "layer":
            return None
        start = links.with_shares(allocator.shares_at_start)
        return Band(allocator, start, self._decider.costs, demands)

    def _of_batch(self, view: LayerView, links: Optional[LinkState], tau: float) -> float:
        """Return the bound of a block of several tokens."""
        band = self._band(links, self._decider.token_demands)
        if band is not None:
            free = self._free_bits, self._free_s
            return lower_bound_together_s(view, band, tau, 1.0, *free)
        saved_s = view.costs.bits_s(self._free_bits) + 2 * self._free_s
        return lower_bound_s(view, tau, 1.0, saved_s)

    def _of_token(self, view: LayerView, links: Optional[LinkState]) -> _Choices:
        """Return what a single token could do: seconds and lost mass."""
        band = self._band(links, self._token_demands)
        if band is not None:
            choices = choices_together_s(view, band)
            if choices is None:  # too many ways to try: as if each device had all of the band
                choices = choices_s(view, band.alone_s)
            # What is earned while a message waits was added to every device, see below.
            return [(max(0.0, seconds - 2 * self._free_s), lost) for seconds, lost in choices]
        import numpy as np

        rates = (np.inf, np.inf) if links is None else links.rates_mbit()
        decider, devices = self._decider, len(self._decider.model.devices)
        table = [
            Buckets(decider.given_model)
            .dispatch_s(token_loads(devices, pairs), rates[0], rates[1], 0.0, decider.delay_ms)
            .tolist()
            for pairs in range(1, view.routing.index.shape[1] + 1)
        ]
        return choices_s(view, lambda device, pairs: table[pairs - 1][device])

    def _least_demand(self, loads: Loads) -> Demand:
        """Return what loads ask of links whose buckets are full.

        A bucket lets its bits pass at once, and so, at any rate, what the rate gives in its slack. The latter is time:
        it is taken off what a dispatch takes beside its bits, once for each direction in which something is left to
        wait for. So that no time is below none, both are added to all devices alike.
        """
        import numpy as np

        demand = self._decider.token_demands.of_loads(loads)
        down = np.maximum(demand.downlink_bits - self._free_bits, 0.0)
        up = np.maximum(demand.uplink_bits - self._free_bits, 0.0)
        passed = 2.0 - (down > 0) - (up > 0)
        return Demand(demand.fixed_s + self._free_s * passed * demand.loaded, down, up, demand.loaded)
