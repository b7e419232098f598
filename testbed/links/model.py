"""What a rate means for one message: the link daemon's own mathematics, so that both expect the same."""

from __future__ import annotations

from payloads.linkd.model import (
    DEFAULT_SLACK_US,
    MAX_RATE_MBIT,
    MIN_RATE_MBIT,
    Framing,
    bucket_bytes,
    expected_ms,
    frame_ms,
    judge,
    limit_bytes,
    refill_s,
)

__all__ = [
    "DEFAULT_SLACK_US",
    "MAX_RATE_MBIT",
    "MIN_RATE_MBIT",
    "Framing",
    "bucket_bytes",
    "expected_ms",
    "frame_ms",
    "judge",
    "limit_bytes",
    "refill_s",
]
