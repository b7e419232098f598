"""The one module of linkd that touches the kernel: through pyroute2, and tc.py for what changes often."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any, Dict, Iterable, List, NamedTuple, Sequence, Tuple

from payloads.linkd.errors import LinkdError, RefusedError
from payloads.linkd.found import TC_ROOT, Found, FoundQdisc
from payloads.linkd.plan import (
    DEFAULT_MINOR,
    ROOT_HANDLE,
    Class,
    Fifo,
    Ifb,
    Ingress,
    Interface,
    Leaf,
    Match,
    Operation,
    Rated,
    Redirect,
    Root,
)
from payloads.linkd.tc import Message, TcError, TcSocket, qdisc_message, rated_message

__all__ = ["Counters", "Kernel"]

_ETH_P_IP = 0x0800
_RTN_UNICAST = 1
_INGRESS_HANDLE = 0xFFFF0000
_FIFO_HANDLE = 0x7BFF0000
_NAMES = {
    Root: "htb",
    Fifo: "a pfifo",
    Ingress: "an ingress hook",
    Match: "a u32 filter",
    Redirect: "a u32 filter with mirred",
}
_SOURCE, _DESTINATION = (12, 20), (16, 22)


class Counters(NamedTuple):
    """What passed through a class, and what waits in it.

    Attributes:
        bytes: Bytes of frames sent.
        packets: Frames sent.
        drops: Packets that did not fit in the queue.
        backlog_bytes: Bytes that wait.
    """

    bytes: int
    packets: int
    drops: int
    backlog_bytes: int


class Kernel:
    """Reads and changes interfaces and their queueing disciplines.

    Raises:
        LinkdError: pyroute2 is not installed.
    """

    def __init__(self) -> None:
        try:
            from pyroute2 import IPRoute, NetlinkError
        except ImportError as error:
            raise LinkdError(f"pyroute2 is not installed for this Python: {error}") from error
        self._error = NetlinkError
        self._ip = IPRoute()
        self._tc = TcSocket()

    def close(self) -> None:
        """Close the sockets."""
        self._tc.close()
        self._ip.close()

    def interface(self, name: str) -> Interface:
        """Return an interface by name.

        Raises:
            LinkdError: There is none.
        """
        index = self._index(name)
        (link,) = self._call(f"show {name}", self._ip.get_links, index)
        return Interface(name, index, int(link.get_attr("IFLA_MTU")))

    def exists(self, name: str) -> bool:
        """Return whether there is an interface of that name."""
        return any(name == other for _index, other in socket.if_nameindex())

    def interface_towards(self, address: str) -> str:
        """Return the name of the interface that an address is reached through.

        Raises:
            LinkdError: There is no route, or the address is one of this host.
        """
        try:
            routes = list(self._ip.route("get", dst=address))
        except self._error as error:
            raise LinkdError(f"there is no route to {address}: {_words(error)}") from error
        index = routes[0].get_attr("RTA_OIF")
        if routes[0]["type"] != _RTN_UNICAST:
            raise LinkdError(f"{address} is no address of another host")
        return socket.if_indextoname(index)

    def found(self, name: str) -> Found:
        """Return what an interface has."""
        index = self._index(name)
        # Parent 0 means: below the root, whatever its handle.
        filters = self._call("list filters", self._ip.get_filters, index=index, parent=0)
        return Found(name, tuple(self._tc.qdiscs(index)), len(list(filters)))

    def add(self, operations: Iterable[Operation]) -> None:
        """Make what a plan asks for, in order.

        Raises:
            LinkdError: The kernel refused; the message says what and why.
        """
        for operation in operations:
            self._add(operation)

    def remove(self, operations: Iterable[Operation]) -> None:
        """Take away what :meth:`add` made, in the order given."""
        for operation in operations:
            if isinstance(operation, (Match, Redirect)):
                parent = ROOT_HANDLE if isinstance(operation, Match) else _INGRESS_HANDLE
                self._call(
                    f"delete a filter of {operation.address}", self._ip.tc, "del-filter", "u32",
                    self._index(operation.on), parent=parent, prio=operation.priority, protocol=_ETH_P_IP,
                    target=0, keys=[],
                )  # fmt: skip
            elif isinstance(operation, Class):
                index, handle = self._index(operation.on), ROOT_HANDLE | operation.minor
                self._call(
                    f"delete the class of {operation.owner}",
                    self._ip.tc,
                    "del-class",
                    index=index,
                    handle=handle,
                )
            else:
                raise TypeError(f"{operation} goes only with its interface")

    def change(self, rated: Sequence[Rated]) -> None:
        """Give classes and leaves another rate, all in one call; queues and waiting packets stay."""
        indexes = {name: self._index(name) for name in {item.on for item in rated}}
        self._send([rated_message(indexes[item.on], item) for item in rated], "change a rate")

    def try_to_make(self, qdisc: FoundQdisc, on: str) -> bool:
        """Return whether a queueing discipline comes out the same when made again on an interface of ours."""
        index = self._index(on)
        options = bytes.fromhex(qdisc.options)
        try:
            self._tc.send([qdisc_message(index, TC_ROOT, qdisc.handle, qdisc.kind, options, create=True)])
            made = [item for item in self._tc.qdiscs(index) if item.parent == TC_ROOT]
        except TcError:
            return False
        self._call("delete the trial", self._ip.tc, "del", index=index, parent=TC_ROOT, handle=qdisc.handle)
        return made == [qdisc]

    def put_back(self, found: Found, ifb: str) -> bool:
        """Take away ours and make what was there before.

        Returns:
            Whether anything of ours was on the interface: where it was not, somebody has put it right, or set
            something else that is theirs, or the interface itself has gone.

        Raises:
            LinkdError: The kernel refused.
        """
        touched = False
        if self.exists(found.interface):
            index = self._index(found.interface)
            now = self._tc.qdiscs(index)
            # The ifb is made first and goes last: while it is there, an ingress hook is ours.
            if self.exists(ifb) and any(qdisc.kind == "ingress" for qdisc in now):
                self._call("delete the ingress hook", self._ip.tc, "del", "ingress", index)
                touched = True
            root, wanted = next((q for q in now if q.parent == TC_ROOT), None), found.root
            if root is not None and wanted is not None and root.handle == ROOT_HANDLE:
                touched = True
                if wanted.handle:
                    options = bytes.fromhex(wanted.options)
                    message = qdisc_message(index, TC_ROOT, wanted.handle, wanted.kind, options, create=True)
                    self._send([message], f"put {wanted.kind} back on {found.interface}")
                else:
                    where = {"index": index, "parent": TC_ROOT, "handle": ROOT_HANDLE}
                    self._call("delete htb", self._ip.tc, "del", **where)
        self.delete_ifb(ifb)
        return touched

    def delete_ifb(self, name: str) -> None:
        """Delete an ifb where it is there."""
        if self.exists(name):
            self._call(f"delete {name}", self._ip.link, "del", index=self._index(name))

    def counters(self, name: str) -> Dict[int, Counters]:
        """Return the counters of our classes on an interface, by class number."""
        result: Dict[int, Counters] = {}
        for entry in self._call("list classes", self._ip.get_classes, index=self._index(name)):
            if entry["handle"] & 0xFFFF0000 != ROOT_HANDLE or entry.get_attr("TCA_KIND") != "htb":
                continue
            stats = entry.get_attr("TCA_STATS2")
            basic, queue = stats.get_attr("TCA_STATS_BASIC"), stats.get_attr("TCA_STATS_QUEUE")
            result[entry["handle"] & 0xFFFF] = Counters(
                int(basic["bytes"]), int(basic["packets"]), int(queue["drops"]), int(queue["backlog"])
            )
        return result

    def _add(self, operation: Operation) -> None:
        if isinstance(operation, Ifb):
            self._add_ifb(operation)
            return
        index = self._index(operation.on)
        if isinstance(operation, (Class, Leaf)):
            name = "a tbf" if isinstance(operation, Leaf) else "a class of htb"
            self._send([rated_message(index, operation, create=True)], f"add {name} on {operation.on}")
            return
        command, kind, arguments = self._arguments(operation)
        what = f"add {_NAMES[type(operation)]} on {operation.on}"
        self._call(what, self._ip.tc, command, kind, index, **arguments)

    def _arguments(self, operation: Operation) -> Tuple[str, str, Dict[str, Any]]:
        """Return pyroute2's command, kind and arguments for an operation."""
        if isinstance(operation, Root):
            return "replace", "htb", {"handle": ROOT_HANDLE, "parent": TC_ROOT, "default": DEFAULT_MINOR}
        if isinstance(operation, Fifo):
            parent, limit = ROOT_HANDLE | operation.minor, operation.limit_packets
            return "add", "pfifo", {"handle": _FIFO_HANDLE, "parent": parent, "limit": limit}
        if isinstance(operation, Ingress):
            return "add", "ingress", {"handle": _INGRESS_HANDLE}
        if isinstance(operation, Match):
            offsets = _DESTINATION if operation.destination else _SOURCE
            arguments: Dict[str, Any] = {"parent": ROOT_HANDLE, "target": ROOT_HANDLE | operation.minor}
        elif isinstance(operation, Redirect):
            offsets = _SOURCE
            to = self._index(operation.to)
            action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": to}
            arguments = {"parent": _INGRESS_HANDLE, "target": 1, "action": action}
        else:
            raise TypeError(f"{operation} is made in another way")
        keys = _keys(operation.address, operation.port, offsets)
        arguments.update(prio=operation.priority, protocol=_ETH_P_IP, keys=keys)
        return "add-filter", "u32", arguments

    def _add_ifb(self, operation: Ifb) -> None:
        if self.exists(operation.name):
            raise RefusedError(
                f"there is an interface {operation.name} already: ip link del {operation.name}"
            )
        self._call(
            "add an ifb device", self._ip.link, "add", ifname=operation.name, kind="ifb", mtu=operation.mtu
        )
        self._call("bring the ifb up", self._ip.link, "set", index=self._index(operation.name), state="up")

    def _index(self, name: str) -> int:
        try:
            return socket.if_nametoindex(name)
        except OSError as error:
            raise LinkdError(f"there is no interface {name}") from error

    def _send(self, messages: List[Message], what: str) -> None:
        try:
            self._tc.send(messages)
        except TcError as error:
            raise LinkdError(f"the kernel did not {what}: {_words(error)}") from error

    def _call(self, what: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except self._error as error:
            raise LinkdError(f"the kernel did not {what}: {_words(error)}") from error


def _keys(address: str, port: int, offsets: Tuple[int, int]) -> List[str]:
    """Return u32 keys: TCP, an address, a port; the IP header without options, as every system sends it."""
    at_address, at_port = offsets
    number = int(ipaddress.IPv4Address(address))
    return ["0x06/0xff+9", f"{number:#010x}/0xffffffff+{at_address}", f"{port:#06x}/0xffff+{at_port}"]


def _words(error: Any) -> str:
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    words = str(getattr(error, "strerror", None) or error)
    if code in (errno.EOPNOTSUPP, errno.ENOENT):
        return f"{words} (is the kernel module there?)"
    if code in (errno.EPERM, errno.EACCES):
        return "this needs root"
    return words
