"""What a dispatcher asks before it sends a layer out, and what it keeps of it afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Protocol, Tuple

from payloads.wdmoe.decision import Decision
from payloads.wdmoe.routing import Loads, Routing

if TYPE_CHECKING:
    from numpy import float64, floating, int64
    from numpy.typing import NDArray

    from payloads.station.link_state import LinkState
    from payloads.wire.client import Answer
    from payloads.wire.frames import Result

__all__ = ["Decided", "Decides", "DispatchRow", "Expected", "row_of"]


class Decides(Protocol):
    """What a dispatcher asks: a :class:`payloads.wdmoe.decision.Decider`, or what stands in for one."""

    def before_token(self, request: str, step: int, links: Optional[LinkState]) -> Optional[NDArray[float64]]:
        """Return the shares (2, D) for a token step that begins."""

    def decide(
        self,
        layer: int,
        step: int,
        routing: Routing,
        links: Optional[LinkState],
        device_of: Optional[NDArray[int64]] = None,
    ) -> Decision:
        """Decide what is sent out in a layer."""

    @property
    def observe(self) -> Optional[Callable[[int, int, Loads, NDArray[floating[Any]]], None]]:
        """What hears what a layer took; ``None`` where nobody learns from it."""


class Expected:
    """What the devices were expected to take in one layer.

    All that a dispatch's row keeps of the decision behind it: rows live as long as the trial.

    Attributes:
        seconds: (D,); ``None`` while nobody worked it out.
    """

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: Optional[NDArray[floating[Any]]] = None


class Decided:
    """One layer's decision, for whoever adds them up afterwards.

    Attributes:
        layer: The layer.
        step: The token step, 0 for the prompt.
        routing: The router's choice.
        device_of: (E,), the device that served each expert.
        links: The links before the decision; ``None`` where nothing shapes them.
        decision: What was made of it.
        iteration: The pass through the model that it belongs to.
        sent_ns: When it was sent, on the monotonic clock.
        expected: What the devices were expected to take.
    """

    __slots__ = (
        "decision",
        "device_of",
        "expected",
        "iteration",
        "layer",
        "links",
        "routing",
        "sent_ns",
        "step",
    )

    def __init__(
        self,
        layer: int,
        step: int,
        routing: Routing,
        device_of: NDArray[int64],
        links: Optional[LinkState],
        decision: Decision,
        iteration: int = 0,
    ) -> None:
        self.iteration = iteration
        self.layer = layer
        self.step = step
        self.routing = routing
        self.device_of = device_of
        self.links = links
        self.decision = decision
        self.sent_ns = 0
        self.expected = Expected()

    @property
    def predicted_s(self) -> Optional[NDArray[floating[Any]]]:
        """(D,), what each device was expected to take; ``None`` while nobody worked it out."""
        return self.expected.seconds

    @predicted_s.setter
    def predicted_s(self, seconds: NDArray[floating[Any]]) -> None:
        self.expected.seconds = seconds

    @property
    def links_in_force(self) -> Optional[LinkState]:
        """The links with the shares that were decided on."""
        if self.links is None or self.decision.shares is None:
            return self.links
        return self.links.with_shares(self.decision.shares)


class DispatchRow(NamedTuple):
    """What was seen of one dispatch. The first three stamps are the base station's, the others the device's.

    Attributes:
        request: The request it belongs to; ``None`` where several requests share its iteration.
        step: The token step, 0 for the prompt; ``None`` likewise.
        layer: The layer.
        device: The device.
        tokens: Token rows sent.
        assignments: (token, expert) pairs asked for.
        dropped: Pairs that the router wanted of this device and that it did not get in this layer and step.
        bytes_out: Size of the dispatch's frame.
        bytes_back: Size of the answer's frame.
        sent_ns: It was given to the kernel.
        first_ns: The answer began to arrive.
        done_ns: The answer was complete.
        received_ns: The device had all of it.
        started_ns: The device began to compute.
        computed_ns: The device had computed, and waited for its pace.
        replied_ns: The device gave its answer to the kernel.
        late: Whether the real computation took longer than the pace asked for.
        expected: What its layer was expected to take; ``None`` where nobody decided.
        column: The device's number in its arrays.
        iteration: The pass through the model that it belongs to, from 0 in a trial.
        batch: The requests in that pass.
    """

    request: Optional[str]
    step: Optional[int]
    layer: int
    device: str
    tokens: int
    assignments: int
    dropped: int
    bytes_out: int
    bytes_back: int
    sent_ns: int
    first_ns: int
    done_ns: int
    received_ns: int
    started_ns: int
    computed_ns: int
    replied_ns: int
    late: bool
    expected: Optional[Expected]
    column: int
    iteration: int = 0
    batch: int = 1

    def predicted_ms(self) -> Optional[float]:
        """Return what the latency model expected it to take; ``None`` where nobody worked it out."""
        if self.expected is None or self.expected.seconds is None:
            return None
        return 1e3 * float(self.expected.seconds[self.column])


def row_of(
    whose: Tuple[Optional[str], Optional[int]],
    where: Tuple[int, int],
    device: Tuple[str, int],
    counts: Tuple[int, int, int],
    answer: Answer,
    result: Result,
    expected: Optional[Expected],
) -> DispatchRow:
    """Return the row of a dispatch that was answered.

    Args:
        whose: The request and its token step.
        where: The iteration, and the requests in it.
        device: The device's name and number.
        counts: Token rows sent, pairs asked for, pairs dropped.
        answer: The answer, as the base station saw it.
        result: What the device said.
        expected: What the layer was expected to take; ``None`` where nobody decided.
    """
    return DispatchRow(
        request=whose[0],
        step=whose[1],
        layer=result.layer,
        device=device[0],
        tokens=counts[0],
        assignments=counts[1],
        dropped=counts[2],
        bytes_out=answer.bytes_out,
        bytes_back=answer.bytes_back,
        sent_ns=answer.sent_ns,
        first_ns=answer.first_ns,
        done_ns=answer.done_ns,
        received_ns=result.received_ns,
        started_ns=result.started_ns,
        computed_ns=result.computed_ns,
        replied_ns=result.replied_ns,
        late=result.late,
        expected=expected,
        column=device[1],
        iteration=where[0],
        batch=where[1],
    )
