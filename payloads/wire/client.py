"""The asking end of the data plane: one connection to each device, all of them driven from one epoll loop."""

from __future__ import annotations

import select
import socket
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

from payloads.wire import auth
from payloads.wire.frames import HEADER_BYTES, Buffer, FrameError, Header, Kind, unpack_error
from payloads.wire.sockets import ConnectionClosedError, Receiver, send_some, tune

__all__ = ["Answer", "Channel", "DeviceError", "DeviceLostError", "DeviceRefusedError", "Exchange", "Request"]

CONNECT_TIMEOUT_S = 5.0
#: A device that makes no progress for so long is given up, even if its kernel still acknowledges.
STALL_TIMEOUT_S = 120.0


class DeviceError(Exception):
    """Something failed with one device.

    Attributes:
        device: The device's name.
        reason: What failed.
    """

    def __init__(self, device: str, reason: str, text: str) -> None:
        super().__init__(text)
        self.device = device
        self.reason = reason


class DeviceLostError(DeviceError):
    """The connection to the device is gone or could not be made."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, reason, f"device {device} lost: {reason}")


class DeviceRefusedError(DeviceError):
    """The device answered with an error; its connection is still good."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(device, reason, f"device {device}: {reason}")


class Channel:
    """An authenticated connection to one device.

    Attributes:
        name: The device's name.
        address: Its address.
        port: The worker's port.
        bytes_out: All bytes ever sent on this channel's connections, the handshakes included.
        bytes_back: All bytes ever received on them.
    """

    def __init__(self, name: str, address: str, port: int) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.bytes_out = 0
        self.bytes_back = 0
        self._socket: Optional[socket.socket] = None
        self._receiver = Receiver()
        self._sequence = 0
        self._holds_frame = False

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as known."""
        return self._socket is not None

    def next_sequence(self) -> int:
        """Return the sequence number for the next request."""
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return self._sequence

    def _connect(self, key_file: Path, timeout_s: float) -> socket.socket:
        deadline = time.monotonic() + timeout_s
        place = f"{self.address}:{self.port}"
        try:
            connection = socket.create_connection((self.address, self.port), timeout_s)
        except OSError as error:
            raise DeviceLostError(self.name, f"cannot connect to {place}: {_reason(error)}") from error
        try:
            tune(connection)
            self._authenticate(connection, auth.read_key(key_file), deadline)
            connection.setblocking(False)
        except (OSError, auth.AuthError) as error:
            connection.close()
            raise DeviceLostError(self.name, f"handshake with {place}: {_reason(error)}") from error
        except BaseException:
            connection.close()
            raise
        self._socket = connection
        self._receiver = Receiver()
        self._holds_frame = False
        return connection

    def _authenticate(self, connection: socket.socket, key: bytes, deadline: float) -> None:
        nonce = auth.new_nonce()
        self._send_whole(connection, auth.pack_hello(nonce), deadline)
        challenge = self._receive_whole(connection, auth.CHALLENGE_BYTES, deadline)
        secrets = auth.unpack_challenge(key, nonce, challenge)
        self._send_whole(connection, auth.pack_proof(secrets), deadline)
        if self._receive_whole(connection, len(auth.WELCOME), deadline) != auth.WELCOME:
            raise auth.AuthError("it did not welcome us")

    def _send_whole(self, connection: socket.socket, data: bytes, deadline: float) -> None:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        connection.sendall(data)
        self.bytes_out += len(data)

    def _receive_whole(self, connection: socket.socket, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            part = connection.recv(size - len(data))
            if not part:
                raise auth.AuthError("it closed the connection; do both ends hold the same key?")
            data += part
            self.bytes_back += len(part)
        return data

    def _release(self) -> None:
        if self._holds_frame:
            self._receiver.release()
            self._holds_frame = False


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

    def connect(self, channel: Channel, key_file: Path, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect a channel and authenticate both ends.

        Raises:
            DeviceLostError: It cannot be reached, or one end does not hold the key.
        """
        self.disconnect(channel)
        descriptor = channel._connect(key_file, timeout_s).fileno()
        self._channels[descriptor] = channel
        self._epoll.register(descriptor, select.EPOLLIN)

    def disconnect(self, channel: Channel) -> None:
        """Close a channel's connection, if there is one."""
        connection = channel._socket
        if connection is None:
            return
        self._channels.pop(connection.fileno(), None)
        self._epoll.unregister(connection.fileno())
        connection.close()
        channel._socket = None

    def close(self) -> None:
        """Close everything."""
        for channel in list(self._channels.values()):
            self.disconnect(channel)
        self._epoll.close()

    def ask(self, requests: Sequence[Request], kind: int) -> List[Answer]:
        """Send all requests, wait for all answers, and return them in the order of the requests.

        Args:
            requests: At most one for each channel.
            kind: The kind of frame that every answer must have.

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
            while waiting:
                events = self._epoll.poll(self.stall_timeout_s)
                now_ns = time.monotonic_ns()
                if not events:
                    name = next(iter(waiting.values())).channel.name
                    raise DeviceLostError(name, f"no answer within {self.stall_timeout_s:g} s")
                for descriptor, event in events:
                    pending = waiting.get(descriptor)
                    if pending is None:
                        raise self._unasked(descriptor)
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
        return [answer for answer in answers if answer is not None]

    def _send(self, request: Request, position: int, waiting: Dict[int, _Pending]) -> None:
        channel = request.channel
        connection = channel._socket
        if connection is None:
            raise DeviceLostError(channel.name, "not connected")
        channel._release()
        size = sum(map(len, request.buffers))
        pending = _Pending(channel, position, request.sequence, size, time.monotonic_ns())
        descriptor = connection.fileno()
        waiting[descriptor] = pending
        try:
            pending.rest = send_some(connection, request.buffers)
        except OSError as error:
            raise self._lost(channel, error) from error
        channel.bytes_out += size
        if pending.rest:
            self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)

    def _send_rest(self, descriptor: int, pending: _Pending) -> None:
        connection = pending.channel._socket
        assert connection is not None
        try:
            pending.rest = send_some(connection, pending.rest)
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
        return DeviceLostError(channel.name, _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, (ConnectionClosedError, ConnectionResetError, BrokenPipeError)):
        return "connection closed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "no answer in time" if isinstance(error, socket.timeout) else str(error)
