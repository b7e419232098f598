"""What this host's kernel can do, found by doing it: in a network namespace that ends with its process.

Names and versions of kernels tell too little: configurations differ, and a module may be missing from the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import platform
import signal
import socket
import struct
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

from payloads.linkd import rtnl, tc
from payloads.linkd.errors import RefusedError
from payloads.linkd.found import TC_INGRESS, TC_ROOT
from payloads.linkd.links import Link
from payloads.linkd.netlink import Message, NetlinkError, NetlinkSocket
from payloads.linkd.plan import ROOT_HANDLE, Class, Match, Netem, Redirect

__all__ = ["BACKENDS", "KINDS", "backends_of", "capabilities", "choose_leaf", "may_shape"]

_BS = ("htb", "ifb", "u32", "ingress", "mirred")
#: What each backend needs of the kernel.
BACKENDS: Mapping[str, Tuple[str, ...]] = {
    "bs-htb-tbf": (*_BS, "tbf"),
    "bs-htb-netem": (*_BS, "tbf", "netem"),
    "bs-line": (*_BS, "tun"),
    "device-htb-tbf": ("htb", "u32", "tbf"),
    "device-htb-netem": ("htb", "u32", "tbf", "netem"),
}
KINDS = ("htb", "tbf", "netem", "ifb", "u32", "ingress", "mirred", "tun")
_MODULES = {"ifb": "ifb", "u32": "cls_u32", "mirred": "act_mirred"}
_CLONE_NEWNET = 0x40000000
_CAP_NET_ADMIN = 12
_TIMEOUT_S = 20
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
_SO_MAX_PACING_RATE = 47


def may_shape() -> bool:
    """Return whether this process may change interfaces (CAP_NET_ADMIN)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False


def capabilities() -> Dict[str, Any]:
    """Return what this host can do: ``root``, ``kinds`` and ``backends``, each null or why not.

    Each kind is made on a veth in a network namespace of a child process; nothing of it is left behind.
    """
    root = may_shape()
    kinds = _in_namespace() if root else dict.fromkeys(KINDS, "needs root")
    return {"root": root, "kinds": kinds, "backends": backends_of(kinds, _pacing())}


def backends_of(kinds: Mapping[str, Optional[str]], pacing: Optional[str]) -> Dict[str, Optional[str]]:
    """Return for each backend None, or what it lacks."""
    result: Dict[str, Optional[str]] = {}
    for backend, needs in BACKENDS.items():
        missing = [f"{kind}: {kinds[kind]}" for kind in needs if kinds[kind] is not None]
        result[backend] = "; ".join(missing) or None
    return {**result, "socket-pacing": pacing}


def choose_leaf(
    asked: str,
    links: Sequence[Link],
    side: str,
    able: Callable[[], Mapping[str, Any]],
    varies: bool = False,
) -> str:
    """Return the leaf that gives the links what they ask for.

    Args:
        asked: ``auto``, ``tbf``, ``netem`` or ``line``. ``auto`` is the most exact that there is (docs/links.md):
            netem where the kernel has it, else the line where it can run and keeps up with the rates, else tbf.
            Where rates vary, the line or tbf come first: what waits in a netem keeps its time when the rate changes.
        links: The links, with the highest rates that they will come to.
        side: ``bs`` or ``device``.
        able: Returns the :func:`capabilities`; called only where they decide.
        varies: Whether the rates change while the links are in use.

    Raises:
        RefusedError: This host has nothing that gives it; the message says what is missing.
    """
    needs_more = _impairment(links)
    if asked == "tbf":
        if needs_more:
            raise RefusedError(
                f"refused: {needs_more} cannot be given by the leaf tbf: serve with --leaf auto, netem or line"
            )
        return "tbf"
    if asked == "line" and side == "device":
        raise RefusedError("refused: the leaf line runs at the base station: serve with --side bs")
    found = able()
    kinds, backends = found["kinds"], found["backends"]
    host = platform.node() or "this host"
    netem, line = (
        backends[f"{side}-htb-netem"],
        backends["bs-line"] if side == "bs" else "at the base station",
    )
    if asked == "netem":
        if netem:
            raise RefusedError(f"refused: the leaf netem needs what {host} does not have ({netem})")
        return "netem"
    if asked == "line":
        if line:
            raise RefusedError(f"refused: the leaf line needs what {host} does not have ({line})")
        return "line"
    if netem is None and not varies:
        return "netem"
    if line is None and _line_keeps_up(links):
        return "line"
    if not needs_more:
        return "tbf"
    if netem is None:
        return "netem"
    if line is None:
        return "line"  # which says what it keeps up with
    if side == "device":
        text = f"{needs_more} on the device needs sch_netem, and {host} does not have it ({netem})"
        raise RefusedError(f"refused: {text}: shape at the base station")
    if kinds["netem"] is not None and kinds["tun"] is not None:
        text = (
            f"{needs_more} needs sch_netem, or /dev/net/tun for the user-space line, and {host} has neither"
        )
        raise RefusedError(f"refused: {text} (netem: {kinds['netem']}; tun: {kinds['tun']})")
    text = f"{needs_more} needs the leaf netem or line, and {host} can give neither"
    raise RefusedError(f"refused: {text} (netem needs {netem}; line needs {line})")


