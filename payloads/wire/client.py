"""The asking end of the data plane: one connection to each device, all of them driven from one epoll loop."""

from __future__ import annotations

import select
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

from payloads.wire.channel import Channel, DeviceError, DeviceLostError, DeviceRefusedError, reason_of
from payloads.wire.frames import HEADER_BYTES, Buffer, FrameError, Header, Kind, unpack_error

__all__ = ["Answer", "Channel", "DeviceError", "DeviceLostError", "DeviceRefusedError", "Exchange", "Request"]

CONNECT_TIMEOUT_S = 5.0
#: A device that makes no progress for so long is given up, even if its kernel still acknowledges.
STALL_TIMEOUT_S = 120.0


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
        bytes_out: Size of the request's frame.
        bytes_back: Size of the answer's frame.
    """

    payload: memoryview
    sent_ns: int
    first_ns: int
    done_ns: int
    bytes_out: int
    bytes_back: int


class _Pending:
    """A request on its way."""

    __slots__ = ("channel", "first_ns", "header", "position", "rest", "sent_ns", "sequence", "size")

    def __init__(self, channel: Channel, position: int, sequence: int, size: int, sent_ns: int) -> None:
        self.channel = channel
        self.position = position
        self.sequence = sequence
        self.size = size
        self.sent_ns = sent_ns
        self.first_ns = 0
        self.rest: List[memoryview] = []
        self.header: Optional[Header] = None


class Exchange:
    """Asks several devices at once and waits for all of their answers.

    Attributes:
        stall_timeout_s: How long nothing may happen before a device is given up.
    """

    def __init__(self, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
        self.stall_timeout_s = stall_timeout_s
        self._epoll = select.epoll()
        self._channels: Dict[int, Channel] = {}
        self._followed: Dict[int, Callable[[], None]] = {}

    def follow(self, descriptor: int, call: Callable[[], None]) -> None:
        """Call ``call`` whenever a descriptor is readable while answers are awaited; an error of it ends the asking."""
        self._followed[descriptor] = call
        self._epoll.register(descriptor, select.EPOLLIN)

    def unfollow(self, descriptor: int) -> None:
        """Follow a descriptor no longer; it must still be open."""
        if self._followed.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def connect(self, channel: Channel, key_file: Path, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect a channel and authenticate both ends.

        Raises:
            DeviceLostError: It cannot be reached, or one end does not hold the key.
        """
        self.disconnect(channel)
        descriptor = channel._connect(key_file, timeout_s).fileno()
        self._channels[descriptor] = channel
        self._epoll.register(descriptor, select.EPOLLIN)
        try:
            channel._pace_again()
        except DeviceLostError:
            self.disconnect(channel)
            raise

    def disconnect(self, channel: Channel) -> None:
        """Close a channel's connection, if there is one."""
        connection = channel._socket
        if connection is None:
            return
        self._channels.pop(connection.fileno(), None)
        self._epoll.unregister(connection.fileno())
        channel._resent = channel.resent()
        connection.close()
        channel._socket = None

    def close(self) -> None:
        """Close everything."""
        for channel in list(self._channels.values()):
            self.disconnect(channel)
        self._epoll.close()

    def ask(
        self, requests: Sequence[Request], kind: int, meanwhile: Optional[Callable[[], None]] = None
    ) -> List[Answer]:
        """Send all requests, wait for all answers, and return them in the order of the requests.

        Args:
            requests: At most one for each channel.
            kind: The kind of frame that every answer must have.
            meanwhile: Work to be done while the devices do theirs: once the kernel has all requests; where it
                does not take them at once, after the last answer, so that none of them waits for this.

        Raises:
            DeviceLostError: A connection failed; all connections with an open request are closed then,
                since an answer to this question must never be taken for one to the next.
            DeviceRefusedError: A device answered with an error; the others' answers were awaited.
        """
        answers: List[Optional[Answer]] = [None] * len(requests)
        waiting: Dict[int, _Pending] = {}
        refusals: List[DeviceRefusedError] = []
        try:
            for position, request in enumerate(requests):
                self._send(request, position, waiting)
            if meanwhile is not None and not any(pending.rest for pending in waiting.values()):
                meanwhile()
                meanwhile = None
            heard_s = time.monotonic()
            while waiting:
                events = self._epoll.poll(max(0.0, heard_s + self.stall_timeout_s - time.monotonic()))
                now_ns = time.monotonic_ns()
                if not events:
                    name = next(iter(waiting.values())).channel.name
                    raise DeviceLostError(name, f"no answer within {self.stall_timeout_s:g} s")
                for descriptor, event in events:
                    pending = waiting.get(descriptor)
                    if pending is None:
                        if descriptor in self._followed:
                            self._followed[descriptor]()
                            continue
                        raise self._unasked(descriptor)
                    heard_s = now_ns / 1e9
                    if event & select.EPOLLOUT:
                        self._send_rest(descriptor, pending)
                    if event & ~select.EPOLLOUT and self._receive(pending, now_ns):
                        del waiting[descriptor]
                        answers[pending.position] = self._answer(pending, kind, refusals)
        except BaseException:
            for pending in waiting.values():
                self.disconnect(pending.channel)
            raise
        if refusals:
            raise refusals[0]
        if meanwhile is not None:
            meanwhile()
        return [answer for answer in answers if answer is not None]

    def _send(self, request: Request, position: int, waiting: Dict[int, _Pending]) -> None:
        channel = request.channel
        connection = channel._socket
        if connection is None:
            raise DeviceLostError(channel.name, "not connected")
        channel._release()
        size = sum(map(len, request.buffers))
        buffers = request.buffers
        if channel._prelude:
            buffers = [channel._prelude, *buffers]
            channel.bytes_out += len(channel._prelude)
            channel._prelude = b""
        pending = _Pending(channel, position, request.sequence, size, time.monotonic_ns())
        descriptor = connection.fileno()
        waiting[descriptor] = pending
        try:
            pending.rest = channel._send(buffers)
        except OSError as error:
            raise self._lost(channel, error) from error
        channel.bytes_out += size
        if pending.rest:
            self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)

    def _send_rest(self, descriptor: int, pending: _Pending) -> None:
        try:
            pending.rest = pending.channel._send(pending.rest)
        except OSError as error:
            raise self._lost(pending.channel, error) from error
        if not pending.rest:
            self._epoll.modify(descriptor, select.EPOLLIN)

    def _receive(self, pending: _Pending, now_ns: int) -> bool:
        """Receive what is there; return whether the answer is complete."""
        channel = pending.channel
        connection = channel._socket
        assert connection is not None
        if not pending.first_ns:
            pending.first_ns = now_ns
        try:
            pending.header = channel._receiver.receive(connection)
        except (OSError, FrameError) as error:
            raise self._lost(channel, error) from error
        return pending.header is not None

    def _answer(self, pending: _Pending, kind: int, refusals: List[DeviceRefusedError]) -> Optional[Answer]:
        done_ns = time.monotonic_ns()
        channel, header = pending.channel, pending.header
        assert header is not None
        channel._holds_frame = True
        size = header.length + HEADER_BYTES
        channel.bytes_back += size
        if header.sequence != pending.sequence or header.kind not in (kind, Kind.ERROR) or pending.rest:
            self.disconnect(channel)
            raise DeviceLostError(channel.name, "it answered something that was not asked")
        payload = channel._receiver.payload()
        if header.kind == Kind.ERROR:
            refusals.append(DeviceRefusedError(channel.name, unpack_error(payload)))
            return None
        return Answer(payload, pending.sent_ns, pending.first_ns, done_ns, pending.size, size)

    def _unasked(self, descriptor: int) -> DeviceLostError:
        channel = self._channels[descriptor]
        connection = channel._socket
        assert connection is not None
        try:
            channel._release()
            channel._receiver.receive(connection)
            error: Exception = FrameError("it sent something that was not asked for")
        except (OSError, FrameError) as failure:
            error = failure
        return self._lost(channel, error)

    def _lost(self, channel: Channel, error: Exception) -> DeviceLostError:
        self.disconnect(channel)
        return DeviceLostError(channel.name, reason_of(error))
