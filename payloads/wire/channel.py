"""One authenticated connection to a device: its handshake, its pace, and what was counted on it."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Optional, Tuple

from payloads.wire.auth import AuthError
from payloads.wire.connection import Connection
from payloads.wire.credentials import Credentials, complete
from payloads.wire.frames import pack_pace
from payloads.wire.sockets import ConnectionClosedError, Receiver, tune
from payloads.wire.tls import refusal

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
        connection: The connection, where there is one.
        device_resent: Payload that the device's TCP has sent again on this connection, as it last said; ``None``
            where its kernel does not tell.
    """

    def __init__(self, name: str, address: str, port: int) -> None:
        self.name = name
        self.address = address
        self.port = port
        self.connection: Optional[Connection] = None
        self.device_resent: Optional[int] = 0
        # On the connections before this one.
        self._wire_out, self._wire_back = 0, 0
        self._resent: Tuple[Optional[int], Optional[int]] = (0, 0)
        self._pace: Optional[Tuple[Optional[float], Optional[float]]] = None
        self._prelude = b""
        self._receiver = Receiver()
        self._sequence = 0

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as known."""
        return self.connection is not None

    @property
    def bytes_out(self) -> int:
        """All bytes ever sent on this channel's connections, handshakes and what TLS adds included."""
        return self._wire_out + (self.connection.wire_out if self.connection else 0)

    @property
    def bytes_back(self) -> int:
        """All bytes ever received on them."""
        return self._wire_back + (self.connection.wire_back if self.connection else 0)

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
        if self.connection is None:
            return
        try:
            self.connection.set_pace(downlink_mbit)
        except OSError as error:
            raise DeviceLostError(self.name, f"its connection cannot be paced: {reason_of(error)}") from error
        self._prelude = pack_pace(uplink_mbit)

    def resent(self) -> Tuple[Optional[int], Optional[int]]:
        """Return the payload that TCP has ever sent again to the device and from it, as far as known."""
        here: Optional[int] = 0
        if self.connection is not None:
            try:
                here = self.connection.retransmitted_bytes()
            except OSError:
                here = None  # the connection failed, and its count went with it
        there = self.device_resent if self.connection is not None else 0
        return _plus(self._resent[0], here), _plus(self._resent[1], there)

    def connect(self, credentials: Credentials, timeout_s: float) -> None:
        """Connect to the device and authenticate both ends, at the pace of the connection before this one.

        Raises:
            DeviceLostError: It cannot be reached, or one end did not prove itself.
        """
        deadline = time.monotonic() + timeout_s
        place = f"{self.address}:{self.port}"
        try:
            connection = socket.create_connection((self.address, self.port), timeout_s)
        except OSError as error:
            raise DeviceLostError(self.name, f"cannot connect to {place}: {reason_of(error)}") from error
        handshake = None
        try:
            tune(connection)
            connection.setblocking(False)
            handshake = credentials.client(connection, self.name)
            complete(handshake, deadline)
        except BaseException as error:
            if handshake is not None:
                self._count(handshake.connection)
            connection.close()
            if isinstance(error, (OSError, AuthError)):
                raise DeviceLostError(self.name, f"handshake with {place}: {reason_of(error)}") from error
            raise
        self._take(handshake.connection)

    def take_over(self, other: Channel) -> None:
        """Go on with the connection that another channel of the same device made, and count what that one counted.

        Raises:
            DeviceLostError: The connection is gone.
        """
        self.drop()
        connection, receiver, device_resent = other.connection, other._receiver, other.device_resent
        self._wire_out, self._wire_back = self._wire_out + other._wire_out, self._wire_back + other._wire_back
        other._wire_out = other._wire_back = 0
        self._resent = _plus(self._resent[0], other._resent[0]), _plus(self._resent[1], other._resent[1])
        other._resent = (0, 0)
        other.connection = None
        if connection is None:
            raise DeviceLostError(self.name, "not connected")
        self._take(connection)
        self._receiver, self.device_resent = receiver, device_resent

    def _take(self, connection: Connection) -> None:
        self.connection = connection
        self._receiver = Receiver()
        self.device_resent = 0
        self._prelude = b""
        if self._pace is not None:
            try:
                self.pace(*self._pace)
            except DeviceLostError:
                self.drop()
                raise

    def drop(self) -> None:
        """Close the connection, if there is one; what was counted on it stays counted."""
        connection = self.connection
        if connection is None:
            return
        self._resent = self.resent()
        self._count(connection)
        self.connection = None
        connection.close()

    def _count(self, connection: Connection) -> None:
        self._wire_out += connection.wire_out
        self._wire_back += connection.wire_back


def reason_of(error: Exception) -> str:
    """Return a few words on why a connection failed."""
    if isinstance(error, (ConnectionClosedError, ConnectionResetError, BrokenPipeError)):
        return "connection closed"
    if isinstance(error, ssl.SSLError):
        return refusal(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "no answer in time" if isinstance(error, socket.timeout) else str(error)


def _plus(first: Optional[int], second: Optional[int]) -> Optional[int]:
    return None if first is None or second is None else first + second
