"""Set, re-rate, clear and restore: the plan carried out, and the state file kept ahead of it."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

from payloads.linkd.errors import LinkdError, LinksError, RefusedError
from payloads.linkd.found import Found, handle_text, must_be_tried, refusal, same_as_found
from payloads.linkd.kernel import Counters, Kernel
from payloads.linkd.model import DEFAULT_SLACK_US
from payloads.linkd.plan import (
    DEFAULT_MINOR,
    Ifb,
    Interface,
    Leaf,
    Link,
    Operation,
    assign_minors,
    difference,
    ifb_name,
    parse_rates,
    plan,
)
from payloads.linkd.state import State, StateFile, boot_id

__all__ = ["BACKEND", "Shaper", "restore"]

#: What shapes the links, as the records name it.
BACKEND = "bs-htb-tbf"


class Shaper:
    """Shapes the links of one interface.

    Args:
        kernel: Who touches the kernel.
        state_file: What has to be put back.
        interface: The interface's name; without it, the one that routes to the first device.
        slack_us: The buckets' room for late timers, in microseconds.
    """

    def __init__(
        self,
        kernel: Kernel,
        state_file: StateFile,
        interface: Optional[str] = None,
        slack_us: float = DEFAULT_SLACK_US,
    ) -> None:
        self._kernel = kernel
        self._state_file = state_file
        self._name = interface
        self._slack_us = slack_us
        self._interface: Optional[Interface] = None
        self._links: Tuple[Link, ...] = ()
        self._minors: Dict[Tuple[str, str, int, int], int] = {}
        self._operations: Tuple[Operation, ...] = ()

    def set(self, links: Sequence[Link]) -> Dict[str, Any]:
        """Shape these links and no others; nothing is touched where they are shaped so already.

        A link that stays gets its new rate in place: its queue and what waits in it stay.

        Raises:
            LinkdError: The kernel refused; everything was put back.
            RefusedError: The interface could not be put back to what it is; nothing was changed.
        """
        interface = self._kernel.interface(self._interface_of(links))
        if self._interface is not None and self._interface != interface:
            self.clear()
        minors = assign_minors(links, self._minors)
        operations = plan(links, interface, minors, self._slack_us)
        if self._interface is None:
            self._start(interface, operations)
            changed = len(operations)
        else:
            changed = self._go(operations)
        self._interface, self._links, self._minors = interface, tuple(links), minors
        self._operations = operations
        return {**self._about(), "changed": changed}

    def rerate(self, rates: Any) -> Dict[str, Any]:
        """Change the rates of some devices in place.

        Args:
            rates: Device -> ``downlink_mbit``, ``uplink_mbit`` or one of them.

        Raises:
            LinksError: A device has no link, or a rate is out of range.
        """
        if self._interface is None:
            raise LinksError("rates: no links are set")
        links = parse_rates(rates, self._links)
        operations = plan(links, self._interface, self._minors, self._slack_us)
        changed = [item for item in difference(self._operations, operations).change if isinstance(item, Leaf)]
        self._go(operations)
        self._links, self._operations = links, operations
        return {"changed": len(changed)}

    def clear(self) -> Dict[str, Any]:
        """Put everything back as it was found."""
        had = self._interface
        self._interface, self._links, self._minors, self._operations = None, (), {}, ()
        restored = restore(self._kernel, self._state_file)
        return {"restored": restored or (had.name if had else None)}

    def show(self) -> Dict[str, Any]:
        """Return the links with the counters of both directions."""
        answer = self._about()
        if self._interface is None:
            return answer
        down = self._kernel.counters(self._interface.name)
        up = self._kernel.counters(ifb_name(self._interface))
        nothing = Counters(0, 0, 0, 0)
        for link, row in zip(self._links, answer["links"]):
            minor = self._minors[link.identity]
            row["downlink"] = down.get(minor, nothing)._asdict()
            row["uplink"] = up.get(minor, nothing)._asdict()
        answer["unshaped"] = down.get(DEFAULT_MINOR, nothing)._asdict()
        return answer

    def _about(self) -> Dict[str, Any]:
        interface = self._interface
        return {
            "backend": BACKEND,
            "interface": interface.name if interface else None,
            "ifb": ifb_name(interface) if interface else None,
            "mtu": interface.mtu if interface else None,
            "slack_us": self._slack_us,
            "links": [link.as_json() for link in self._links],
        }

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

    def _start(self, interface: Interface, operations: Sequence[Operation]) -> None:
        ifb = ifb_name(interface)
        found = self._kernel.found(interface.name)
        reason = refusal(found)
        if reason is None and self._kernel.exists(ifb):
            reason = f"there is an interface {ifb} already and no state file: ip link del {ifb}"
        if reason:
            raise RefusedError(f"refused: {reason}")
        self._state_file.write(State(found, ifb, boot_id()))
        try:
            first, rest = operations[0], operations[1:]
            assert isinstance(first, Ifb)
            self._kernel.add([first])
            # Tried on the ifb, which nothing passes through yet.
            root = found.root
            if root is not None and must_be_tried(found) and not self._kernel.try_to_make(root, ifb):
                name = f"{root.kind} {handle_text(root.handle)} of {interface.name}"
                raise RefusedError(f"refused: the {name} does not come out the same when it is made again")
            self._kernel.add(rest)
        except BaseException:
            restore(self._kernel, self._state_file)
            raise

    def _go(self, operations: Sequence[Operation]) -> int:
        """Go from the present plan to another; return how many operations it took."""
        way = difference(self._operations, operations)
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
    found = state.found
    touched = state.boot == boot_id() and kernel.put_back(found, state.ifb)
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
