"""The one module of linkd that touches the kernel, over netlink."""

from __future__ import annotations

import errno
import socket
from typing import Dict, Iterable, List, Sequence

from payloads.linkd import rtnl, tc
from payloads.linkd.errors import LinkdError, RefusedError
from payloads.linkd.found import TC_INGRESS, TC_ROOT, Found, FoundQdisc
from payloads.linkd.netlink import Message, NetlinkError, NetlinkSocket
from payloads.linkd.plan import (
    ROOT_HANDLE,
    Class,
    Cutter,
    Fifo,
    Ifb,
    Ingress,
    Interface,
    Leaf,
    Match,
    Netem,
    Operation,
    Rated,
    Redirect,
    Root,
)
from payloads.linkd.tc import Counters

__all__ = ["Counters", "Kernel"]

_RTN_UNICAST = 1
_NAMES = {
    Root: "htb",
    Class: "a class of htb",
    Fifo: "a pfifo",
    Leaf: "a tbf",
    Cutter: "a tbf",
    Netem: "a netem",
    Ingress: "an ingress hook",
    Match: "a u32 filter",
    Redirect: "a u32 filter with mirred",
}


class Kernel:
    """Reads and changes interfaces and their queueing disciplines."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def interface(self, name: str) -> Interface:
        """Return an interface by name.

        Raises:
            LinkdError: There is none.
        """
        index = self._index(name)
        try:
            return Interface(name, index, rtnl.interface_mtu(self._netlink, index))
        except NetlinkError as error:
            raise LinkdError(f"the kernel did not show {name}: {_words(error)}") from error

    def exists(self, name: str) -> bool:
        """Return whether there is an interface of that name."""
        return any(name == other for _index, other in socket.if_nameindex())

    def interface_towards(self, address: str) -> str:
        """Return the name of the interface that an address is reached through.

        Raises:
            LinkdError: There is no route, or the address is one of this host.
        """
        try:
            kind, index = rtnl.route(self._netlink, address)
        except NetlinkError as error:
            raise LinkdError(f"there is no route to {address}: {_words(error)}") from error
        if kind != _RTN_UNICAST:
            raise LinkdError(f"{address} is no address of another host")
        return socket.if_indextoname(index)

    def found(self, name: str) -> Found:
        """Return what an interface has."""
        index = self._index(name)
        qdiscs = tc.list_qdiscs(self._netlink, index)
        return Found(name, tuple(qdiscs), tc.count_filters(self._netlink, index))

    def add(self, operations: Iterable[Operation]) -> None:
        """Make what a plan asks for, in order.

        Raises:
            LinkdError: The kernel refused; the message says what and why.
        """
        for operation in operations:
            if isinstance(operation, Ifb):
                self._add_ifb(operation)
            else:
                name = _NAMES[type(operation)]
                self._send([self._message(operation)], f"add {name} on {operation.on}")

    def remove(self, operations: Iterable[Operation]) -> None:
        """Take away what :meth:`add` made, in the order given."""
        for operation in operations:
            if isinstance(operation, (Match, Redirect)):
                message = tc.delete_filter_message(self._index(operation.on), operation)
                self._send([message], f"delete a filter of {operation.address}")
            elif isinstance(operation, Class):
                message = tc.delete_class_message(self._index(operation.on), operation.minor)
                self._send([message], f"delete the class of {operation.owner}")
            else:
                raise TypeError(f"{operation} goes only with its interface")

    def change(self, rated: Sequence[Rated]) -> None:
        """Give classes and leaves another rate, all in one call; queues and waiting packets stay."""
        indexes = {name: self._index(name) for name in {item.on for item in rated}}
        self._send([tc.rated_message(indexes[item.on], item) for item in rated], "change a rate")

    def try_to_make(self, qdisc: FoundQdisc, on: str) -> bool:
        """Return whether a queueing discipline comes out the same when made again on an interface of ours.

        Where there is no such interface yet, a pair of them is made for the trial.
        """
        lent = not self.exists(on)
        if lent:
            self._send([rtnl.add_veth_message(on, f"{on}p")], f"add {on} to try {qdisc.kind} out")
        index = self._index(on)
        try:
            options = tc.options_to_make(qdisc)
            message = tc.qdisc_message(index, TC_ROOT, qdisc.handle, qdisc.kind, options, create=True)
            self._netlink.send([message])
            made = [item for item in tc.list_qdiscs(self._netlink, index) if item.parent == TC_ROOT]
        except NetlinkError:
            return False
        else:
            self._send([tc.delete_qdisc_message(index, TC_ROOT, qdisc.handle)], "delete the trial")
            return made == [qdisc]
        finally:
            if lent:
                self.delete_interface(on)

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
            now = tc.list_qdiscs(self._netlink, index)
            # The ifb is made first and goes last: while it is there, an ingress hook is ours.
            if self.exists(ifb) and any(qdisc.kind == "ingress" for qdisc in now):
                message = tc.delete_qdisc_message(index, TC_INGRESS, tc.INGRESS_HANDLE)
                self._send([message], "delete the ingress hook")
                touched = True
            root, wanted = next((q for q in now if q.parent == TC_ROOT), None), found.root
            if root is not None and wanted is not None and root.handle == ROOT_HANDLE:
                touched = True
                if wanted.handle:
                    options = tc.options_to_make(wanted)
                    message = tc.qdisc_message(
                        index, TC_ROOT, wanted.handle, wanted.kind, options, create=True
                    )
                    self._send([message], f"put {wanted.kind} back on {found.interface}")
                else:
                    self._send([tc.delete_qdisc_message(index, TC_ROOT, ROOT_HANDLE)], "delete htb")
        self.delete_interface(ifb)
        return touched

    def delete_interface(self, name: str) -> None:
        """Delete an interface of ours where it is there."""
        if self.exists(name):
            self._send([rtnl.delete_link_message(self._index(name))], f"delete {name}")

    def counters(self, name: str) -> Dict[int, Counters]:
        """Return the counters of our classes on an interface, by class number."""
        try:
            return tc.class_counters(self._netlink, self._index(name))
        except NetlinkError as error:
            raise LinkdError(f"the kernel did not list the classes of {name}: {_words(error)}") from error

    def _message(self, operation: Operation) -> Message:
        index = self._index(operation.on)  # type: ignore[union-attr]
        if isinstance(operation, (Class, Leaf, Cutter, Netem)):
            return tc.rated_message(index, operation, create=True)
        if isinstance(operation, Root):
            return tc.root_message(index)
        if isinstance(operation, Fifo):
            return tc.fifo_message(index, operation)
        if isinstance(operation, Ingress):
            return tc.ingress_message(index)
        if isinstance(operation, Match):
            return tc.filter_message(index, operation)
        if isinstance(operation, Redirect):
            return tc.filter_message(index, operation, self._index(operation.to))
        raise TypeError(f"{operation} is made in another way")

    def _add_ifb(self, operation: Ifb) -> None:
        if self.exists(operation.name):
            raise RefusedError(
                f"there is an interface {operation.name} already: ip link del {operation.name}"
            )
        self._send([rtnl.add_link_message(operation.name, "ifb", operation.mtu)], "add an ifb device")
        self._send([rtnl.link_up_message(self._index(operation.name))], "bring the ifb up")

    def _index(self, name: str) -> int:
        try:
            return socket.if_nametoindex(name)
        except OSError as error:
            raise LinkdError(f"there is no interface {name}") from error

    def _send(self, messages: List[Message], what: str) -> None:
        try:
            self._netlink.send(messages)
        except NetlinkError as error:
            raise LinkdError(f"the kernel did not {what}: {_words(error)}") from error


def _words(error: OSError) -> str:
    words = error.strerror or str(error)
    if error.errno in (errno.EOPNOTSUPP, errno.ENOENT):
        return f"{words} (is the kernel module there?)"
    if error.errno in (errno.EPERM, errno.EACCES):
        return "this needs root"
    return words
