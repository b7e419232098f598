"""What is asked of devices at once, and what may come of it."""

from __future__ import annotations

import time
from typing import Callable, Dict, List, NamedTuple, Sequence, Union

from payloads.wire.channel import Channel, DeviceError, DeviceLostError
from payloads.wire.connection import Connection
from payloads.wire.frames import Buffer

__all__ = ["Answer", "Asking", "DeviceLateError", "Patience", "Pending", "Request"]


class DeviceLateError(DeviceLostError):
    """The device did not answer in time; its connection was closed, so that the answer can never be taken."""


class Request(NamedTuple):
    """A frame to send to one device.

    Attributes:
        channel: The device's channel.
        sequence: The sequence number in the frame.
        buffers: The frame in pieces; they are sent without being joined.
    """

    channel: Channel
    sequence: int
    buffers: Sequence[Buffer]


class Answer(NamedTuple):
    """A device's answer. Stamps are this machine's monotonic nanoseconds.

    Attributes:
        payload: The answer's payload, good until the channel is asked again.
        sent_ns: The request was given to the kernel.
        first_ns: The answer's first bytes were there.
        done_ns: The whole answer was there.
        bytes_out: What the request took on the wire: its frame, and what TLS adds.
        bytes_back: What the answer took on the wire.
    """

    payload: memoryview
    sent_ns: int
    first_ns: int
    done_ns: int
    bytes_out: int
    bytes_back: int


class Patience(NamedTuple):
    """How long answers may take.

    Attributes:
        floor_s: Nobody is late before this.
        deadlines_s: Returns what each request may take, in seconds since it was sent; called at most once in an
            asking, and only when ``floor_s`` has passed: working it out may cost more than most answers do.
    """

    floor_s: float
    deadlines_s: Callable[[], Sequence[float]]


class Pending:
    """A request on its way. One is made for each dispatch, so most of it is left to the class until it changes."""

    first_ns = 0
    rest: Sequence[memoryview] = ()
    due_s = float("inf")

    def __init__(self, channel: Channel, connection: Connection, position: int, sequence: int) -> None:
        self.channel = channel
        self.connection = connection
        self.position = position
        self.sequence = sequence
        self.out, self.back = connection.wire_out, connection.wire_back  # what had been on the wire before
        self.sent_ns = self.heard_ns = time.monotonic_ns()


class Asking:
    """The requests of one :meth:`Exchange.gather` and what became of them."""

    __slots__ = ("hasty", "kind", "outcomes", "waiting")

    def __init__(self, count: int, kind: int, hasty: bool) -> None:
        self.kind = kind
        self.hasty = hasty
        self.outcomes: List[Union[Answer, DeviceError, None]] = [None] * count
        self.waiting: Dict[int, Pending] = {}
