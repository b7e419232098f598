"""Token buckets over time: what a link has saved or still owes when the next message comes. On a virtual clock.

:class:`payloads.wdmoe.costs.Costs` takes every link to be idle and its bucket full, as before a single message. In a
run the next layer follows within a millisecond or two: a bucket that a long message has emptied holds the next one
back until its bytes are earned. On a slow link that is most of a short message's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Tuple

from payloads.linkd.model import DEFAULT_SLACK_US, Framing

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from payloads.wdmoe.latency import LatencyModel
    from payloads.wdmoe.routing import Loads

    Floats = NDArray[floating[Any]]

__all__ = ["Buckets"]


class Buckets:
    """The buckets of all links in both directions, full at first.

    Where the leaf delays the first frame too, or where framing is no term of the model, there is nothing to remember.

    Args:
        model: The latency model.
    """

    def __init__(self, model: LatencyModel) -> None:
        import numpy as np

        # All bits of a message, the first frame's too: what the bucket has saved is counted here.
        self._whole = model.with_first_frame(True)
        self._frame_bits = 8.0 * Framing.of_mtu(model.mtu).frame_bytes
        self._there = np.full((2, len(model.devices)), np.inf)
        self._at_s = np.zeros((2, len(model.devices)))
        self._idle = model.first_frame or "framing" not in model.terms

    @property
    def full(self) -> Tuple[float, float]:
        """What a full bucket lets pass at once: bits, and the seconds whose bits pass besides; 0 without buckets."""
        return (0.0, 0.0) if self._idle else (self._frame_bits, DEFAULT_SLACK_US / 1e6)

    def dispatch_s(
        self, loads: Loads, downlink_mbit: Any, uplink_mbit: Any, now_s: float, delay_ms: Any = 0.0
    ) -> Floats:
        """Send a layer's dispatches and return (D,) how long each takes, 0 where nothing is sent.

        Args:
            loads: What is sent where.
            downlink_mbit: (D,), frame rates to the devices in Mbit/s.
            uplink_mbit: (D,), frame rates from them.
            now_s: When they are sent; it never goes back.
            delay_ms: (D,) or one number, the delay that is asked of each link, one way.
        """
        import numpy as np

        if self._idle:
            return self._whole.costs(downlink_mbit, uplink_mbit, delay_ms).dispatch_s(loads)
        demand, loaded = self._whole.demand(loads, delay_ms), loads.pairs > 0
        down_s = self._take(0, demand.downlink_bits, np.asarray(downlink_mbit) * 1e6, now_s, loaded)
        seconds = demand.fixed_s + down_s
        back_s = now_s + seconds
        seconds += self._take(1, demand.uplink_bits, np.asarray(uplink_mbit) * 1e6, back_s, loaded)
        return seconds

    def _take(self, row: int, bits: Floats, bit_s: Floats, start_s: Any, loaded: Any) -> Floats:
        """Take a message's bits out of the buckets of one direction; return how long the links hold it back."""
        import numpy as np

        there, at_s = self._there[row], self._at_s[row]
        with np.errstate(invalid="ignore"):  # no time at no limit: the bucket is full as it was
            earned = np.nan_to_num((start_s - at_s) * bit_s, nan=0.0)
        full = self._frame_bits + DEFAULT_SLACK_US / 1e6 * bit_s
        there = np.minimum(full, there + np.maximum(earned, 0.0))
        wait_s: Floats = np.maximum(bits - there, 0.0) / bit_s
        self._there[row] = np.where(loaded, np.maximum(there - bits, 0.0), self._there[row])
        self._at_s[row] = np.where(loaded, start_s + wait_s, at_s)
        held_s: Floats = wait_s * loaded
        return held_s
