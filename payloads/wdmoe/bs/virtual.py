"""A policy that decides under links which only exist on paper: what a quality pass lets the dispatcher ask.

Likelihoods do not depend on how long anything takes, only on which experts answer. So a quality pass leaves the real
links unshaped, and its policy sees the scenario's channel on a clock of tokens: the i-th token that the pass decides
on sees block i of the channel, which starts again at its end. What a policy would measure, the latency model predicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Optional

from payloads.wdmoe.decision import Decider, Decision
from payloads.wdmoe.routing import Routing, Selection, loads_of
from payloads.wdmoe.tally import weigh

if TYPE_CHECKING:
    from numpy import floating, int64
    from numpy.typing import NDArray

    from payloads.station.link_state import LinkState, VirtualLinks

__all__ = ["VirtualDecider"]


class VirtualDecider:
    """Has the interface of a :class:`payloads.wdmoe.decision.Decider`, and leaves the real links alone.

    Args:
        decider: The policy.
        links: The scenario's links; ``None`` where nothing shapes them.
        tokenwise: Whether each token is a batch of its own for the selection. All are sent out together even so: no
            token's answer depends on what is decided for a later one, so a whole text is read as if it were decoded.

    Attributes:
        kept: Gate mass that was sent since :meth:`begin_text`, summed over tokens and layers.
        asked: Gate mass that the router asked for, likewise.
        activations: Element type of the rows on the wire; ``None`` for that of the computation.
    """

    #: Nobody learns from what was measured: it was measured on other links.
    observe = None

    def __init__(self, decider: Decider, links: Optional[VirtualLinks], tokenwise: bool) -> None:
        self._decider = decider
        self._links = links
        self._tokenwise = tokenwise
        self._first = self._length = 0
        self.kept = self.asked = 0.0
        self.activations = decider.model.activations
        if links is not None:
            self._give(decider.begin(links.at_block(0)), "start of the pass")

    def begin_text(self, tokens: int) -> None:
        """Begin the next text; the clock goes on where the one before ended.

        Args:
            tokens: How many tokens of it are decided on.
        """
        self._first += self._length
        self._length = tokens if self._tokenwise else 1
        self.kept = self.asked = 0.0

    def before_token(self, request: str, step: int, links: Optional[LinkState]) -> None:
        """Let the policy share the virtual band; the real links, ``links``, are neither looked at nor changed."""
        if self._links is not None:
            shares = self._decider.before_token(request, step, self._links.at_block(self._first + step))
            self._give(shares, f"step {step} of {request}")

    def decide(
        self,
        layer: int,
        step: int,
        routing: Routing,
        links: Optional[LinkState],
        device_of: Optional[NDArray[int64]] = None,
    ) -> Decision:
        """Decide as the policy does; see :meth:`payloads.wdmoe.decision.Decider.decide`.

        Returns:
            The selection for all tokens. No shares, and nothing predicted (NaN): the pass runs on other links.
        """
        import numpy as np

        tokens = len(routing.index)
        if self._tokenwise and tokens > 1:
            made = [self._decide(layer, n, _row(routing, n), device_of) for n in range(tokens)]
        else:
            made = [self._decide(layer, step, routing, device_of)]
        selection = _together(routing, [decision.selection for decision in made])
        devices = len(self._decider.model.devices)
        serving = self._decider.device_of[layer] if device_of is None else device_of
        self.kept += float(weigh(routing, selection, serving, devices).mass.sum())
        self.asked += tokens
        return Decision(selection, loads_of(selection, serving, devices), None, np.full(devices, np.nan))

    def _decide(
        self, layer: int, step: int, routing: Routing, device_of: Optional[NDArray[int64]]
    ) -> Decision:
        import numpy as np

        links: Optional[LinkState] = None
        if self._links is not None:
            links = self._links.at_block(self._first + (step if self._tokenwise else 0))
        decision = self._decider.decide(layer, step, routing, links, device_of)
        self._give(decision.shares, f"layer {layer} step {step}")
        if self._decider.observe is not None:
            seconds = np.where(decision.loads.pairs > 0, decision.predicted_s, np.nan)
            self._decider.observe(layer, step, decision.loads, seconds)
        return decision

    def _give(self, shares: Optional[NDArray[floating[Any]]], why: str) -> None:
        if shares is not None and self._links is not None:
            self._links.give(shares, why)


def _row(routing: Routing, number: int) -> Routing:
    row = slice(number, number + 1)
    return Routing(routing.index[row], routing.weights[row], routing.scores[row])


def _together(routing: Routing, selections: List[Selection]) -> Selection:
    """Return one selection of all tokens; where it is the router's own choice, with the router's own arrays."""
    import numpy as np

    if len(selections) == 1:
        return selections[0]
    index, keep, weights = (np.concatenate(parts) for parts in zip(*selections))
    return Selection(
        routing.index if np.array_equal(index, routing.index) else index,
        keep,
        routing.weights if np.array_equal(weights, routing.weights) else weights,
    )
