"""What the base station tells of itself at /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Optional, Sequence, Tuple

from payloads.metrics import Histogram, Metrics
from payloads.wire.client import Answer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["StationMetrics"]

#: From a short prompt on fast links to a long one on slow ones.
REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)


class _Device:
    """What is counted for a device, by the one thread that sends; whoever reads looks at it as it is."""

    __slots__ = ("pairs", "received", "seconds", "sent")

    def __init__(self, seconds: Histogram) -> None:
        self.seconds = seconds
        self.pairs = self.sent = self.received = 0


class StationMetrics:
    """The metrics of a base station; all but :meth:`follow` may be called with a dispatch's hurry.

    Attributes:
        metrics: All of them.
        dropped: Pairs of a token and an expert that the policy left out.
        lost: Pairs that no device answered, since the one that holds the expert was lost.
        rerouted: Pairs that another device answered than the one first thought of.
        prompt_tokens: Tokens of prompts that were read.
        output_tokens: Tokens that were generated.
        first_token: From a request's arrival to its first token, in seconds.
        request: From a request's arrival to its end, in seconds.
    """

    def __init__(self) -> None:
        self.metrics = Metrics()
        counter, histogram = self.metrics.counter, self.metrics.histogram
        self._seconds = histogram(
            "testbed_dispatch_seconds", "From sending a dispatch to its whole answer.", ("device",)
        )
        self._pairs = counter(
            "testbed_pairs_total", "Pairs of a token and an expert that were answered.", ("device",)
        )
        self._bytes = counter(
            "testbed_wire_bytes_total",
            "Bytes of dispatches and their answers, what TLS adds included.",
            ("device", "direction"),
        )
        self._events = counter(
            "testbed_device_events_total",
            "What happened to devices: lost, deadline, refused, rerouted, dropped, waited, unfit, readmitted, failed.",
            ("device", "event"),
        )
        self._requests = counter("testbed_requests_total", "Requests that ended, by how.", ("finish",))
        tokens = counter("testbed_tokens_total", "Tokens.", ("kind",))
        self.prompt_tokens, self.output_tokens = tokens.labels("prompt"), tokens.labels("output")
        causes = counter(
            "testbed_missing_pairs_total",
            "Pairs of a token and an expert that were left out by the policy, or lost with a device.",
            ("cause",),
        )
        self.dropped, self.lost = causes.labels("policy"), causes.labels("loss")
        self.rerouted = counter(
            "testbed_rerouted_pairs_total", "Pairs that another device answered than the first choice."
        ).labels()
        self.first_token = histogram(
            "testbed_first_token_seconds",
            "From a request's arrival to its first token.",
            bounds=REQUEST_BUCKETS_S,
        ).labels()
        self.request = histogram(
            "testbed_request_seconds", "From a request's arrival to its end.", bounds=REQUEST_BUCKETS_S
        ).labels()
        gauge = self.metrics.gauge(
            "testbed_requests", "Requests that are answered, and that wait.", ("state",)
        )
        self._running, self._waiting = gauge.labels("running"), gauge.labels("waiting")
        self._devices: Dict[str, _Device] = {}

    def answered(self, device: str, answer: Answer, pairs: int) -> None:
        """Count the answer of a device to one dispatch."""
        told = self._devices.get(device) or self._begin(device)
        told.seconds.observe((answer.done_ns - answer.sent_ns) * 1e-9)
        told.pairs += pairs
        told.sent += answer.bytes_out
        told.received += answer.bytes_back

    def _begin(self, device: str) -> _Device:
        """Begin to count for a device."""
        told = self._devices[device] = _Device(self._seconds.labels(device))
        self._pairs.labels(device).follow(lambda: told.pairs)
        self._bytes.labels(device, "out").follow(lambda: told.sent)
        self._bytes.labels(device, "in").follow(lambda: told.received)
        return told

    def missed(
        self,
        keep: Optional[NDArray[np.bool_]],
        lost: Optional[NDArray[np.bool_]],
        rerouted: Optional[NDArray[np.bool_]],
    ) -> None:
        """Count what became of a layer's pairs.

        Args:
            keep: (N, k), the pairs that the policy kept; ``None`` for all.
            lost: (N, k), the pairs that nobody answered; ``None`` for none.
            rerouted: (N, k), the pairs that another device was asked for; ``None`` for none.
        """
        if keep is not None:
            self.dropped.add(int(keep.size - keep.sum()))
        if lost is not None:
            self.lost.add(int(lost.sum()))
        if rerouted is not None:
            self.rerouted.add(int(rerouted.sum()))

    def event(self, device: str, event: str) -> None:
        """Count what happened to a device."""
        self._events.labels(device, event).add()

    def generated(self, tokens: int, first_s: Sequence[float]) -> None:
        """Count tokens of an iteration, and what those that are a request's first took, in seconds."""
        self.output_tokens.add(tokens)
        for seconds in first_s:
            self.first_token.observe(seconds)

    def ended(self, finish: str, seconds: float) -> None:
        """Count a request that ended.

        Args:
            finish: How: ``stop``, ``length``, ``deadline``, ``abandoned`` or ``failed``.
            seconds: What it took.
        """
        self._requests.labels(finish).add()
        self.request.observe(seconds)

    def follow(self, load: Callable[[], Tuple[int, int]]) -> None:
        """Tell from now on how many requests are at work and how many wait, as ``load`` says."""
        self._running.follow(lambda: load()[0])
        self._waiting.follow(lambda: load()[1])

    def text(self) -> str:
        """Return everything in the exposition format."""
        return self.metrics.text()
