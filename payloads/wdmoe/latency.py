"""What a layer of experts takes: the latency model that the base station decides by and the simulator runs on.

The time of one dispatch, one layer's tokens sent to device d and their answer, is

    t_d = round trip + downlink bits / downlink rate + computation + uplink bits / uplink rate

and the attention waiting latency of the layer is the largest t_d: the next attention needs every token. Without any of
:data:`TERMS` it is the model of the WDMoE papers (a reconstruction, as no text of theirs says more than its outline):
``t_k = L_comm / R_down + L_comm / R_up + L_comp / C_k`` for each token on device k, ``L_comm`` the bits of one row,
``L_comp`` the operations of one expert. Each term adds what a testbed shows beside it:

    round-trip     one exchange of the smallest message with its software, the link's delay, and the software of a row
    framing        frame headers, the heads and lists of the protocol, and what a token bucket lets pass at once
    memory         an expert's weights are read once for a dispatch, however few tokens want it
    base-station   what the base station itself takes for each token step, and to share the band

Plain arithmetic: nothing here knows where a rate comes from. Checking a campaign file imports this and no NumPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from payloads.linkd.model import DEFAULT_SLACK_US, Framing
from payloads.wdmoe.costs import Costs, Demand, message_bytes
from payloads.wdmoe.pace import ExpertShape
from payloads.wire.connection import RECORD_BYTES, RECORD_OVERHEAD_BYTES
from payloads.wire.frames import DISPATCH_HEAD_BYTES, DTYPE_CODES, HEADER_BYTES, RESULT_HEAD_BYTES, row_bytes

if TYPE_CHECKING:
    from numpy import floating
    from numpy.typing import NDArray

    from payloads.wdmoe.routing import Loads

    Floats = NDArray[floating[Any]]

__all__ = [
    "TERMS",
    "Costs",
    "Demand",
    "DeviceSpeed",
    "LatencyError",
    "LatencyModel",
    "check_terms",
    "message_bytes",
]

TERMS = ("round-trip", "framing", "memory", "base-station")
"""What the model holds beside the papers' own; each can be left out."""


class LatencyError(ValueError):
    """A latency model is wrong; the message is one clear line."""


class DeviceSpeed(NamedTuple):
    """How fast one device answers.

    Attributes:
        ops_per_s: Operations a second.
        bytes_per_s: Bytes a second from memory; ``None`` where memory never binds.
        fixed_ms: What a dispatch takes beside its bytes and its computation: the round trip of an unshaped link and the
            software at both ends. ``None`` where nobody measured it yet; it counts as 0 until a ping fills it.
        pair_ms: What the software at both ends takes for each pair of a token and an expert.
    """

    ops_per_s: float
    bytes_per_s: Optional[float]
    fixed_ms: Optional[float]
    pair_ms: float = 0.0


