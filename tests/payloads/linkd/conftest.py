"""A kernel that only remembers, and a pair of throw-away network namespaces joined by a veth."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterator

import pytest

from payloads.linkd.errors import LinkdError
from payloads.linkd.found import TC_ROOT, Found, FoundQdisc
from payloads.linkd.plan import ROOT_HANDLE, Class, Ifb, Ingress, Interface, Leaf, Operation, Root
from payloads.linkd.tc import Counters

ROOT_OF_PROJECT = Path(__file__).parents[3]


@dataclass
class FakeKernel:
    """Keeps operations as the kernel would keep what they make; `fail_at` makes the nth addition fail."""

    mtu: int = 1500
    root: FoundQdisc = field(default_factory=lambda: FoundQdisc("noqueue", 0, TC_ROOT, ""))
    filters: int = 0
    comes_out_the_same: bool = True
    fail_at: int | None = None
    routes: dict[str, str] = field(default_factory=dict)
    there: list[Operation] = field(default_factory=list)
    log: list[tuple[str, Any]] = field(default_factory=list)
    state_path: Path | None = None
    added: int = 0

    def interface(self, name: str) -> Interface:
        return Interface(name, 3, self.mtu)

    def interface_towards(self, address: str) -> str:
        return self.routes.get(address, "eth0")

    def exists(self, name: str) -> bool:
        return name == "eth0" or any(isinstance(item, Ifb) and item.name == name for item in self.there)

    def found(self, name: str) -> Found:
        qdiscs = [self.root]
        if Root(name) in self.there:
            qdiscs = [FoundQdisc("htb", ROOT_HANDLE, TC_ROOT, "")]
        if Ingress(name) in self.there:
            qdiscs.append(FoundQdisc("ingress", 0xFFFF0000, 0xFFFFFFF1, ""))
        return Found(name, tuple(qdiscs), self.filters)

    def add(self, operations: Any) -> None:
        for item in operations:
            if self.state_path is not None:
                assert self.state_path.exists(), "changed before the state was written"
            self.added += 1
            if self.added == self.fail_at:
                raise LinkdError("the kernel did not")
            self.log.append(("add", item))
            self.there.append(item)

    def remove(self, operations: Any) -> None:
        for item in operations:
            self.log.append(("remove", item))
            self.there.remove(item)
            if isinstance(item, Class):
                inside = (item.on, item.minor)
                self.there = [
                    i for i in self.there if not (isinstance(i, Leaf) and (i.on, i.minor) == inside)
                ]

    def change(self, rated: Any) -> None:
        for item in rated:
            self.log.append(("change", item))
            same = (type(item), item.on, item.minor)
            old = next(
                i for i in self.there if (type(i), getattr(i, "on", ""), getattr(i, "minor", 0)) == same
            )
            self.there[self.there.index(old)] = item

    def try_to_make(self, qdisc: FoundQdisc, on: str) -> bool:
        assert self.exists(on)
        return self.comes_out_the_same

    def put_back(self, found: Found, ifb: str) -> bool:
        touched = Root(found.interface) in self.there
        self.log.append(("put back", found.interface))
        self.there.clear()
        return touched

    def counters(self, name: str) -> dict[int, Counters]:
        classes = [item for item in self.there if isinstance(item, Class) and item.on == name]
        return {item.minor: Counters(0, 0, 0, 0) for item in classes}


@pytest.fixture
def fake_kernel() -> FakeKernel:
    return FakeKernel()


def _sh(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@dataclass
class LinkPair:
    """A base station and a device, each a network namespace and a testbed folder."""

    folder: Path
    name: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    bs_address = "10.84.0.1"
    address = "10.84.0.2"

    def up(self) -> None:
        bs, device = f"{self.name}b", f"{self.name}d"
        key = secrets.token_hex(32)
        for namespace in (bs, device):
            _sh("ip", "netns", "add", namespace)
            _sh("ip", "-n", namespace, "link", "set", "lo", "up")
            home = self.home(namespace[-1])
            home.mkdir()
            (home / "key").touch(0o600)
            (home / "key").write_text(key)
        _sh(
            "ip",
            "link",
            "add",
            "name",
            "eth0",
            "netns",
            bs,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            device,
        )
        for namespace, address in ((bs, self.bs_address), (device, self.address)):
            _sh("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            _sh("ip", "-n", namespace, "link", "set", "eth0", "up")

    def down(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        for end in "bd":
            subprocess.run(["ip", "netns", "del", f"{self.name}{end}"], capture_output=True)

    def home(self, end: str) -> Path:
        """The testbed folder of an end (`b` or `d`): its path is short, for there are sockets in it."""
        return self.folder / end

    def environment(self, end: str) -> dict[str, str]:
        home = str(self.home(end))
        return {**os.environ, "PYTHONPATH": str(ROOT_OF_PROJECT), "TESTBED_HOME": home}

    def start(self, end: str, *args: str) -> subprocess.Popen[str]:
        """Start a linkd service in the namespace of an end (`b` or `d`) and wait until it serves."""
        ready = self.folder / f"ready-{len(self.processes)}"
        process = subprocess.Popen(
            ["ip", "netns", "exec", f"{self.name}{end}", sys.executable, "-m", "payloads.linkd", *args],
            env={**self.environment(end), "TESTBED_READY": str(ready)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        deadline = time.monotonic() + 60
        while not ready.exists():
            if process.poll() is not None:
                raise AssertionError(process.communicate()[1])
            assert time.monotonic() < deadline, "the service did not get ready"
            time.sleep(0.02)
        return process

    def start_command(self, *args: str) -> subprocess.Popen[str]:
        """Start a linkd command at the base station and do not wait for it."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", f"{self.name}b", sys.executable, "-m", "payloads.linkd", *args],
            env=self.environment("b"),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def linkd(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a linkd command at the base station."""
        done = subprocess.run(
            ["ip", "netns", "exec", f"{self.name}b", sys.executable, "-m", "payloads.linkd", *args],
            env=self.environment("b"),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def links(self, down: float, up: float, **changes: Any) -> str:
        link = {
            "device": "board",
            "address": self.address,
            "port": 7070,
            "downlink_mbit": down,
            "uplink_mbit": up,
        }
        return json.dumps([{**link, **changes}])

    def set(self, down: float, up: float) -> dict[str, Any]:
        return json.loads(self.linkd("set", "--links", self.links(down, up)).stdout)

    def probe(self, *args: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.linkd("probe", *args).stdout.splitlines()]

    def tc(self, *args: str) -> str:
        return _sh("tc", "-n", f"{self.name}b", *args)

    def qdiscs(self) -> str:
        """What tc shows of the base station's interface, without what counts."""
        text = self.tc("qdisc", "show", "dev", "eth0")
        return re.sub(r"(refcnt|direct_packets_stat) \d+ ?", "", text)

    def interfaces(self) -> list[str]:
        return [entry["ifname"] for entry in json.loads(_sh("ip", "-n", f"{self.name}b", "-j", "link"))]

    @property
    def socket(self) -> Path:
        return self.home("b") / "linkd.sock"

    @property
    def state(self) -> Path:
        return self.home("b") / "linkd.state.json"


def runs(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody buries does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that a process has started and that it has not collected."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
        return [int(pid) for pid in children.read().split()]


def kill_with(daemon: subprocess.Popen[str], children: list[int]) -> None:
    """Kill a daemon and children of it: it is stopped before, lest it start another of those in between."""
    daemon.send_signal(signal.SIGSTOP)
    for child in children:
        os.kill(child, signal.SIGKILL)
    daemon.kill()
    daemon.wait()


def _pair(folder: Path) -> Iterator[LinkPair]:
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        pytest.skip(f"{missing[0]} is not installed (package iproute2)")
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces and queueing disciplines")
    pair = LinkPair(folder, f"tbl{os.getpid()}{secrets.token_hex(2)}")
    try:
        pair.up()
        yield pair
    finally:
        pair.down()


@pytest.fixture
def link_pair(tmp_path: Path) -> Iterator[LinkPair]:
    """A fresh pair."""
    yield from _pair(tmp_path)


@pytest.fixture(scope="module")
def free_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkPair]:
    """A pair for the whole module."""
    yield from _pair(tmp_path_factory.mktemp("links"))


@pytest.fixture(scope="module")
def shaped_pair(free_pair: LinkPair) -> LinkPair:
    """That pair, with the daemon and the probe responder running."""
    free_pair.start("d", "respond", "--listen", f"{free_pair.address}:7071")
    free_pair.start("b", "serve", "--leaf", "tbf")
    return free_pair


@pytest.fixture
def with_root() -> Any:
    """A fake kernel whose interface has a root of the given kind and handle."""

    def make(kind: str, handle: int, **changes: Any) -> FakeKernel:
        return replace(FakeKernel(), root=FoundQdisc(kind, handle, TC_ROOT, "2a000000"), **changes)

    return make
