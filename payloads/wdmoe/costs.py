"""What a layer's dispatches take at given rates: sizes of messages, demand on the links, seconds. Plain arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Tuple

from payloads.wire.connection import RECORD_OVERHEAD_BYTES, record_bytes
from payloads.wire.frames import DISPATCH_HEAD_BYTES, HEADER_BYTES, RESULT_HEAD_BYTES

if TYPE_CHECKING:
    from numpy import bool_, floating, int64
    from numpy.typing import NDArray

    from payloads.wdmoe.latency import LatencyModel
    from payloads.wdmoe.routing import Loads

    Floats = NDArray[floating[Any]]

__all__ = ["Costs", "Demand", "message_bytes"]

_LIST_ENTRY_BYTES = 2  # expert numbers, row counts and row numbers, see payloads.wire.frames


class Demand(NamedTuple):
    """What a layer asks of the links, and what it takes beside them.

    Attributes:
        fixed_s: (D,), round trip and computation; 0 where nothing is sent.
        downlink_bits: (D,), bits that the downlink's rate has to carry.
        uplink_bits: (D,), bits that the uplink's rate has to carry.
        loaded: (D,), whether the device is sent anything.
    """

    fixed_s: Floats
    downlink_bits: Floats
    uplink_bits: Floats
    loaded: NDArray[bool_]


class Costs:
    """What sending to each device takes at the rates in force. Cheap to make: one for each layer will do.

    Attributes:
        fixed_s: (D,), a dispatch with no row at all.
        down_s: (D,), one more row to the device.
        up_s: (D,), one more row from it.
        token_s: (D,), the operations of one more pair.
        expert_s: (D,), the computation of a pair whose expert nothing else asks for: its weights are read for it alone.
        pair_s: (D,), one more pair with its row both ways and an expert of its own: the papers' t_k.
    """

    __slots__ = (
        "_down_s_bit",
        "_model",
        "_trip_s",
        "_up_s_bit",
        "down_s",
        "expert_s",
        "fixed_s",
        "pair_s",
        "token_s",
        "up_s",
    )

    def __init__(self, model: LatencyModel, down_s_bit: Floats, up_s_bit: Floats, delay_s: Any) -> None:
        held = model._held
        self._model = model
        self._down_s_bit, self._up_s_bit = down_s_bit, up_s_bit
        self._trip_s = held.trip_s + delay_s
        self.fixed_s = self._trip_s + held.empty_down_bits * down_s_bit + held.empty_up_bits * up_s_bit
        self.down_s = held.row_bits * down_s_bit
        self.up_s = held.row_bits * up_s_bit
        self.token_s = held.token_s
        self.expert_s = held.expert_s
        self.pair_s = self.down_s + self.up_s + held.alone_s

    def dispatch_s(self, loads: Loads) -> Floats:
        """Return (D,) how long each device's dispatch takes, 0 where it is sent nothing."""
        return self.demand_s(self.demand(loads))

    def demand_s(self, demand: Demand) -> Floats:
        """Return (D,) how long dispatches take that ask this of the links: for who has :meth:`demand` at hand."""
        seconds: Floats = (
            demand.fixed_s + demand.downlink_bits * self._down_s_bit + demand.uplink_bits * self._up_s_bit
        )
        return seconds

    def layer_s(self, loads: Loads) -> float:
        """Return the attention waiting latency: the time of the slowest device."""
        return float(self.dispatch_s(loads).max())

    def parts_s(self, counts: NDArray[int64], device_of: NDArray[int64]) -> Floats:
        """Return (E,) each token's equal part of its expert's computation.

        Args:
            counts: (E,), tokens of each expert.
            device_of: (E,), its device.
        """
        import numpy as np

        held = self._model._held
        reading_s = held.weights_s[device_of] / np.maximum(counts, 1) + held.activations_s[device_of]
        parts: Floats = np.maximum(held.token_s[device_of], reading_s)
        return parts

    def tokens_s(self, device: int, tokens: int) -> float:
        """Return what a device takes more when some tokens want one more expert of it, their rows included."""
        held = self._model._held
        reading_s = held.weights_s[device] + tokens * held.activations_s[device]
        rows_s = tokens * (self.down_s[device] + self.up_s[device] + held.pair_s[device])
        return float(rows_s + max(tokens * held.token_s[device], reading_s))

    def rounding_s(self) -> Floats:
        """Return (D,) what it may take at most that messages are cut into whole frames: a header both ways.

        And into whole records of TLS, where they are.
        """
        framing = self._model._held.framing
        bits = 0.0 if framing is None else 8.0 * framing.header_bytes
        if framing is not None and self._model.tls:
            bits += 8.0 * RECORD_OVERHEAD_BYTES * framing.frame_bytes / framing.payload_bytes
        return bits * (self._down_s_bit + self._up_s_bit)

    def entry_s(self) -> Floats:
        """Return (D,) the seconds of one entry of the lists that go with the rows of a dispatch."""
        framing = self._model._held.framing
        bytes_each = (
            0.0 if framing is None else _LIST_ENTRY_BYTES * framing.frame_bytes / framing.payload_bytes
        )
        return 8.0 * bytes_each * self._down_s_bit

    def sizes(self) -> Tuple[float, float, Floats, Floats]:
        """Return the bits of a row and of a message's head, (D,) seconds of a round trip and of a pair's software."""
        held = self._model._held
        head_bits = min(held.empty_down_bits, held.empty_up_bits)
        return held.row_bits, head_bits, self._trip_s, held.pair_s

    def bits_s(self, bits: float) -> Floats:
        """Return (D,) the seconds of so many bits, once in each direction."""
        return bits * (self._down_s_bit + self._up_s_bit)

    def demand(self, loads: Loads) -> Demand:
        """Return what the layer asks of the links, whatever their rates are."""
        return self._model._demand(loads, self._trip_s, self._down_s_bit > 0, self._up_s_bit > 0)


def message_bytes(loads: Loads, row_bytes: int, tls: bool = False) -> Tuple[NDArray[int64], NDArray[int64]]:
    """Return the bytes of the frames to and from each device, as :mod:`payloads.wire.frames` packs them.

    Args:
        loads: What is sent where.
        row_bytes: Bytes of a row on the wire (:attr:`payloads.wdmoe.latency.LatencyModel.row_bytes`).
        tls: Whether they travel in records of TLS; these are counted then.

    Returns:
        (D,) dispatches and (D,) results; 0 where nothing is sent.
    """
    loaded = loads.pairs > 0
    lists = _LIST_ENTRY_BYTES * (2 * loads.experts + loads.pairs)
    out = loaded * (HEADER_BYTES + DISPATCH_HEAD_BYTES) + loads.tokens * row_bytes + lists
    back = loaded * (HEADER_BYTES + RESULT_HEAD_BYTES) + loads.pairs * row_bytes
    return (record_bytes(out), record_bytes(back)) if tls else (out, back)
