"""Many hosts at once: a cap, results in the inventory's order, each failure beside the others' success."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, cast

from testbed.config.inventory import Host, Inventory
from testbed.errors import ConnectError, TestbedError
from testbed.hosts.become import BecomePassword
from testbed.hosts.deadline import Deadline
from testbed.hosts.steps import Command, Completed, Fetch, Put, Step
from testbed.hosts.transport import OnLine, Opens, Stream, Transport, do_step

__all__ = ["Connect", "Event", "Fleet", "Observer", "Outcome"]

T = TypeVar("T")
Event = Literal["begin", "end", "failed"]
Connect = Callable[[Host], Transport]
Observer = Callable[[Step, Event, Mapping[str, Any]], None]
"""Is told of each step's begin and its end or failure, from the thread that does the step."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of one host.

    Attributes:
        host: The host.
        value: What the function returned.
        error: What it raised instead.
    """

    host: Host
    value: T | None = None
    error: TestbedError | OSError | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return self.error is None

    def get(self) -> T:
        """Return the value.

        Raises:
            TestbedError: The host's failure.
        """
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


class Fleet:
    """The hosts of an inventory, each with one connection that is made when first needed.

    Args:
        inventory: The hosts.
        connect: Makes a host's transport without reaching for the host yet; SSH where left out.
        observe: Is told of each step.
        connect_timeout_s: The most seconds that reaching one host may take (SSH only).
        become: The password for sudo, where it asks for one (SSH only).

    Attributes:
        ended: Is set once it is closed, as it is at Ctrl-C: whoever waits on a host need not wait any longer.
    """

    def __init__(
        self,
        inventory: Inventory,
        *,
        connect: Connect | None = None,
        observe: Observer | None = None,
        connect_timeout_s: float = 15.0,
        become: BecomePassword | None = None,
    ) -> None:
        if connect is None:
            from testbed.hosts.ssh import ssh_connect

            connect = ssh_connect(inventory.known_hosts, connect_timeout_s=connect_timeout_s, become=become)
        self.inventory = inventory
        self._connect = connect
        self._observe = observe
        self.become = become
        self._transports: dict[str, Transport] = {}
        self._retired: list[Transport] = []
        self._lock = threading.Lock()
        self.ended = threading.Event()

    def transport(self, name: str) -> Transport:
        """Return the transport of one host.

        Raises:
            InputError: The lab has no such host.
            ConnectError: The fleet is closed.
        """
        host = self.inventory.host(name)
        with self._lock:
            if self.ended.is_set():
                raise ConnectError(name, "the fleet is closed")
            if name not in self._transports:
                transport = self._connect(host)
                self._transports[name] = _Observed(transport, self._observe) if self._observe else transport
            return self._transports[name]

    def do(self, step: Step, *, on_line: OnLine | None = None) -> Completed | None:
        """Do one step on its host; a command's answer is returned.

        Raises:
            HostError: The step failed.
        """
        return do_step(self.transport(step.host), step, on_line=on_line)

    def each(
        self,
        fn: Callable[[Host, Transport], T],
        hosts: Sequence[Host] | None = None,
        cap: int = 64,
        on_done: Callable[[Outcome[T]], None] | None = None,
        *,
        reach: bool = True,
        deadlines: Mapping[str, Deadline] | None = None,
    ) -> list[Outcome[T]]:
        """Call a function for many hosts at once.

        A host is connected to before it counts for the cap: one that is dead keeps no other from its turn.

        Args:
            fn: The function; is given the host and its transport.
            hosts: The hosts; all of the inventory where left out.
            cap: How many at the same time.
            on_done: Is given each outcome when it is there, in the order in which they come.
            reach: Whether to connect first; the function connects by itself otherwise, or not at all.
            deadlines: By when to be connected, by the host's name. A host's wait for its turn does not count.

        Returns:
            The outcomes in the inventory's order. An error that is no TestbedError and no OSError is a
            mistake in the program: it is raised when all hosts are done.
        """
        wanted = list(self.inventory.hosts.values()) if hosts is None else list(hosts)
        order = {name: index for index, name in enumerate(self.inventory.hosts)}
        wanted.sort(key=lambda host: order.get(host.name, len(order)))

        places = threading.Semaphore(cap)

        def one(host: Host) -> Outcome[T]:
            deadline = (deadlines or {}).get(host.name) or Deadline(math.inf)
            try:
                transport = self.transport(host.name)
                if reach and isinstance(transport, Opens):
                    transport.open(deadline)
                with ExitStack() as turn:
                    with deadline.paused():
                        turn.enter_context(places)
                    outcome = Outcome(host, value=fn(host, transport))
            except (TestbedError, OSError) as error:
                outcome = Outcome(host, error=error)
            if on_done:
                on_done(outcome)
            return outcome

        if not wanted:
            return []
        pool = ThreadPoolExecutor(max_workers=len(wanted), thread_name_prefix="fleet")
        try:
            futures: list[Future[Outcome[T]]] = [pool.submit(one, host) for host in wanted]
            wait(futures)
            return [future.result() for future in futures]
        except BaseException:
            # Ctrl-C: what waits on a host must not keep us. Closing the connections ends the waits.
            pool.shutdown(wait=False, cancel_futures=True)
            self.close()
            raise
        finally:
            pool.shutdown()

    def reconnect(self, name: str) -> None:
        """Log in anew at the next step, for what a host gives to new logins only, such as a new group.

        What runs over the old connection, such as a lease, goes on until the fleet is closed.
        """
        with self._lock:
            transport = self._transports.pop(name, None)
            if transport is not None:
                self._retired.append(transport)

    def close(self) -> None:
        """Close all connections; steps that wait on a host fail at once."""
        with self._lock:
            self.ended.set()
            transports = [*self._transports.values(), *self._retired]
            self._transports.clear()
            self._retired.clear()
        # Side by side: a gateway command may take a moment to end.
        threads = [threading.Thread(target=_close, args=(transport,)) for transport in transports]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(transport: Transport) -> None:
    with suppress(OSError):
        transport.close()


class _Observed:
    """A transport whose every step is told to an observer."""

    def __init__(self, inner: Transport, observe: Observer) -> None:
        self._inner = inner
        self._observe = observe

    def _do(self, step: Step, action: Callable[[], T]) -> T:
        self._observe(step, "begin", {})
        try:
            result = action()
        except BaseException as error:
            self._observe(step, "failed", {"error": str(error)})
            raise
        info = (
            {"exit_status": result.exit_status, "seconds": result.seconds}
            if isinstance(result, Completed)
            else {}
        )
        self._observe(step, "end", info)
        return result

    def open(self, deadline: Deadline | None = None) -> None:
        if isinstance(self._inner, Opens):
            self._inner.open(deadline)

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Completed:
        return self._do(command, lambda: self._inner.run(command, on_line=on_line))

    def put(self, put: Put) -> None:
        self._do(put, lambda: self._inner.put(put))

    def fetch(self, fetch: Fetch) -> None:
        self._do(fetch, lambda: self._inner.fetch(fetch))

    def stream(self, command: Command) -> Stream:
        """Tell of the start only: when a stream ends is its reader's business."""
        return self._do(command, lambda: self._inner.stream(command))

    def close(self) -> None:
        self._inner.close()
