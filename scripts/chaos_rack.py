"""The rack that chaos.py disturbs: workers in network namespaces of their own, and what can happen to them."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from payloads.wire.credentials import Credentials, PlainKey, TlsCertificate
from testbed.config.inventory import Host
from testbed.hosts.authority import new_authority

__all__ = [
    "BACK_S",
    "CUT_S",
    "DEAD_S",
    "EVENTS",
    "PORT",
    "ROOT",
    "STOP_S",
    "Disturbance",
    "Far",
    "prove",
    "rack",
]

ROOT = Path(__file__).resolve().parents[1]
PORT = 7070
#: Of this process alone, so that two of them can run beside each other.
NETWORK = f"10.{200 + os.getpid() % 50}"
EVENTS = ("kill", "restart", "stop", "cut")
CUT_S, STOP_S, DEAD_S = 5.0, 2.0, 0.5
#: What a device may need to be taken back once it is mended, and how much slower passes are until then.
BACK_S, SLOWER_S = 3.0, 0.02
#: What a worker needs until it serves again, torch included, on a busy machine.
START_S = 60.0


@dataclass
class Far:
    """A device: a worker in a namespace of its own."""

    number: int
    home: Path
    security: str = "tls"
    process: subprocess.Popen[bytes] | None = None
    log: Any = None

    @property
    def name(self) -> str:
        """Its name."""
        return f"dev{self.number}"

    @property
    def namespace(self) -> str:
        """Its namespace, and the stem of its link's two ends."""
        return f"tbc{os.getpid() % 100000}x{self.number}"

    @property
    def address(self) -> str:
        """Its address."""
        return f"{NETWORK}.{self.number}.2"

    def lay_link(self) -> None:
        """Make its namespace and its link to the base station."""
        stem = self.namespace
        for command in (
            f"ip netns add {stem}",
            f"ip link add {stem}a type veth peer name {stem}b",
            f"ip link set {stem}b netns {stem}",
            f"ip addr add {NETWORK}.{self.number}.1/30 dev {stem}a",
            f"ip link set {stem}a up",
            f"ip -n {stem} addr add {self.address}/30 dev {stem}b",
            f"ip -n {stem} link set {stem}b up",
        ):
            run(command)
        self.mac = run(f"ip netns exec {stem} cat /sys/class/net/{stem}b/address").strip()

    def remove_link(self) -> None:
        """Remove both."""
        subprocess.run(["ip", "netns", "delete", self.namespace], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", f"{self.namespace}a"], check=False, capture_output=True)

    def cut(self) -> None:
        """Let nothing through any more, without a word: its frames go to nobody, and it takes none."""
        stem = self.namespace
        run(f"ip -n {stem} link set {stem}b arp off address 02:00:00:00:00:01")

    def mend(self) -> None:
        """Undo :meth:`cut`."""
        stem = self.namespace
        run(f"ip -n {stem} link set {stem}b arp on address {self.mac}")

    def start(self) -> None:
        """Start its worker."""
        self.ready.unlink(missing_ok=True)
        command = ["ip", "netns", "exec", self.namespace, sys.executable, "-m"]
        command += ["payloads.wdmoe.worker.expert_worker", "--wanted", str(self.home / f"{self.name}.json")]
        command += ["--listen", f"{self.address}:{PORT}"]
        proof = ["--key-file", str(self.home / "key")]
        command += ["--tls", str(self.home / "tls" / self.name)] if self.security == "tls" else proof
        command += ["--objects", str(self.home / "objects")]
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TESTBED_READY": str(self.ready)}
        self.process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=self.log
        )

    @property
    def ready(self) -> Path:
        """The file that its worker makes when it serves."""
        return self.home / f"{self.name}.ready"

    def wait_ready(self) -> None:
        """Wait until its worker serves."""
        deadline = time.monotonic() + START_S
        while not self.ready.exists():
            if time.monotonic() > deadline or self.process is None or self.process.poll() is not None:
                raise SystemExit(f"{self.name} does not start; see {self.log.name}")
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send its worker a signal, which is the process that ``ip netns exec`` became."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def end(self, number: int) -> None:
        """End its worker."""
        self.signal(number)
        if self.process is not None:
            self.process.wait(30)


def run(command: str) -> str:
    """Run a command; return its output."""
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


@dataclass
class Disturbance:
    """One event: what happens to which device, at which pass of its trial."""

    kind: str
    device: Far
    at_pass: int
    passes: int = 0
    begun_s: float = 0.0
    mended_s: float = 0.0
    error: BaseException | None = None
    thread: threading.Thread | None = field(default=None, repr=False)

    def tick(self) -> None:
        """Count a pass; begin when it is time, and then see that the trial does not end before the device is back."""
        if self.passes == self.at_pass:
            self.begin()
        elif self.begun_s and (not self.mended_s or time.monotonic() < self.mended_s + BACK_S):
            time.sleep(SLOWER_S)
        self.passes += 1

    def begin(self) -> None:
        """Begin, and mend it later."""
        device = self.device
        self.begun_s = time.monotonic()
        if self.kind == "kill":
            device.end(signal.SIGKILL)
        elif self.kind == "restart":
            device.end(signal.SIGTERM)
        elif self.kind == "stop":
            device.signal(signal.SIGSTOP)
        else:
            device.cut()
        self.thread = threading.Thread(target=self._mend, daemon=True)
        self.thread.start()

    def _mend(self) -> None:
        device = self.device
        try:
            if self.kind == "cut":
                time.sleep(CUT_S)
                device.mend()
            elif self.kind == "stop":
                time.sleep(STOP_S)
                device.signal(signal.SIGCONT)
            else:
                time.sleep(DEAD_S if self.kind == "kill" else 0.0)
                device.start()
                device.wait_ready()
        except BaseException as error:
            self.error = error
        self.mended_s = time.monotonic()

    def finish(self) -> None:
        """Wait until it is mended."""
        if self.thread is not None:
            self.thread.join(START_S + CUT_S)
        if self.error is not None:
            raise self.error


def prove(home: Path, devices: list[Far]) -> Credentials:
    """Give all hosts what they prove themselves with; return the base station's."""
    key = home / "key"
    key.write_text(secrets.token_hex(32))
    key.chmod(0o600)
    now = datetime.now(UTC)
    authority = new_authority("chaos", now)
    hosts = [Host(name=one.name, role="device", address=one.address) for one in devices]
    for host in [Host(name="bs", role="base_station", address="127.0.0.1"), *hosts]:
        folder = home / "tls" / host.name
        folder.mkdir(parents=True)
        for name, content in authority.files(host, now).items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
    return TlsCertificate(home / "tls" / "bs") if devices[0].security == "tls" else PlainKey(key)


@contextmanager
def rack(home: Path, count: int, security: str) -> Iterator[list[Far]]:
    """Make devices with their links, and remove them."""
    with ExitStack() as stack:
        devices = []
        for number in range(count):
            device = Far(
                number, home, security, log=stack.enter_context((home / f"dev{number}.log").open("wb"))
            )
            stack.callback(device.remove_link)
            device.lay_link()
            stack.callback(device.end, signal.SIGKILL)
            devices.append(device)
        yield devices
