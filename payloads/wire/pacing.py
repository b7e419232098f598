"""Pacing of one TCP socket by its own kernel, and what TCP sent twice. Linux; no root is needed for either.

``SO_MAX_PACING_RATE`` bounds the rate at which a socket gives payload to the network: the kernel puts ``length /
rate`` of time between packets, where ``length`` is their payload without any header (``tcp_update_skb_after_send``
in net/ipv4/tcp_output.c, Linux 4.20 and later). Two things follow.

- A frame rate has to be scaled by the payload's part of a full frame. Frames that are not full come out a little
  too slow or too fast by the difference of their headers.
- The kernel's unit is the packet that TCP builds, up to 64 KiB, and the first of them leaves at once: alone, the
  option lets an 8 KiB message at 5 Mbit/s through fifty times too fast. So a paced message is handed over in
  pieces of one or a few segments, each closed with ``MSG_EOR``, which keeps the kernel from joining them.

What is left: the first piece leaves at once, and after a pause the kernel takes up to half of its time off the wait
for the second one; a connection's first ten segments are not paced (the data plane's handshake and pings
are more); a rate that was raised is in force with the next acknowledgement.
"""

from __future__ import annotations

import socket
import struct
from typing import List, Optional, Sequence, Tuple

from payloads.wire.frames import Buffer

__all__ = ["cut", "payload_bytes_per_s", "piece_bytes", "retransmitted_bytes", "send_paced", "set_pace"]

SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; Python has no name for it
UNLIMITED = (1 << 64) - 1
PIECE_S = 250e-6
_IP_AND_ETHERNET_BYTES = 34
_TCP_BYTES, _TIMESTAMP_BYTES = 20, 12

# struct tcp_info (linux/tcp.h): tcpi_options at 5, tcpi_bytes_retrans at 208 since Linux 4.19.
_INFO_BYTES = 232
_OPTIONS_AT, _TIMESTAMPS = 5, 1
_RETRANSMITTED_AT = 208
_COUNT = struct.Struct("=Q")


def payload_bytes_per_s(mbit: Optional[float], segment_bytes: int, header_bytes: int) -> int:
    """Return the kernel's pacing rate for a frame rate.

    Args:
        mbit: The frame rate in Mbit/s; ``None`` for no limit.
        segment_bytes: The payload of a full frame.
        header_bytes: Its headers, Ethernet's included.
    """
    if mbit is None:
        return UNLIMITED
    return max(1, round(mbit * 1e6 / 8 * segment_bytes / (segment_bytes + header_bytes)))


def piece_bytes(bytes_per_s: int, segment_bytes: int) -> int:
    """Return how much is handed over at once: whole segments, about 250 us of them, at least one."""
    return segment_bytes * max(1, int(bytes_per_s * PIECE_S) // segment_bytes)


def set_pace(connection: socket.socket, mbit: Optional[float]) -> int:
    """Pace what a connection sends from now on.

    Args:
        connection: A connected TCP socket.
        mbit: The frame rate in Mbit/s, above 0; ``None`` for no limit.

    Returns:
        The bytes of a piece for :func:`send_paced`; 0 where there is no limit.

    Raises:
        OSError: The kernel refused, or the connection is gone.
    """
    segment_bytes, header_bytes = _frame(connection)
    rate = payload_bytes_per_s(mbit, segment_bytes, header_bytes)
    # Eight bytes: kernels that know only four read the lower half, and all ones mean no limit there too.
    connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, _COUNT.pack(rate))
    return 0 if mbit is None else piece_bytes(rate, segment_bytes)


def send_paced(connection: socket.socket, buffers: Sequence[Buffer], piece: int) -> List[memoryview]:
    """Give buffers to the kernel piece by piece; return what it did not take.

    Args:
        connection: A non-blocking socket.
        buffers: What to send.
        piece: Bytes of a piece, at least 1.

    Raises:
        OSError: The connection failed.
    """
    rest = [memoryview(buffer) for buffer in buffers if len(buffer)]
    while rest:
        part, left = cut(rest, piece)
        try:
            sent = connection.sendmsg(part, (), socket.MSG_EOR | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return rest
        if sent < sum(map(len, part)):
            return [*cut(part, sent)[1], *left]
        rest = left
    return rest


def retransmitted_bytes(connection: socket.socket) -> Optional[int]:
    """Return the payload that TCP has sent again on a connection; ``None`` where the kernel does not tell.

    Raises:
        OSError: The connection is gone.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    if len(info) < _RETRANSMITTED_AT + _COUNT.size:
        return None
    return int(_COUNT.unpack_from(info, _RETRANSMITTED_AT)[0])


def _frame(connection: socket.socket) -> Tuple[int, int]:
    """Return payload and headers of a connection's full frame in bytes."""
    segment_bytes = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    stamps = _TIMESTAMP_BYTES if info[_OPTIONS_AT] & _TIMESTAMPS else 0
    return segment_bytes, _IP_AND_ETHERNET_BYTES + _TCP_BYTES + stamps


def cut(buffers: Sequence[memoryview], size: int) -> Tuple[List[memoryview], List[memoryview]]:
    """Return the first ``size`` bytes of some buffers, and the rest."""
    head: List[memoryview] = []
    for number, buffer in enumerate(buffers):
        if len(buffer) > size:
            if size:
                head.append(buffer[:size])
            return head, [buffer[size:], *buffers[number + 1 :]]
        head.append(buffer)
        size -= len(buffer)
    return head, []
