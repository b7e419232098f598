"""`testbed shape watch`: events of the link daemons as they come, as lines of JSON or as a table that follows them."""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testbed.errors import HostError, TestbedError

if TYPE_CHECKING:
    from rich.table import Table

    from testbed.config.inventory import Host, Inventory
    from testbed.hosts.fleet import Fleet
    from testbed.hosts.transport import Stream

__all__ = ["LinksNow", "watch_links"]

DIRECTIONS = ("downlink", "uplink")
REDRAWS_HZ = 5


@dataclass
class LinksNow:
    """What is known of the links, from the events so far.

    Attributes:
        devices: The devices to show.
        rates: The rate in force (Mbit/s) by device and direction.
        sent_mbit: What was sent between the last two samples (Mbit/s).
        waiting: Bytes that waited at the last sample.
        changes: How many changes have come.
        last: The last change's cause and reason.
    """

    devices: Sequence[str]
    rates: dict[tuple[str, str], float] = field(default_factory=dict)
    sent_mbit: dict[tuple[str, str], float] = field(default_factory=dict)
    waiting: dict[tuple[str, str], int] = field(default_factory=dict)
    changes: int = 0
    last: str = ""
    _counted: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)

    def take(self, event: dict[str, Any]) -> None:
        """Take one event of a link daemon."""
        if event["event"] == "rates":
            self._take_rates(event)
        elif event["event"] == "sample":
            self._take_sample(event)
        elif event["event"] == "line":
            self.last = f"the user-space line {event['line']}"

    def _take_rates(self, event: dict[str, Any]) -> None:
        if event["cause"] == "clear":
            self.rates.clear()
        for device, rates in event["rates"].items():
            for direction in DIRECTIONS:
                rate = rates[f"{direction}_mbit"]
                if rate is not None:
                    self.rates[device, direction] = rate
        if event["cause"] != "watch":
            self.changes += 1
            self.last = f"{event['cause']} {event['why'] or ''}".strip()

    def _take_sample(self, event: dict[str, Any]) -> None:
        for direction in DIRECTIONS:
            counts, backlog = event[f"{direction}_bytes"], event[f"{direction}_backlog_bytes"]
            for device, count, waiting in zip(event["devices"], counts, backlog, strict=True):
                if count is None:
                    continue
                key = device, direction
                before = self._counted.get(key)
                self._counted[key] = (event["unix_s"], count)
                self.waiting[key] = waiting or 0
                if before is not None and event["unix_s"] > before[0] and count >= before[1]:
                    self.sent_mbit[key] = (count - before[1]) * 8e-6 / (event["unix_s"] - before[0])

    def table(self) -> Table:
        """Return what is known as a table."""
        from rich.table import Table

        table = Table("device", "direction", box=None, caption=self._caption(), caption_justify="left")
        for name in ("rate Mbit/s", "sent Mbit/s", "waiting bytes"):
            table.add_column(name, justify="right")
        for device in self.devices:
            for direction in DIRECTIONS:
                key = device, direction
                rate, sent = self.rates.get(key), self.sent_mbit.get(key)
                shown = ("-" if rate is None else f"{rate:.3f}", "-" if sent is None else f"{sent:.3f}")
                table.add_row(device, direction, *shown, str(self.waiting.get(key, "-")))
        return table

    def _caption(self) -> str:
        last = f", the last: {self.last}" if self.last else ""
        return f"{self.changes} changes{last} (Ctrl-C ends)"


def watch_links(
    lab: Inventory, hosts: Sequence[Host], devices: Iterable[str], *, for_s: float | None, as_table: bool
) -> None:
    """Follow the link daemons of some hosts until Ctrl-C, or for some seconds.

    Args:
        lab: The lab.
        hosts: Whose daemons.
        devices: The devices to show in the table.
        for_s: After how many seconds to end; never where it is None.
        as_table: Whether a table follows the events; else each is a line of JSON on the standard output.

    Raises:
        TestbedError: A daemon does not run, or its host was lost.
    """
    from testbed.hosts.fleet import Fleet

    shown = set(devices)
    now = LinksNow([device.name for device in lab.devices if device.name in shown])
    with Fleet(lab) as fleet:
        events = _Events(fleet, hosts)
        try:
            if as_table:
                _follow_table(events, now, for_s)
            else:
                for host, event in events.until(for_s):
                    sys.stdout.write(json.dumps({"host": host, **event}) + "\n")
                    sys.stdout.flush()
        except KeyboardInterrupt:
            pass
        finally:
            events.close()


def _follow_table(events: _Events, now: LinksNow, for_s: float | None) -> None:
    from rich.live import Live

    with Live(now.table(), refresh_per_second=REDRAWS_HZ) as live:
        drawn = 0.0
        for _host, event in events.until(for_s):
            now.take(event)
            if time.monotonic() - drawn > 1 / REDRAWS_HZ:
                live.update(now.table())
                drawn = time.monotonic()
        live.update(now.table())


class _Events:
    """The events of several hosts, in the order in which they arrive here."""

    def __init__(self, fleet: Fleet, hosts: Sequence[Host]) -> None:
        from testbed.links.commands import watch_command

        self._queue: queue.Queue[tuple[str, dict[str, Any] | TestbedError]] = queue.Queue()
        self._streams: list[Stream] = []
        for host in hosts:
            stream = fleet.transport(host.name).stream(watch_command(host))
            self._streams.append(stream)
            threading.Thread(target=self._read, args=(host.name, stream), daemon=True).start()

    def until(self, for_s: float | None) -> Iterable[tuple[str, dict[str, Any]]]:
        """Yield the hosts' names and their events.

        Raises:
            TestbedError: A daemon ended, or its host was lost.
        """
        end = None if for_s is None else time.monotonic() + for_s
        while True:
            left_s = None if end is None else end - time.monotonic()
            if left_s is not None and left_s <= 0:
                return
            try:
                host, event = self._queue.get(timeout=0.5 if left_s is None else min(0.5, left_s))
            except queue.Empty:
                continue
            if isinstance(event, TestbedError):
                raise event
            yield host, event

    def close(self) -> None:
        """End all streams."""
        for stream in self._streams:
            stream.close()

    def _read(self, host: str, stream: Stream) -> None:
        try:
            for line in stream.lines():
                self._queue.put((host, json.loads(line)))
            said = (stream.stderr.strip().splitlines() or ["the link daemon has ended"])[-1]
            error: TestbedError = HostError(host, said.removeprefix("linkd: "))
            if "does not run" in said:
                error.hint = "links are shaped by `testbed shape apply`, and while a campaign runs"
        except TestbedError as caught:
            error = caught
        except ValueError as caught:
            error = HostError(host, f"the link daemon said what is no event: {caught}")
        self._queue.put((host, error))
