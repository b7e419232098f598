"""One authenticated connection to a device: its handshake, its pace, and what was counted on it."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from payloads.wire import auth
from payloads.wire.frames import Buffer, pack_pace
from payloads.wire.pacing import retransmitted_bytes, send_paced, set_pace
from payloads.wire.sockets import ConnectionClosedError, Receiver, send_some, tune

__all__ = ["Channel", "DeviceError", "DeviceLostError", "DeviceRefusedError", "reason_of"]


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
        device_resent: Payload that the device's TCP has sent again on this connection, as it last said; ``None``
            where its kernel does not tell.
    """

    def __init__(self, name: str, address: str, port: int) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.bytes_out = 0
        self.bytes_back = 0
        self.device_resent: Optional[int] = 0
        self._resent: Tuple[Optional[int], Optional[int]] = (0, 0)  # on the connections before this one
        self._pace: Optional[Tuple[Optional[float], Optional[float]]] = None
        self._piece = 0
        self._prelude = b""
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

    def pace(self, downlink_mbit: Optional[float], uplink_mbit: Optional[float]) -> None:
        """Let both ends send no faster than these frame rates; ``None`` for no limit.

        This end follows at once; the device is told in front of the next request, so before it answers that.

        Raises:
            DeviceLostError: The connection is gone.
        """
        self._pace = (downlink_mbit, uplink_mbit)
        connection = self._socket
        if connection is None:
            return
        try:
            self._piece = set_pace(connection, downlink_mbit)
        except OSError as error:
            raise DeviceLostError(self.name, f"its connection cannot be paced: {reason_of(error)}") from error
        self._prelude = pack_pace(uplink_mbit)

    def _pace_again(self) -> None:
        """Give a new connection the pace of the one before it."""
        if self._pace is not None:
            self.pace(*self._pace)

    def resent(self) -> Tuple[Optional[int], Optional[int]]:
        """Return the payload that TCP has ever sent again to the device and from it, as far as known."""
        here: Optional[int] = 0
        if self._socket is not None:
            try:
                here = retransmitted_bytes(self._socket)
            except OSError:
                here = None  # the connection failed, and its count went with it
        there = self.device_resent if self._socket is not None else 0
        return _plus(self._resent[0], here), _plus(self._resent[1], there)

    def _send(self, buffers: Sequence[Buffer]) -> List[memoryview]:
        """Give buffers to the kernel; return what it did not take.

        Raises:
            OSError: The connection failed.
        """
        assert self._socket is not None
        if self._piece:
            return send_paced(self._socket, buffers, self._piece)
        return send_some(self._socket, buffers)

    def _connect(self, key_file: Path, timeout_s: float) -> socket.socket:
        deadline = time.monotonic() + timeout_s
        place = f"{self.address}:{self.port}"
        try:
            connection = socket.create_connection((self.address, self.port), timeout_s)
        except OSError as error:
            raise DeviceLostError(self.name, f"cannot connect to {place}: {reason_of(error)}") from error
        try:
            tune(connection)
            self._authenticate(connection, auth.read_key(key_file), deadline)
            connection.setblocking(False)
        except (OSError, auth.AuthError) as error:
            connection.close()
            raise DeviceLostError(self.name, f"handshake with {place}: {reason_of(error)}") from error
        except BaseException:
            connection.close()
            raise
        self._socket = connection
        self._receiver = Receiver()
        self._holds_frame = False
        self.device_resent = 0
        self._piece, self._prelude = 0, b""
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


def reason_of(error: Exception) -> str:
    """Return a few words on why a connection failed."""
    if isinstance(error, (ConnectionClosedError, ConnectionResetError, BrokenPipeError)):
        return "connection closed"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "no answer in time" if isinstance(error, socket.timeout) else str(error)


def _plus(first: Optional[int], second: Optional[int]) -> Optional[int]:
    return None if first is None or second is None else first + second