@dataclass(frozen=True)
class LatencyModel:
    """The latency model of one model on one fleet.

    Attributes:
        devices: The devices' names; their order is that of every (D,) array.
        shape: The size of an expert, and of an element of its rows.
        speeds: How fast each device answers.
        terms: Which of :data:`TERMS` the model holds.
        bs_layer_ms: What a layer takes at the base station in each token step: its own computation, and what it waits
            for answers longer than such answers usually take.
        bs_row_ms: What it computes in each layer for each row of the batch.
        bs_step_ms: What it computes for a token step outside the layers.
        mtu: MTU of the links.
        first_frame: Whether the first frame of a message takes its time too (:func:`payloads.linkd.model.expected_ms`);
            otherwise a full token bucket lets it pass, with what the rate gives in the bucket's slack.
        bs_dispatch_ms: What a layer takes longer for each device after the first, as they are sent to in turn.
        bs_allocate_ms: What a layer or a token step takes longer where the band is shared anew for it: deciding on the
            shares, and putting them in force.
        activations: Element type of the rows on the wire; ``None`` for that of the computation.
        tls: Whether messages travel in records of TLS; what these add belongs to the term ``framing``.

    Raises:
        LatencyError: Something is not a number that it can be.
    """

    devices: Tuple[str, ...]
    shape: ExpertShape
    speeds: Tuple[DeviceSpeed, ...]
    terms: FrozenSet[str] = frozenset(TERMS)
    bs_layer_ms: float = 0.0
    bs_row_ms: float = 0.0
    bs_step_ms: float = 0.0
    mtu: int = 1500
    first_frame: bool = True
    bs_dispatch_ms: float = 0.0
    bs_allocate_ms: float = 0.0
    activations: Optional[str] = None
    tls: bool = False

    def __post_init__(self) -> None:
        if not self.devices or len(set(self.devices)) != len(self.devices):
            raise LatencyError("devices: at least one, and each once, was expected")
        if len(self.speeds) != len(self.devices):
            raise LatencyError(f"{len(self.devices)} devices and {len(self.speeds)} speeds")
        for problem in check_terms(sorted(self.terms)):
            raise LatencyError(f"terms: {problem}")
        for name, value in zip(ExpertShape._fields, self.shape):
            if value is not None:
                _number(f"shape.{name}", value, above=0)
        for device, speed in zip(self.devices, self.speeds):
            _number(f"{device}.ops_per_s", speed.ops_per_s, above=0)
            if speed.bytes_per_s is not None:
                _number(f"{device}.bytes_per_s", speed.bytes_per_s, above=0)
            if speed.fixed_ms is not None:
                _number(f"{device}.fixed_ms", speed.fixed_ms)
            _number(f"{device}.pair_ms", speed.pair_ms)
        for name in ("bs_layer_ms", "bs_row_ms", "bs_step_ms", "bs_dispatch_ms", "bs_allocate_ms"):
            _number(name, getattr(self, name))
        if isinstance(self.mtu, bool) or not isinstance(self.mtu, int) or not 576 <= self.mtu <= 65535:
            raise LatencyError(f"mtu: a whole number from 576 to 65535 was expected, not {self.mtu!r}")
        if self.activations is not None and self.activations not in DTYPE_CODES:
            raise LatencyError(
                f"activations: one of {', '.join(DTYPE_CODES)} was expected, not {self.activations!r}"
            )

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on the wire, either way."""
        if self.activations is None:
            return self.shape.hidden * self.shape.element_bytes
        return row_bytes(self.activations, self.shape.hidden)

    def costs(self, downlink_mbit: Any, uplink_mbit: Any, delay_ms: Any = 0.0) -> Costs:
        """Return what sending takes at some rates.

        Args:
            downlink_mbit: (D,), frame rates to the devices in Mbit/s; ``inf`` where nothing limits them.
            uplink_mbit: (D,), frame rates from them.
            delay_ms: (D,) or one number, the delay that is asked of each link, one way; it counts twice.
        """
        import numpy as np

        trip_s = 0.002 * np.asarray(delay_ms) if "round-trip" in self.terms else 0.0
        return Costs(self, 1e-6 / np.asarray(downlink_mbit), 1e-6 / np.asarray(uplink_mbit), trip_s)

    def demand(self, loads: Loads, delay_ms: Any = 0.0) -> Demand:
        """Return what a layer asks of the links, and what it takes beside them.

        Args:
            loads: What is sent where.
            delay_ms: (D,) or one number, the delay that is asked of each link, one way.
        """
        import numpy as np

        delay_s = 0.002 * np.asarray(delay_ms) if "round-trip" in self.terms else 0.0
        return self._demand(loads, self._held.trip_s + delay_s)

    def station_s(self, rows: int, layers: int) -> float:
        """Return what the base station itself computes in one token step.

        Args:
            rows: Tokens of the batch: the prompt's length in step 0, else 1.
            layers: Layers of the model.
        """
        if "base-station" not in self.terms:
            return 0.0
        return (self.bs_step_ms + layers * (self.bs_layer_ms + self.bs_row_ms * rows)) / 1e3

    def sending_s(self, loads: Loads) -> float:
        """Return what a layer takes longer than its slowest dispatch, as the devices are sent to in turn."""
        if "base-station" not in self.terms:
            return 0.0
        return self.bs_dispatch_ms / 1e3 * max(0, int((loads.pairs > 0).sum()) - 1)

    def allocating_s(self) -> float:
        """Return what it takes the base station to share the band anew, once."""
        return self.bs_allocate_ms / 1e3 if "base-station" in self.terms else 0.0

    def with_fixed_ms(self, fixed_ms: Mapping[str, float]) -> LatencyModel:
        """Return the model with the given devices' ``fixed_ms``, as where a ping has measured it."""
        speeds = (
            speed._replace(fixed_ms=float(fixed_ms[name])) if name in fixed_ms else speed
            for name, speed in zip(self.devices, self.speeds)
        )
        return replace(self, speeds=tuple(speeds))

    def with_first_frame(self, first_frame: bool) -> LatencyModel:
        """Return the model for leaves that delay the first frame of a message too, or that do not."""
        return replace(self, first_frame=bool(first_frame))

    def with_terms(self, terms: Iterable[str]) -> LatencyModel:
        """Return the model with these terms only."""
        return replace(self, terms=frozenset(terms))

    def with_activations(self, activations: Optional[str]) -> LatencyModel:
        """Return the model for rows that travel in this element type; ``None`` for that of the computation."""
        return replace(self, activations=activations)

    def with_tls(self, tls: bool) -> LatencyModel:
        """Return the model for messages that travel in records of TLS, or that do not."""
        return replace(self, tls=bool(tls))

    def with_shape(self, shape: ExpertShape) -> LatencyModel:
        """Return the model for experts of another size."""
        return replace(self, shape=shape)

    def limited(self, devices: Iterable[str]) -> LatencyModel:
        """Return the model of the given devices only, in the order given.

        Raises:
            LatencyError: It holds no such device.
        """
        names = tuple(devices)
        speeds = dict(zip(self.devices, self.speeds))
        for name in names:
            if name not in speeds:
                raise LatencyError(f"the latency model has no device {name!r}; it has {', '.join(speeds)}")
        return replace(self, devices=names, speeds=tuple(speeds[name] for name in names))

    def as_json(self) -> Dict[str, Any]:
        """Return the model as plain data, for :meth:`from_json`."""
        return {
            "devices": [{"name": name, **speed._asdict()} for name, speed in zip(self.devices, self.speeds)],
            "shape": self.shape._asdict(),
            "terms": [term for term in TERMS if term in self.terms],
            "bs_layer_ms": self.bs_layer_ms,
            "bs_row_ms": self.bs_row_ms,
            "bs_step_ms": self.bs_step_ms,
            "mtu": self.mtu,
            "first_frame": self.first_frame,
            "bs_dispatch_ms": self.bs_dispatch_ms,
            "bs_allocate_ms": self.bs_allocate_ms,
            "activations": self.activations,
            "tls": self.tls,
        }

    @classmethod
    def from_json(cls, value: Any) -> LatencyModel:
        """Build a model from plain data; keys that are not the model's own are left alone.

        Raises:
            LatencyError: Something is missing or wrong.
        """
        try:
            speeds = [dict(speed) for speed in value["devices"]]
            names = tuple(str(speed.pop("name")) for speed in speeds)
            return cls(
                names,
                ExpertShape(**value["shape"]),
                tuple(DeviceSpeed(**speed) for speed in speeds),
                frozenset(value["terms"]),
                value["bs_layer_ms"],
                value["bs_row_ms"],
                value["bs_step_ms"],
                value["mtu"],
                bool(value["first_frame"]),
                value.get("bs_dispatch_ms", 0.0),
                value.get("bs_allocate_ms", 0.0),
                value.get("activations"),
                bool(value.get("tls", False)),
            )
        except KeyError as error:
            raise LatencyError(f"a latency model: {error.args[0]} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, LatencyError):
                raise
            raise LatencyError(f"this is no latency model: {error}") from error

    @cached_property
    def _held(self) -> _Held:
        return _Held.of(self)

    def _demand(self, loads: Loads, trip_s: Any, down_limited: Any = 1, up_limited: Any = 1) -> Demand:
        import numpy as np

        held, devices = self._held, len(self.devices)
        loaded = loads.pairs > 0
        work_s = loads.counts * held.token_s[loads.device_of]
        if held.reads:
            # Activations travel through memory for each token, an expert's weights once.
            touched = (loads.counts > 0) * held.weights_s[loads.device_of]
            touched += loads.counts * held.activations_s[loads.device_of]
            work_s = np.maximum(work_s, touched)
        compute_s = np.bincount(loads.device_of, weights=work_s, minlength=devices)
        trip_s = trip_s + held.pair_s * loads.pairs
        out, back = self.wire_bits(loads)
        if held.framing is not None and not self.first_frame:
            first = 8.0 * held.framing.frame_bytes
            out, back = np.maximum(out - first, 0.0), np.maximum(back - first, 0.0)
            if held.slack_s:
                saved = (out > 0) * down_limited + (back > 0) * (1.0 * up_limited)
                trip_s = np.maximum(trip_s - held.slack_s * saved, 0.0)
        return Demand(trip_s * loaded + compute_s, out, back, loaded)

    def wire_bits(self, loads: Loads) -> Tuple[Floats, Floats]:
        """Return the bits of all frames to and from each device, (D,) both: what a link's counters would see."""
        framing = self._held.framing
        if framing is None:
            row_bits = 8.0 * self.row_bytes
            return row_bits * loads.tokens, row_bits * loads.pairs
        out, back = message_bytes(loads, self.row_bytes, self.tls)
        out = out + framing.header_bytes * -(-out // framing.payload_bytes)
        back = back + framing.header_bytes * -(-back // framing.payload_bytes)
        return 8.0 * out, 8.0 * back


class _Held(NamedTuple):
    """What a model's costs are made from, worked out once. Seconds, bits, and arrays over the devices."""

    trip_s: Floats
    pair_s: Floats
    token_s: Floats
    weights_s: Floats
    activations_s: Floats
    expert_s: Floats
    alone_s: Floats
    reads: bool
    framing: Optional[Framing]
    slack_s: float
    row_bits: float
    empty_down_bits: float
    empty_up_bits: float

    @classmethod
    def of(cls, model: LatencyModel) -> _Held:
        import numpy as np

        shape, speeds = model.shape, model.speeds
        trips = "round-trip" in model.terms
        fixed_ms = [(speed.fixed_ms or 0.0) if trips else 0.0 for speed in speeds]
        pair_s = np.array([speed.pair_ms if trips else 0.0 for speed in speeds]) / 1e3
        token_s = np.array([shape.operations(1) / speed.ops_per_s for speed in speeds])
        # Seconds for a byte; 0 where memory does not bind.
        reads = "memory" in model.terms
        byte_s = np.array([1 / speed.bytes_per_s if reads and speed.bytes_per_s else 0.0 for speed in speeds])
        weights_s = byte_s * shape.traffic_bytes(0)
        activations_s = byte_s * (shape.traffic_bytes(1) - shape.traffic_bytes(0))
        expert_s = np.maximum(token_s, weights_s + activations_s)
        framing = Framing.of_mtu(model.mtu) if "framing" in model.terms else None
        row_bits = 8.0 * model.row_bytes
        empty_out = empty_back = 0.0
        if framing is not None:
            row_bits *= framing.frame_bytes / framing.payload_bytes
            record = RECORD_OVERHEAD_BYTES if model.tls else 0
            row_bits *= 1 + record / RECORD_BYTES
            if model.first_frame:
                empty_out = framing.wire_bytes(HEADER_BYTES + DISPATCH_HEAD_BYTES + record)
                empty_back = framing.wire_bytes(HEADER_BYTES + RESULT_HEAD_BYTES + record)
        return cls(
            np.array(fixed_ms) / 1e3,
            pair_s,
            token_s,
            weights_s,
            activations_s,
            expert_s,
            expert_s + pair_s,
            bool(byte_s.any()),
            framing,
            0.0 if framing is None or model.first_frame or not trips else DEFAULT_SLACK_US / 1e6,
            row_bits,
            8.0 * empty_out,
            8.0 * empty_back,
        )


def check_terms(terms: Any) -> List[str]:
    """Return what is wrong with a list of terms, one line each; an empty list if nothing is."""
    if isinstance(terms, (str, Mapping)) or not isinstance(terms, Iterable):
        return [f"a list of {', '.join(TERMS)} was expected, not {terms!r}"]
    return [f"there are {', '.join(TERMS)}, not {term!r}" for term in terms if term not in TERMS]


def _number(name: str, value: Any, above: Optional[float] = None) -> None:
    """Refuse what is not a number of at least 0, or above ``above``."""
    fits = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    if not fits or value < 0 or (above is not None and not value > above):
        wanted = "a number of at least 0" if above is None else f"a number above {above:g}"
        raise LatencyError(f"{name}: {wanted} was expected, not {value!r}")
