"""The asking end of the data plane: one connection to each device, all of them driven from one epoll loop."""

from __future__ import annotations

import select
import time
from typing import Callable, Dict, List, Optional, Sequence, Union

from payloads.wire.asking import Answer, Asking, DeviceLateError, Patience, Pending, Request
from payloads.wire.channel import Channel, DeviceError, DeviceLostError, DeviceRefusedError, reason_of
from payloads.wire.credentials import Credentials
from payloads.wire.frames import FrameError, Header, Kind, unpack_error
from payloads.wire.sockets import ConnectionClosedError

__all__ = [
    "Answer",
    "Channel",
    "DeviceError",
    "DeviceLateError",
    "DeviceLostError",
    "DeviceRefusedError",
    "Exchange",
    "Patience",
    "Request",
]

CONNECT_TIMEOUT_S = 5.0
#: A device that makes no progress for so long is given up, even if its kernel still acknowledges.
STALL_TIMEOUT_S = 120.0


class Exchange:
    """Asks several devices at once and waits for all of their answers.

    Attributes:
        stall_timeout_s: How long nothing may come from a device before it is given up.
        gone: Devices whose connections were found broken while nothing was asked of them, since somebody took them.
    """

    def __init__(self, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
        self.stall_timeout_s = stall_timeout_s
        self.gone: List[DeviceLostError] = []
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

    def connect(
        self, channel: Channel, credentials: Credentials, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        """Connect a channel and authenticate both ends.

        Raises:
            DeviceLostError: It cannot be reached, or one end did not prove itself.
        """
        self.disconnect(channel)
        channel.connect(credentials, timeout_s)
        self._register(channel)

    def hand_over(self, channel: Channel, exchange: Exchange, receiver: Channel) -> None:
        """Give a channel's connection to a channel of another exchange; whatever that one had is closed.

        Raises:
            DeviceLostError: The connection is gone.
        """
        connection = channel.connection
        if connection is None:
            raise DeviceLostError(channel.name, "not connected")
        del self._channels[connection.fileno()]
        self._epoll.unregister(connection.fileno())
        exchange.disconnect(receiver)
        receiver.take_over(channel)
        exchange._register(receiver)

    def disconnect(self, channel: Channel) -> None:
        """Close a channel's connection, if there is one."""
        connection = channel.connection
        if connection is None:
            return
        self._channels.pop(connection.fileno(), None)
        self._epoll.unregister(connection.fileno())
        channel.drop()

    def look(self) -> None:
        """See to what came while nothing is asked; devices whose connections broke are put into ``gone``.

        Raises:
            Exception: What a call of :meth:`follow` raised.
        """
        nothing = Asking(0, Kind.RESULT, False)
        for descriptor, _ in self._epoll.poll(0):
            self._other(descriptor, nothing)

    def close(self) -> None:
        """Close everything."""
        for channel in list(self._channels.values()):
            self.disconnect(channel)
        self._epoll.close()

    def ask(
        self,
        requests: Sequence[Request],
        kind: int,
        meanwhile: Optional[Callable[[], None]] = None,
        patience: Optional[Patience] = None,
    ) -> List[Answer]:
        """Send all requests, wait for all answers, and return them in the order of the requests.

        Args:
            requests: At most one for each channel.
            kind: The kind of frame that every answer must have.
            meanwhile: As for :meth:`gather`.
            patience: As for :meth:`gather`.

        Raises:
            DeviceLostError: A connection failed; all connections with an open request are closed then,
                since an answer to this question must never be taken for one to the next.
            DeviceRefusedError: A device answered with an error; the others' answers were awaited.
        """
        answers = []
        for outcome in self._gather(Asking(len(requests), kind, True), requests, meanwhile, patience):
            if isinstance(outcome, DeviceError):
                raise outcome
            answers.append(outcome)
        return answers

    def gather(
        self,
        requests: Sequence[Request],
        kind: int,
        meanwhile: Optional[Callable[[], None]] = None,
        patience: Optional[Patience] = None,
    ) -> List[Union[Answer, DeviceError]]:
        """Send all requests; return what became of each, in the order of the requests.

        A device that is lost or late does not end the asking: its connection is closed and the others are awaited.
        One that was not asked and whose connection broke is put into ``gone``.

        Args:
            requests: At most one for each channel.
            kind: The kind of frame that every answer must have.
            meanwhile: Work to be done while the devices do theirs: once the kernel has all requests; where it
                does not take them at once, after the last answer, so that none of them waits for this.
            patience: How long answers may take; ``None`` for as long as the devices make progress.

        Returns:
            For each request its answer, or the error that came instead: :class:`DeviceLostError`,
            :class:`DeviceLateError`, or :class:`DeviceRefusedError`, after which the connection is still good.
        """
        return self._gather(Asking(len(requests), kind, False), requests, meanwhile, patience)

    def _gather(
        self,
        asking: Asking,
        requests: Sequence[Request],
        meanwhile: Optional[Callable[[], None]],
        patience: Optional[Patience],
    ) -> List[Union[Answer, DeviceError]]:
        waiting = asking.waiting
        try:
            for position, request in enumerate(requests):
                self._send(request, position, asking)
            if meanwhile is not None and not any(pending.rest for pending in waiting.values()):
                meanwhile()
                meanwhile = None
            look_s = time.monotonic() + self.stall_timeout_s
            if patience is not None:
                look_s = min(look_s, time.monotonic() + patience.floor_s)
            while waiting:
                events = self._epoll.poll(max(0.0, look_s - time.monotonic()))
                now_ns = time.monotonic_ns()
                for descriptor, event in events:
                    pending = waiting.get(descriptor)
                    if pending is None:
                        self._other(descriptor, asking)
                        continue
                    pending.heard_ns = now_ns
                    try:
                        if event & select.EPOLLOUT:
                            self._send_rest(descriptor, pending)
                        if event != select.EPOLLOUT:
                            header = pending.channel._receiver.receive(pending.connection)
                            if not pending.first_ns:
                                pending.first_ns = now_ns
                            if header is not None:
                                asking.outcomes[pending.position] = self._answer(pending, header, asking.kind)
                                del waiting[descriptor]
                    except (OSError, FrameError) as error:
                        self._lose(descriptor, _lost(pending.channel, error), asking)
                    except DeviceLostError as error:
                        self._lose(descriptor, error, asking)
                # What had come by then was taken above, so whoever is late now really is.
                if waiting and now_ns >= look_s * 1e9:
                    look_s = self._look(now_ns / 1e9, asking, patience)
                    patience = None
        except BaseException:
            for pending in waiting.values():
                self.disconnect(pending.channel)
            raise
        if meanwhile is not None:
            meanwhile()
        return [outcome for outcome in asking.outcomes if outcome is not None]

    def _look(self, now_s: float, asking: Asking, patience: Optional[Patience]) -> float:
        """Give up whoever is late; return when to look again.

        Args:
            now_s: The time now.
            asking: The requests.
            patience: Where deadlines are to be worked out now.
        """
        if patience is not None:
            deadlines_s = patience.deadlines_s()
            for pending in asking.waiting.values():
                pending.due_s = pending.sent_ns / 1e9 + max(patience.floor_s, deadlines_s[pending.position])
        next_s = float("inf")
        for descriptor, pending in list(asking.waiting.items()):
            stalled_s = pending.heard_ns / 1e9 + self.stall_timeout_s
            due_s = min(pending.due_s, stalled_s)
            if due_s > now_s:
                next_s = min(next_s, due_s)
                continue
            allowed_s = self.stall_timeout_s if due_s == stalled_s else due_s - pending.sent_ns / 1e9
            self._lose(
                descriptor,
                DeviceLateError(pending.channel.name, f"no answer within {allowed_s:.3g} s"),
                asking,
            )
        return next_s

    def _lose(self, descriptor: int, error: DeviceLostError, asking: Asking) -> None:
        """Close a connection whose answer will not be taken."""
        pending = asking.waiting[descriptor]
        if asking.hasty:
            raise error
        del asking.waiting[descriptor]
        self.disconnect(pending.channel)
        asking.outcomes[pending.position] = error

    def _other(self, descriptor: int, asking: Asking) -> None:
        """See to a descriptor of which no answer is awaited."""
        if descriptor in self._followed:
            try:
                self._followed[descriptor]()
            except DeviceLostError as error:
                self._named(error, asking)
            return
        if descriptor not in self._channels:
            return  # closed since the events were fetched
        unasked = self._unasked(descriptor)
        if asking.hasty:
            raise unasked
        self.gone.append(unasked)

    def _named(self, error: DeviceLostError, asking: Asking) -> None:
        """See to a device that was found lost by somebody else, whether it was asked or not."""
        for descriptor, channel in self._channels.items():
            if channel.name != error.device:
                continue
            if descriptor in asking.waiting:
                self._lose(descriptor, error, asking)
            elif asking.hasty:
                raise error
            else:
                self.disconnect(channel)
                self.gone.append(error)
            return

    def _send(self, request: Request, position: int, asking: Asking) -> None:
        channel = request.channel
        connection = channel.connection
        if connection is None:
            error = DeviceLostError(channel.name, "not connected")
            if asking.hasty:
                raise error
            asking.outcomes[position] = error
            return
        pending = Pending(channel, connection, position, request.sequence)
        buffers = request.buffers
        if channel._prelude:
            buffers = [channel._prelude, *buffers]
            pending.out += len(channel._prelude)
            channel._prelude = b""
        descriptor = connection.fileno()
        asking.waiting[descriptor] = pending
        try:
            rest = connection.send(buffers)
        except OSError as error:
            self._lose(descriptor, _lost(channel, error), asking)
            return
        if rest:
            pending.rest = rest
            self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT)

    def _send_rest(self, descriptor: int, pending: Pending) -> None:
        pending.rest = pending.connection.send(pending.rest)
        if not pending.rest:
            self._epoll.modify(descriptor, select.EPOLLIN)

    def _answer(self, pending: Pending, header: Header, kind: int) -> Union[Answer, DeviceRefusedError]:
        done_ns = time.monotonic_ns()
        channel, connection = pending.channel, pending.connection
        if header.sequence != pending.sequence or header.kind not in (kind, Kind.ERROR) or pending.rest:
            raise DeviceLostError(channel.name, "it answered something that was not asked")
        payload = channel._receiver.payload()
        if header.kind == Kind.ERROR:
            return DeviceRefusedError(channel.name, unpack_error(payload))
        return Answer(
            payload,
            pending.sent_ns,
            pending.first_ns,
            done_ns,
            connection.wire_out - pending.out,
            connection.wire_back - pending.back,
        )

    def _unasked(self, descriptor: int) -> DeviceLostError:
        """Close the connection of a device that was not asked, and return what is wrong with it."""
        channel = self._channels[descriptor]
        connection = channel.connection
        assert connection is not None
        error: Exception = FrameError("it sent something that was not asked for")
        try:
            # Not into the channel's buffer: its answer of before may not have been taken yet.
            if not connection.recv_into(memoryview(bytearray(1))):
                error = ConnectionClosedError("connection closed")
        except BlockingIOError:
            pass  # part of a record
        except OSError as failure:
            error = failure
        self.disconnect(channel)
        return _lost(channel, error)

    def _register(self, channel: Channel) -> None:
        connection = channel.connection
        assert connection is not None
        self._channels[connection.fileno()] = channel
        self._epoll.register(connection.fileno(), select.EPOLLIN)


def _lost(channel: Channel, error: Exception) -> DeviceLostError:
    lost = DeviceLostError(channel.name, reason_of(error))
    lost.__cause__ = error
    return lost
