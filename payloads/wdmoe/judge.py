"""What is worked out of a trial's decisions when nothing is timed: after each answer, between two prompts."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence

import numpy as np

from payloads.wdmoe.bounds import bounds_of
from payloads.wdmoe.buckets import Buckets
from payloads.wdmoe.decision import Decider
from payloads.wdmoe.dispatch import Decided
from payloads.wdmoe.tally import Tally

__all__ = ["Judge"]


class Judge:
    """Adds up a trial's decisions, and compares them with what the latency model says.

    Attributes:
        tally: What the policy made of the router's choices, warm-ups left out.
        bounds: The least that the devices could have been waited for; ``None`` for a policy that promises nothing.

    Args:
        decider: Who decides.
        selection: The settings of its expert selection.
        devices: The devices' names, in the order of the columns.
    """

    def __init__(self, decider: Decider, selection: Mapping[str, Any], devices: Sequence[str]) -> None:
        self.tally = Tally(devices)
        self.bounds = bounds_of(selection, decider)
        self._decider = decider
        self._buckets = Buckets(decider.given_model)

    def add(self, one: Decided, warmup: bool, after: Optional[Decided] = None) -> None:
        """Take a decision that was carried out; the next one is later.

        Args:
            one: The decision; what its dispatches were expected to take is put into it. Bounds are kept by its
                iteration.
            warmup: Whether it was made for warm-ups.
            after: The next decision: its links are those that the last answer may have met.
        """
        links = one.links_in_force
        rates = (np.inf, np.inf) if links is None else links.rates_mbit()
        one.predicted_s = self._buckets.dispatch_s(
            one.decision.loads, rates[0], rates[1], one.sent_ns / 1e9, self._decider.delay_ms
        )
        if self.bounds is not None:
            if links is not None and after is not None and after.links is not None:
                links = links.with_states(np.maximum(links.states, after.links.states))
            self.bounds.add(one.iteration, one.layer, one.step, one.routing, one.device_of, links)
        if not warmup:
            self.tally.add(one.layer, one.step, one.routing, one.decision.selection, one.device_of)
