"""What a rate means for one message: frames, token buckets and the time that they should take. Pure.

A rate is a frame rate: every byte that the interface sees counts, Ethernet header included. At MTU 1500 a
TCP segment carries 1448 bytes in a frame of 1514, so 0.956 of the rate is left for what TCP delivers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

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
    "netem_limit_frames",
    "refill_s",
    "takes_first_frame",
]

MIN_RATE_MBIT = 0.01
MAX_RATE_MBIT = 10_000.0
ETHERNET_HEADER_BYTES = 14
#: IPv4, TCP and its time stamps.
_HEADERS_BYTES = 20 + 20 + 12

#: The bucket holds one frame and what the rate gives in this time, which has to cover the lateness of the
#: kernel's timers: too little and the rate is not reached, too much and short messages pass too early.
#: Measured on Linux 6.18 in a busy two-core virtual machine (docs/links.md): 0 us loses 2.5 % of 20 Mbit/s
#: and 17 % of 100 Mbit/s, 25 us under 0.5 %, 50 us nothing; 100 us sends 4 KiB one frame early.
DEFAULT_SLACK_US = 50.0

#: A queue this long never drops what an MoE layer sends: an uplink has no back-pressure through the ifb, so a
#: whole message may wait in it.
_MIN_LIMIT_BYTES = 4 << 20
_LIMIT_S = 0.25
_SMALL_FRAME_BYTES = 512


@dataclass(frozen=True)
class Framing:
    """How TCP cuts a message into frames.

    Attributes:
        mtu: The interface's MTU in bytes.
        payload_bytes: What of the message a full frame carries.
    """

    mtu: int = 1500
    payload_bytes: int = 1500 - _HEADERS_BYTES

    @classmethod
    def of_mtu(cls, mtu: int) -> Framing:
        """Return the framing of TCP with time stamps at an MTU."""
        return cls(mtu, mtu - _HEADERS_BYTES)

    @property
    def frame_bytes(self) -> int:
        """A full frame as the queueing discipline counts it."""
        return self.mtu + ETHERNET_HEADER_BYTES

    @property
    def header_bytes(self) -> int:
        """The bytes of a frame that carry nothing of the message."""
        return self.frame_bytes - self.payload_bytes

    def frames(self, message_bytes: int) -> int:
        """Return how many frames a message takes."""
        return -(-message_bytes // self.payload_bytes)

    def wire_bytes(self, message_bytes: int) -> int:
        """Return the bytes of all frames of a message."""
        return message_bytes + self.header_bytes * self.frames(message_bytes)

    def first_frame_bytes(self, message_bytes: int) -> int:
        """Return the bytes of a message's first frame."""
        return min(message_bytes, self.payload_bytes) + self.header_bytes


ETHERNET = Framing()


def frame_ms(rate_mbit: float, framing: Framing = ETHERNET) -> float:
    """Return how long a full frame takes at a rate, in milliseconds."""
    return framing.frame_bytes * 8 / rate_mbit / 1e3


def expected_ms(
    message_bytes: int, rate_mbit: float, framing: Framing = ETHERNET, *, first_frame: bool = False
) -> float:
    """Return how long a message should take on an idle link, in milliseconds, beside any one-way delay.

    A token bucket lets the first frame of an idle link pass at once and each later one when its bytes have
    been earned, so a message takes the time of all its frames but the first. The bucket's slack is left out
    on purpose: it is an error of the shaper, and an expectation that contained the bucket would find any
    bucket right. netem and the user-space line hold every frame for its own time, the first one too.

    Args:
        message_bytes: The message's size, above TCP.
        rate_mbit: The frame rate of the link in Mbit/s.
        framing: How the message is cut.
        first_frame: Whether the leaf delays the first frame too (:func:`takes_first_frame`).
    """
    if message_bytes <= 0:
        return 0.0
    timed = framing.wire_bytes(message_bytes)
    if not first_frame:
        timed -= framing.first_frame_bytes(message_bytes)
    return timed * 8 / rate_mbit / 1e3


def takes_first_frame(backend: Optional[str]) -> bool:
    """Return whether a backend delays the first frame of an idle link by its own size too.

    Args:
        backend: Its name in the records, such as ``bs-htb-netem``.
    """
    return backend is not None and backend.endswith(("netem", "line"))


def judge(
    expected: float, measured: float, rate_mbit: float, tolerance: float, framing: Framing = ETHERNET
) -> bool:
    """Return whether a measured time (ms) is within ``tolerance`` of the expected one, or one frame of it."""
    return abs(measured - expected) <= max(tolerance * expected, frame_ms(rate_mbit, framing))


def bucket_bytes(rate_mbit: float, mtu: int = 1500, slack_us: float = DEFAULT_SLACK_US) -> int:
    """Return the size of a link's token bucket: one frame and ``slack_us`` microseconds of data.

    A packet that is longer than the bucket is cut into frames by the leaf; this is what makes the rate hold
    for short messages, which TCP hands over in one piece of up to 64 KiB.
    """
    return mtu + ETHERNET_HEADER_BYTES + int(rate_mbit * slack_us / 8) + 1


def limit_bytes(rate_mbit: float, mtu: int = 1500, slack_us: float = DEFAULT_SLACK_US) -> int:
    """Return how many bytes may wait in a link's queue."""
    waiting = max(_MIN_LIMIT_BYTES, int(rate_mbit * 1e6 / 8 * _LIMIT_S))
    return waiting + bucket_bytes(rate_mbit, mtu, slack_us)


def netem_limit_frames(rate_mbit: float, delay_ms: float, jitter_ms: float) -> int:
    """Return how many frames may wait in a netem: what is under way for its delay, beside what queues.

    netem counts frames and not bytes, so that small ones are assumed.
    """
    under_way = rate_mbit * (delay_ms + jitter_ms) * 1e3 / 8
    return int((limit_bytes(rate_mbit) + under_way) / _SMALL_FRAME_BYTES) + 1


def refill_s(rate_mbit: float, mtu: int = 1500, slack_us: float = DEFAULT_SLACK_US) -> float:
    """Return how long an empty bucket takes to fill, in seconds."""
    return bucket_bytes(rate_mbit, mtu, slack_us) * 8 / rate_mbit / 1e6
