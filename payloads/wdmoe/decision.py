"""One layer's decision: which experts are asked, and how the band is shared. The core of every policy.

The base station, its quality passes and the simulator call the same :class:`Decider`. Nothing here has effects: whoever
calls it sends the tokens out and puts the shares in force.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Union

from payloads.wdmoe.allocation.band import Band, TokenDemands
from payloads.wdmoe.allocation.bandwidth import LEAVE_ALONE, Allocator, changed
from payloads.wdmoe.gating import SELECTOR_KINDS, selector_of
from payloads.wdmoe.routing import LayerView, Loads, Routing, Selection, loads_of
from payloads.wdmoe.user_policy import follows_links as user_policy_follows_links
from payloads.wdmoe.user_policy import is_user_kind

if TYPE_CHECKING:
    from numpy import float64, floating, int64
    from numpy.typing import NDArray

    from payloads.station.link_state import LinkState
    from payloads.wdmoe.gating import Selector
    from payloads.wdmoe.latency import Costs, Demand, LatencyModel

    Floats = NDArray[floating[Any]]
    Shares = NDArray[float64]

__all__ = ["Decider", "Decision", "decider_of", "follows_links"]


class Decision:
    """What is done in one layer.

    Attributes:
        selection: Which pairs of a token and an expert are sent out.
        loads: What that asks of the devices.
        shares: (2, D), the shares of the band to be put in force before it is sent, downlink and uplink; ``None``
            where they stay as they are.

    Args:
        selection: As above.
        loads: As above.
        shares: As above.
        predicted_s: (D,), or what works it out: a base station does that after the answers are there.
    """

    __slots__ = ("_predicted_s", "loads", "selection", "shares")

    def __init__(
        self,
        selection: Selection,
        loads: Loads,
        shares: Optional[Shares],
        predicted_s: Union[Floats, Callable[[], Floats]],
    ) -> None:
        self.selection = selection
        self.loads = loads
        self.shares = shares
        self._predicted_s = predicted_s

    @property
    def predicted_s(self) -> Floats:
        """(D,), what each device takes on idle links with these shares, by the latency model; 0 without a load."""
        if callable(self._predicted_s):
            self._predicted_s = self._predicted_s()
        return self._predicted_s


class Decider:
    """A policy at work: an expert selection, a bandwidth allocation, and the model of what things take.

    One for each trial or quality pass, since both may remember what was.

    It decides as if a message's first frame took its time on every leaf. A token bucket lets it pass at once, but the
    next layer's message comes before the bits are earned: what a message costs, it costs sooner or later. What each
    dispatch takes on such a leaf is :class:`payloads.wdmoe.buckets.Buckets`' matter.

    Args:
        selector: The expert selection.
        allocator: The bandwidth allocation; ``None`` where the links are left alone.
        model: What sending takes; its devices are the columns of every array.
        device_of: (L, E), the device that serves each expert of each layer.
        follows_links: Whether the selection looks at what sending takes; where it does not, selection and allocation
            need not take turns.
        delay_ms: (D,) or one number: the one-way delay that each link is given beside its rate.
    """

    def __init__(
        self,
        selector: Selector,
        allocator: Optional[Allocator],
        model: LatencyModel,
        device_of: NDArray[int64],
        *,
        follows_links: bool = True,
        delay_ms: Any = 0.0,
    ) -> None:
        import numpy as np

        self.selector = selector
        self.allocator = allocator
        self.given_model = model
        self.model = model.with_first_frame(True)
        self.device_of = device_of
        self.delay_ms = delay_ms
        self._rounds = allocator.rounds if allocator is not None and follows_links else 1
        if getattr(selector, "sees_band", False):
            self._rounds = 1  # it has looked at what the allocation will do
        self.token_demands = TokenDemands(self._demand, len(model.devices))
        unlimited = np.full(len(model.devices), np.inf)
        self._unshaped = self.model.costs(unlimited, unlimited, delay_ms)

    def begin(self, links: LinkState) -> Optional[Shares]:
        """Return the shares (2, D) that a trial starts with; ``None`` where they stay as they are."""
        return None if self.allocator is None else self.allocator.begin(links)

    def before_token(self, request: str, step: int, links: Optional[LinkState]) -> Optional[Shares]:
        """Return the shares (2, D) for a token step that begins; ``None`` where they stay as they are.

        Args:
            request: The request.
            step: Its token step, 0 for the prompt.
            links: The links as they are; ``None`` where nothing shapes them.
        """
        if self.allocator is None or links is None:
            return None
        return self.allocator.before_token(request, step, links)

    def costs(self, links: Optional[LinkState]) -> Costs:
        """Return what sending to each device takes.

        Args:
            links: The links; ``None`` where nothing shapes them, and only what does not depend on rates counts.
        """
        if links is None:
            return self._unshaped
        downlink_mbit, uplink_mbit = links.rates_mbit()
        return self.model.costs(downlink_mbit, uplink_mbit, self.delay_ms)

    def decide(
        self,
        layer: int,
        step: int,
        routing: Routing,
        links: Optional[LinkState],
        device_of: Optional[NDArray[int64]] = None,
    ) -> Decision:
        """Decide what is sent out in a layer.

        Where the band is shared for each layer, the selection is shown what it would be like for any choice
        (``best_s``). One that looks at the links, but not at that, takes turns with the allocation, each given what the
        other last chose, from the scenario's shares on. Of the pairs that come up, the one with the smallest attention
        waiting latency is taken: the selection keeps its promise of quality in each of them.

        Args:
            layer: The layer.
            step: The token step, 0 for the prompt.
            routing: The router's choice.
            links: The links as they are; ``None`` where nothing shapes them.
            device_of: (E,), the device that serves each expert, where it is not as it always is: an expert that
                several devices hold.
        """
        serving = self.device_of[layer] if device_of is None else device_of
        allocator = self.allocator
        as_they_are = LayerView(layer, step, routing, serving, self.costs(links))
        if allocator is None or links is None or allocator.period != "layer":
            decision = self._without_change(as_they_are)
            if allocator is not None and links is not None:
                allocator.layer(layer, step, as_they_are.costs.demand(decision.loads), links)
            return decision  # shares are given out at other times, if at all
        # Not from the shares in force: a device that the last layer left out has next to none of them, so it would
        # look endless and be left out again. And so a decision depends on its layer and token alone, unless an
        # allocation has to gain something.
        start = links.with_shares(allocator.shares_at_start)
        band = Band(allocator, start, self.costs, self.token_demands)
        decision = self._in_turn(LayerView(layer, step, routing, serving, self.costs(start), band), band)
        assert decision.shares is not None  # each turn shares the band
        if not changed(links.shares, decision.shares):
            selection, loads = decision.selection, decision.loads
            return Decision(selection, loads, None, lambda: as_they_are.costs.dispatch_s(loads))
        if allocator.gain_s > 0:
            kept = self._without_change(as_they_are)
            if kept.predicted_s.max() <= decision.predicted_s.max() + allocator.gain_s:
                return kept
        return decision

    def _without_change(self, view: LayerView) -> Decision:
        """Return the decision that leaves the shares as they are."""
        selection = self.selector.select(view)
        loads = loads_of(selection, view.device_of, len(self.model.devices))
        return Decision(selection, loads, None, lambda: view.costs.dispatch_s(loads))

    def _in_turn(self, view: LayerView, band: Band) -> Decision:
        """Let selection and allocation take turns; return the best pair."""
        best: Optional[Decision] = None
        best_s = float("inf")
        before: Optional[Selection] = None
        for turn in range(1, self._rounds + 1):
            selection = self.selector.select(view)
            if before is not None and _same(selection, before):
                break
            before = selection
            loads = loads_of(selection, view.device_of, len(self.model.devices))
            demand = view.costs.demand(loads)
            one = len(view.routing.index) == 1
            links = band.given_token(loads, demand) if one else band.given(demand)
            costs = self.costs(links)
            predicted_s = costs.demand_s(demand)
            layer_s = float(predicted_s.max())
            if layer_s >= best_s:
                break
            best, best_s = Decision(selection, loads, links.shares, predicted_s), layer_s
            if turn < self._rounds:
                view = view._replace(costs=costs)
        assert best is not None
        return best

    def _demand(self, loads: Loads) -> Demand:
        return self._unshaped.demand(loads)

    @property
    def observe(self) -> Optional[Callable[[int, int, Loads, Floats], None]]:
        """What tells the selection what a layer took; ``None`` where it does not learn from that.

        It is called with the layer, the token step, what was asked, and (D,) how long each device took from the first
        byte sent to the last received, in seconds; NaN where it had no load.
        """
        return getattr(self.selector, "observe", None)


def _same(one: Selection, other: Selection) -> bool:
    """Return whether two selections send the same pairs."""
    return bool((one.keep == other.keep).all() and (one.index == other.index).all())


def follows_links(selection: Mapping[str, Any]) -> bool:
    """Return whether an expert selection looks at what sending takes."""
    if is_user_kind(selection["kind"]):
        return user_policy_follows_links(selection)
    return SELECTOR_KINDS[selection["kind"]].follows_links


def decider_of(
    selection: Mapping[str, Any],
    bandwidth: Mapping[str, Any],
    model: LatencyModel,
    device_of: NDArray[int64],
    links: Optional[LinkState],
    *,
    delay_ms: Any = 0.0,
) -> Decider:
    """Return the decider of a policy's settings.

    Args:
        selection: The settings of its expert selection.
        bandwidth: The settings of its bandwidth allocation.
        model: The latency model.
        device_of: (L, E), the device that serves each expert of each layer.
        links: The links as they are; ``None`` where nothing shapes them: then no bandwidth is allocated.
        delay_ms: (D,) or one number: the one-way delay that each link is given beside its rate.
    """
    alone = links is None or bandwidth["kind"] == LEAVE_ALONE["kind"]
    return Decider(
        selector_of(selection),
        None if alone or links is None else Allocator(bandwidth, links.shares),
        model,
        device_of,
        follows_links=follows_links(selection),
        delay_ms=delay_ms,
    )
