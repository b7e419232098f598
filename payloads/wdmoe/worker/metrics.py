"""What a worker tells of itself at /metrics."""

from __future__ import annotations

from typing import Any, Mapping

from payloads.metrics import Metrics
from payloads.metrics_http import follow_server
from payloads.wire.server import Server

__all__ = ["WorkerMetrics"]


class WorkerMetrics:
    """The metrics of a worker.

    Attributes:
        metrics: All of them.
        dispatch: From a dispatch's last byte to its answer, in seconds.
        compute: What the computation took, without what a pace adds.
        pairs: Pairs of a token and an expert that were computed.
        not_held: Dispatches for an expert that is not here.
        failed: Dispatches whose computation failed.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.metrics = Metrics()
        histogram, counter = self.metrics.histogram, self.metrics.counter
        self.dispatch = histogram(
            "testbed_worker_dispatch_seconds", "From the last byte of a dispatch to its answer."
        ).labels()
        self.compute = histogram("testbed_worker_compute_seconds", "Computation of a dispatch.").labels()
        self.pairs = counter(
            "testbed_worker_pairs_total", "Pairs of a token and an expert that were computed."
        ).labels()
        self._errors = counter(
            "testbed_worker_errors_total",
            "Dispatches that were answered with an error, and frames that broke the format, by cause.",
            ("cause",),
        )
        self.not_held, self.failed = self._errors.labels("not_held"), self._errors.labels("failed")
        gauge = self.metrics.gauge
        gauge("testbed_worker_experts", "Experts that are held.").labels().set(len(description["experts"]))
        told = ("model", "manifest", "dtype", "weights")
        info = gauge("testbed_worker_info", "What is served; always 1.", told)
        info.labels(*(str(description.get(name) or "") for name in told)).set(1)

    def answered(self, took_ns: int, worked_ns: int, pairs: int) -> None:
        """Count a dispatch.

        Args:
            took_ns: From its last byte to its answer.
            worked_ns: Its computation.
            pairs: Its pairs of a token and an expert.
        """
        self.dispatch.observe(took_ns * 1e-9)
        self.compute.observe(worked_ns * 1e-9)
        self.pairs.add(pairs)

    def follow(self, server: Server) -> None:
        """Tell what the server counts from now on."""
        counts = server.counts
        self._errors.labels("frame").follow(lambda: counts.broken)
        follow_server(self.metrics, "testbed_worker", server)
