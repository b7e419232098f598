"""An expert selection of one's own: drop a token's least wanted expert where its device is far slower than the others.

    testbed policy check campaigns/policies/thrifty.py:Thrifty --set share=0.2

In a campaign:

    policies:
      - name: thrifty
        selection: {kind: policies/thrifty.py:Thrifty, share: 0.2, times: 2.0}
"""

from __future__ import annotations

import numpy as np

from payloads.wdmoe.gating import finish, mass_of
from payloads.wdmoe.routing import LayerView, Selection


class Thrifty:
    """Drops pairs of small mass on slow devices.

    Args:
        share: A pair may go if its share of the scores of its token's experts is below this.
        times: A device is slow if a pair takes it so many times as long as the layer's median device.
    """

    def __init__(self, share: float = 0.2, times: float = 2.0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share: 0 to 1 was expected, not {share!r}")
        self.share, self.times = share, times

    def select(self, view: LayerView) -> Selection:
        """Choose for the tokens of one layer."""
        seconds = view.costs.fixed_s + view.costs.pair_s
        slow = seconds > self.times * np.median(seconds[np.unique(view.device_of)])
        small = mass_of(view.routing) < self.share
        keep = ~(small & slow[view.device_of[view.routing.index]])
        # Keeps each token's last expert, and scales the weights that are left.
        return finish(view.routing, keep, {"renormalise": "sum"})