def _line_keeps_up(links: Sequence[Link]) -> bool:
    from payloads.linkd.line import check

    try:
        check(links)
    except RefusedError:
        return False
    return True


def _impairment(links: Sequence[Link]) -> Optional[str]:
    for key, name in (("delay_ms", "delay"), ("jitter_ms", "jitter"), ("loss_percent", "loss")):
        if any(getattr(link, key) for link in links):
            return name
    return None


def _pacing() -> Optional[str]:
    """Return None where TCP sockets can be paced, or why not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, 125_000)
            if probe.getsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE) == 125_000:
                return None
        except OSError as error:
            return f"SO_MAX_PACING_RATE: {error.strerror}"
    return "SO_MAX_PACING_RATE: the kernel does not keep it"


def _in_namespace() -> Dict[str, Optional[str]]:
    """Return for each kind None or why not, tried out in a child process."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
                signal.signal(number, signal.SIG_DFL)
            signal.alarm(_TIMEOUT_S)
            os.close(read_end)
            os.write(write_end, json.dumps(_try_all()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    try:
        found: Dict[str, Optional[str]] = json.loads(answer)
    except ValueError:
        return dict.fromkeys(KINDS, "could not be tried")
    return found


def _try_all() -> Dict[str, Optional[str]]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        words = os.strerror(ctypes.get_errno())
        return dict.fromkeys(KINDS, f"could not be tried: a network namespace: {words}")
    netlink = NetlinkSocket()
    name = "tbtry0"
    try:
        netlink.send([rtnl.add_veth_message(name, "tbtry1")])
    except NetlinkError:
        name = "lo"  # without veth the loopback takes queueing disciplines as well
    index = socket.if_nametoindex(name)
    with contextlib.suppress(NetlinkError):
        netlink.send([rtnl.link_up_message(index)])
    return _Trials(netlink, index).all()


class _Trials:
    """One trial of each kind, on one interface."""

    def __init__(self, netlink: NetlinkSocket, index: int) -> None:
        self._netlink = netlink
        self._index = index

    def all(self) -> Dict[str, Optional[str]]:
        return {kind: self._try(getattr(self, f"_{kind}")) for kind in KINDS}

    def _try(self, trial: Callable[[], None]) -> Optional[str]:
        try:
            trial()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
                return "not in this kernel"
            return error.strerror or str(error)
        return None

    def _send(self, *messages: Message) -> None:
        for message in messages:
            self._netlink.send([message])

    def _drop_root(self, handle: int) -> None:
        with contextlib.suppress(NetlinkError):
            self._send(tc.delete_qdisc_message(self._index, TC_ROOT, handle))

    def _htb(self) -> None:
        try:
            self._send(
                tc.root_message(self._index),
                tc.rated_message(self._index, Class("", 1, "", 125_000, 6_000), create=True),
            )
        finally:
            self._drop_root(ROOT_HANDLE)

    def _tbf(self) -> None:
        # As a tbf of somebody else's would be: at the root.
        self._root("tbf", tc.tbf_options(125_000, 1_600, 100_000))

    def _netem(self) -> None:
        self._root("netem", tc.netem_options(Netem("", 1, "", 125_000, 100, 1_000_000)))

    def _root(self, kind: str, options: bytes) -> None:
        handle = 0x10000
        try:
            self._send(tc.qdisc_message(self._index, TC_ROOT, handle, kind, options, create=True))
        finally:
            self._drop_root(handle)

    def _ifb(self) -> None:
        self._send(rtnl.add_link_message("tbtry2", "ifb"))

    def _u32(self) -> None:
        """Try the filter below htb, or at the ingress hook where there is no htb."""
        match = Match("", 1, 1, True, "10.0.0.1", 7070)
        try:
            self._send(tc.root_message(self._index))
        except NetlinkError:
            self._at_ingress(tc.filter_message(self._index, match, parent=tc.INGRESS_HANDLE))
            return
        try:
            self._send(
                tc.rated_message(self._index, Class("", 1, "", 125_000, 6_000), create=True),
                tc.filter_message(self._index, match),
            )
        finally:
            self._drop_root(ROOT_HANDLE)

    def _ingress(self) -> None:
        self._at_ingress()

    def _mirred(self) -> None:
        redirect = Redirect("", "", 1, "10.0.0.1", 7070)
        self._at_ingress(tc.filter_message(self._index, redirect, self._index))

    def _at_ingress(self, *messages: Message) -> None:
        self._send(tc.ingress_message(self._index))
        try:
            self._send(*messages)
        finally:
            self._send(tc.delete_qdisc_message(self._index, TC_INGRESS, tc.INGRESS_HANDLE))

    def _tun(self) -> None:
        try:
            descriptor = os.open("/dev/net/tun", os.O_RDWR)
        except OSError as error:
            raise OSError(0, f"/dev/net/tun: {error.strerror}") from error
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"tbtry3", _IFF_TAP | _IFF_NO_PI))
        finally:
            os.close(descriptor)
