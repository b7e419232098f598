"""Set, re-rate, clear and restore: the plan carried out, and the state file kept ahead of it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from payloads.linkd.capabilities import capabilities, choose_leaf
from payloads.linkd.errors import LinkdError, LinksError, RefusedError
from payloads.linkd.found import TC_INGRESS, Found, handle_text, must_be_tried, refusal, same_as_found
from payloads.linkd.history import Sample
from payloads.linkd.in_path import InPath
from payloads.linkd.kernel import Counters, Kernel
from payloads.linkd.links import Link
from payloads.linkd.model import DEFAULT_SLACK_US
from payloads.linkd.plan import (
    DEFAULT_MINOR,
    Ifb,
    Interface,
    Operation,
    Rated,
    Shape,
    assign_minors,
    difference,
    ifb_name,
    plan,
    rated,
)
from payloads.linkd.state import State, StateFile, boot_id

__all__ = ["Shaper", "restore"]

_NOTHING = Counters(0, 0, 0, 0)


class Shaper:
    """Shapes the links of one interface.

    Args:
        kernel: Who touches the kernel.
        state_file: What has to be put back.
        interface: The interface's name; without it, the one that routes to the first device.
        slack_us: The buckets' room for late timers, in microseconds.
        side: ``bs``, or ``device`` to shape this device's own uplink.
        leaf: ``auto``, ``tbf``, ``netem`` or ``line``.
        able: Says what this host can do (:func:`payloads.linkd.capabilities.capabilities`); asked once.
        in_path: The user-space line's home.
    """

    def __init__(
        self,
        kernel: Kernel,
        state_file: StateFile,
        interface: Optional[str] = None,
        slack_us: float = DEFAULT_SLACK_US,
        side: str = "bs",
        leaf: str = "auto",
        able: Callable[[], Mapping[str, Any]] = capabilities,
        in_path: Optional[InPath] = None,
    ) -> None:
        self._kernel = kernel
        self._state_file = state_file
        self._name = interface
        self._slack_us = slack_us
        self._side = side
        self._leaf = leaf
        self._able = lru_cache(maxsize=1)(able)
        self._in_path = in_path if in_path is not None else InPath()
        self._interface: Optional[Interface] = None
        self._shape = Shape(side)
        self._links: Tuple[Link, ...] = ()
        self._minors: Dict[Tuple[str, str, int, int], int] = {}

    @property
    def links_set(self) -> bool:
        """Whether links are set."""
        return self._interface is not None

    @property
    def line(self) -> Optional[str]:
        """What the user-space line does: ``alive``, ``died``, or None where none is in use."""
        return self._in_path.state

    def set(
        self, links: Sequence[Link], highest: Sequence[Link] = (), varies: bool = False
    ) -> Dict[str, Any]:
        """Shape these links and no others; nothing is touched where they are shaped so already.

        A link that stays gets its new rate in place: its queue and what waits in it stay.

        Args:
            links: The links, with the rates that they start with.
            highest: The same links with the highest rates that they will come to; where left out, they keep
                their rates.
            varies: Whether they change by themselves.

        Raises:
            LinkdError: The kernel refused; everything was put back.
            RefusedError: The interface could not be put back to what it is, or this host cannot give what is
                asked for; nothing was changed.
        """
        self._check_side(links)
        interface = self._kernel.interface(self._interface_of(links))
        shape = self._shape_of(interface, links, highest or links, varies)
        line = self._in_path.prepare(interface, links) if shape.leaf == "line" else None
        if self._interface is not None and self._must_start_anew(interface, shape, links):
            self.clear()
        minors = assign_minors(links, self._minors)
        operations = plan(links, interface, minors, self._slack_us, shape)
        if self._interface is None:
            self._start(interface, operations, line)
            changed = len(operations)
        else:
            changed = self._go(interface, operations)
        self._interface, self._shape, self._links, self._minors = interface, shape, tuple(links), minors
        if shape.leaf == "line":
            changed += self._lead_through_line(interface)
        return {**self._about(), "changed": changed}

    def rerate(self, links: Sequence[Link]) -> int:
        """Change the rates of the links that are set, in place and in one call.

        Args:
            links: The same links in the same order, with other rates.

        Returns:
            How many rates changed.

        Raises:
            RefusedError: The user-space line does not keep up with them; nothing was changed.
            LinkdError: The kernel refused, and everything was put back; or the user-space line has died.
        """
        assert self._interface is not None
        names = (self._interface.name, ifb_name(self._interface))
        operations: List[Rated] = []
        changed = 0
        for old, new in zip(self._links, links):
            if old is new:
                continue
            pairs = [(old.downlink_mbit, new.downlink_mbit), (old.uplink_mbit, new.uplink_mbit)]
            # At the device there is one interface, and it is the uplink's.
            where = names if self._side == "bs" else (names[0], names[0])
            for on, (before, after) in zip(where, pairs):
                if after is not None and before != after:
                    changed += 1
                    operations += self._rated(on, new, after)
        try:
            if operations:
                self._kernel.change(operations)
            elif changed:
                self._in_path.change(links)
        except RefusedError:
            raise  # by the line, which has changed nothing
        except BaseException:
            # Neither the old rates nor the new ones: better nothing. Where the line has died nothing passes anyway.
            if self.line != "died":
                self.clear()
            raise
        self._links = tuple(links)
        return changed

    def clear(self) -> Dict[str, Any]:
        """Put everything back as it was found."""
        had = self._interface
        self._interface, self._links, self._minors = None, (), {}
        self._in_path.stop()
        restored = restore(self._kernel, self._state_file)
        return {"restored": restored or (had.name if had else None)}

    def show(self) -> Dict[str, Any]:
        """Return the links with the counters of both directions; None for one that is left alone."""
        answer = self._about()
        if self._interface is None:
            return answer
        down, up, unshaped = self._counters()
        for row, *both in zip(answer["links"], down, up):
            row["downlink"], row["uplink"] = (None if item is None else item._asdict() for item in both)
        answer["unshaped"] = unshaped._asdict()
        return answer

    def sample(self, unix_s: float) -> Optional[Sample]:
        """Return the counters of all links, or None where none are set."""
        if self._interface is None:
            return None
        down, up, _unshaped = self._counters()
        sent = [[None if item is None else item.bytes for item in side] for side in (down, up)]
        waiting = [[None if item is None else item.backlog_bytes for item in side] for side in (down, up)]
        return Sample(unix_s, sent[0], sent[1], waiting[0], waiting[1])

    def check(self, links: Sequence[Link]) -> None:
        """Check that rates to come can be given.

        Raises:
            RefusedError: The user-space line is in use and does not keep up with them.
        """
        self._in_path.check(links)

    def look_after_line(self) -> bool:
        """Return whether the user-space line has died since this was asked last."""
        return self._in_path.has_died()

    def _counters(self) -> Tuple[List[Optional[Counters]], List[Optional[Counters]], Counters]:
        """Return the counters of each link's downlink and uplink, and those of all else that goes out.

        None stands for a direction that is left alone. What waits in the user-space line waits here too.

        Raises:
            LinkdError: Classes of ours are no longer there, or the kernel did not answer.
        """
        assert self._interface is not None
        ours, turned = self._kernel.counters(self._interface.name), {}
        if self._shape.turns_around:
            turned = self._kernel.counters(ifb_name(self._interface))
        line = self._in_path.counters()
        of_uplink = ours if self._side == "device" else turned
        down: List[Optional[Counters]] = []
        up: List[Optional[Counters]] = []
        for link in self._links:
            minor, held = self._minors[link.identity], line.get(link.device, {})
            for side, direction, rate, counted in (
                (down, "downlink", link.downlink_mbit, ours),
                (up, "uplink", link.uplink_mbit, of_uplink),
            ):
                item = None if rate is None else counted.get(minor)
                if rate is not None and item is None:
                    raise LinkdError(
                        f"{self._interface.name}: the class of {link.device}'s {direction} is gone: something else "
                        "changes the queueing disciplines there; set the links again"
                    )
                more = held.get(direction)
                if item is not None and more is not None:
                    waiting = item.backlog_bytes + more.backlog_bytes
                    item = item._replace(drops=item.drops + more.drops, backlog_bytes=waiting)
                side.append(item)
        return down, up, ours.get(DEFAULT_MINOR, _NOTHING)

    def _rated(self, on: str, link: Link, rate_mbit: float) -> Tuple[Rated, ...]:
        assert self._interface is not None
        minor, mtu, leaf = self._minors[link.identity], self._interface.mtu, self._shape.leaf
        return rated(on, minor, link, rate_mbit, mtu, self._slack_us, leaf)

    def _about(self) -> Dict[str, Any]:
        interface, shape = self._interface, self._shape
        return {
            "backend": shape.backend if interface else None,
            "interface": interface.name if interface else None,
            "ifb": ifb_name(interface) if interface and shape.turns_around else None,
            "mtu": interface.mtu if interface else None,
            "slack_us": self._slack_us,
            "links": [{**link.as_json(), "backends": shape.backends(link)} for link in self._links],
        }

    def _check_side(self, links: Sequence[Link]) -> None:
        if self._side != "device":
            return
        for link in links:
            if link.downlink_mbit is not None:
                raise LinksError(
                    f"{link.device}: a device shapes its own uplink only: downlink_mbit must be null here"
                )

    def _shape_of(
        self, interface: Interface, links: Sequence[Link], highest: Sequence[Link], varies: bool
    ) -> Shape:
        """Return what the links need."""
        leaf = choose_leaf(self._leaf, highest, self._side, lambda: self._able_on(interface), varies)
        uplinks = any(link.uplink_mbit is not None for link in links)
        return Shape(self._side, leaf, self._side == "bs" and uplinks)

    def _able_on(self, interface: Interface) -> Mapping[str, Any]:
        """Return what this host can do on an interface: not every one takes the user-space line."""
        able = self._able()
        lacks = self._in_path.lacks(interface) if able["backends"]["bs-line"] is None else None
        return {**able, "backends": {**able["backends"], "bs-line": lacks}} if lacks else able

    def _must_start_anew(self, interface: Interface, shape: Shape, links: Sequence[Link]) -> bool:
        if self._interface != interface or self._shape != shape or not self._is_there():
            return True
        if shape.leaf != "line":
            return False
        # The line's filters are made for its links; a line that died is started again.
        same = [_place(link) for link in links] == [_place(link) for link in self._links]
        return not same or self._in_path.state != "alive"

    def _is_there(self) -> bool:
        """Return whether nobody else has taken away what was made."""
        assert self._interface is not None
        try:
            self._counters()
            qdiscs = self._kernel.found(self._interface.name).qdiscs
        except LinkdError:
            return False
        return not self._shape.turns_around or any(qdisc.parent == TC_INGRESS for qdisc in qdiscs)

    def _interface_of(self, links: Sequence[Link]) -> str:
        """Return the one interface that all links are reached through.

        Raises:
            LinksError: They are reached through more than one, or not through the one that was named.
        """
        name = self._name
        for link in links:
            if link.identity in self._minors and self._interface is not None:
                name = name or self._interface.name
                continue
            routed = self._kernel.interface_towards(link.address)
            name = name or routed
            if routed != name:
                text = f"{link.device} ({link.address}) is reached through {routed} and not through {name}"
                raise LinksError(f"{text}: linkd shapes one interface")
        assert name is not None
        return name

    def _start(
        self, interface: Interface, operations: Sequence[Operation], line: Optional[Mapping[str, Any]]
    ) -> None:
        ifb = ifb_name(interface)
        found = self._kernel.found(interface.name)
        reason = refusal(found)
        if reason is None and self._kernel.exists(ifb):
            reason = f"there is an interface {ifb} already and no state file: ip link del {ifb}"
        if reason:
            raise RefusedError(f"refused: {reason}")
        self._state_file.write(State(found, ifb, boot_id(), line))
        try:
            first = [item for item in operations[:1] if isinstance(item, Ifb)]
            self._kernel.add(first)
            # Tried on the ifb, which nothing passes through yet.
            root = found.root
            if root is not None and must_be_tried(found) and not self._kernel.try_to_make(root, ifb):
                name = f"{root.kind} {handle_text(root.handle)} of {interface.name}"
                raise RefusedError(f"refused: the {name} does not come out the same when it is made again")
            self._kernel.add(operations[len(first) :])
        except BaseException:
            restore(self._kernel, self._state_file)
            raise

    def _lead_through_line(self, interface: Interface) -> int:
        """Have the user-space line hold the packets; return how many of its links changed."""
        try:
            return self._in_path.lead(interface, self._links, self._minors)
        except BaseException:
            self.clear()
            raise

    def _go(self, interface: Interface, operations: Sequence[Operation]) -> int:
        """Go from the present plan to another; return how many operations it took."""
        way = difference(plan(self._links, interface, self._minors, self._slack_us, self._shape), operations)
        try:
            self._kernel.remove(way.remove)
            self._kernel.add(way.add)
            if way.change:
                self._kernel.change(way.change)
        except BaseException:
            # Neither the old plan nor the new one: better nothing.
            self.clear()
            raise
        return len(way.remove) + len(way.add) + len(way.change)


def _place(link: Link) -> Tuple[Any, ...]:
    """Return what the line's filters are made from."""
    return (*link.identity, link.downlink_mbit is None, link.uplink_mbit is None)


def restore(kernel: Kernel, state_file: StateFile) -> Optional[str]:
    """Put back what the state file tells of, and remove the file.

    Returns:
        The interface's name, or None where there was nothing to put back.

    Raises:
        LinkdError: The kernel refused (the file stays), or what came back is not what was there.
    """
    state = state_file.read()
    if state is None:
        return None
    found, touched = state.found, False
    if state.boot == boot_id():
        if state.line is not None:
            InPath.take_away(state.line)
        touched = kernel.put_back(found, state.ifb)
    state_file.remove()
    if touched:
        now = kernel.found(found.interface)
        if not same_as_found(found, now):
            raise LinkdError(
                f"{found.interface} is no longer shaped, but it has {_words(now)} now and had {_words(found)}"
            )
    return found.interface


def _words(found: Found) -> str:
    return ", ".join(f"{qdisc.kind} {handle_text(qdisc.handle)}" for qdisc in found.qdiscs) or "nothing"
