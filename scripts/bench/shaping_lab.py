"""The network of scripts/bench/shaping.py: a base station and devices, each a network namespace, on one cable.

This process enters the base station's namespace; a device's responder runs in the device's.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INTERFACE = "eth0"
BS_ADDRESS = "10.85.0.1"
PORT, PROBE_PORT = 7070, 7071
_CLONE_NEWNET = 0x40000000
_READY_S = 20.0


def sh(*words: str) -> str:
    """Run a command and return what it printed.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Lab:
    """A base station and devices. Use it as a context manager; this process is at the base station inside.

    Args:
        devices: How many devices.
        folder: Where keys and state files lie.
    """

    def __init__(self, devices: int, folder: Path) -> None:
        self.devices = tuple(f"d{number}" for number in range(devices))
        self._folder = folder
        self._name = f"tbs{os.getpid()}{secrets.token_hex(2)}"
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._daemon: subprocess.Popen[bytes] | None = None
        self.key_file = folder / "key"
        self.socket_file = folder / "linkd.sock"

    def namespace(self, host: str) -> str:
        """Return the name of a host's network namespace: ``bs``, ``switch`` or a device's."""
        return f"{self._name}{host}"

    def address(self, device: str) -> str:
        """Return a device's address."""
        return f"10.85.0.{11 + self.devices.index(device)}"

    def __enter__(self) -> Lab:
        try:
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_daemon()
        for process in self._processes:
            _end(process)
        _enter(self._home)
        os.close(self._home)
        for host in ("bs", "switch", *self.devices):
            subprocess.run(["ip", "netns", "del", self.namespace(host)], capture_output=True)

    def start_daemon(self, *args: str) -> None:
        """Start linkd at the base station."""
        self.stop_daemon()
        state = str(self._folder / "linkd.state.json")
        self._daemon = self._service(
            "bs", "serve", "--socket", str(self.socket_file), "--state", state, *args
        )

    def stop_daemon(self) -> None:
        """Stop linkd, which puts everything back."""
        if self._daemon is not None:
            _end(self._daemon)
            self._daemon = None

    def run(self, host: str, *words: str) -> str:
        """Run a command in a host's namespace and return what it printed."""
        return sh("ip", "netns", "exec", self.namespace(host), *words)

    def _up(self) -> None:
        self.key_file.touch(0o600)
        self.key_file.write_text(secrets.token_hex(32))
        switch = self.namespace("switch")
        for host in ("switch", "bs", *self.devices):
            sh("ip", "netns", "add", self.namespace(host))
            sh("ip", "-n", self.namespace(host), "link", "set", "lo", "up")
        # The devices share the other end of the base station's cable, as macvlan: one hop, where a bridge has
        # two, and each costs as much as a frame's way through the shaper.
        peer = ("peer", "name", "cable", "netns", switch)
        sh("ip", "link", "add", "name", INTERFACE, "netns", self.namespace("bs"), "type", "veth", *peer)
        sh("ip", "-n", switch, "link", "set", "cable", "up")
        for device in self.devices:
            sh(
                "ip",
                "-n",
                switch,
                "link",
                "add",
                device,
                "link",
                "cable",
                "type",
                "macvlan",
                "mode",
                "private",
            )
            sh("ip", "-n", switch, "link", "set", device, "netns", self.namespace(device), "name", INTERFACE)
        for host in ("bs", *self.devices):
            address = BS_ADDRESS if host == "bs" else self.address(host)
            sh("ip", "-n", self.namespace(host), "addr", "add", f"{address}/24", "dev", INTERFACE)
            sh("ip", "-n", self.namespace(host), "link", "set", INTERFACE, "up")
        for device in self.devices:
            listen = f"{self.address(device)}:{PROBE_PORT}"
            args = ("respond", "--listen", listen, "--key-file", str(self.key_file))
            self._processes.append(self._service(device, *args))
        base_station = os.open(f"/run/netns/{self.namespace('bs')}", os.O_RDONLY)
        _enter(base_station)
        os.close(base_station)

    def _service(self, host: str, *args: str) -> subprocess.Popen[bytes]:
        ready = self._folder / f"ready-{secrets.token_hex(4)}"
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(host), sys.executable, "-m", "payloads.linkd", *args],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TESTBED_READY": str(ready)},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _READY_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                _end(process)
                raise RuntimeError(f"linkd {args[0]} did not start in {host}")
            time.sleep(0.02)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")
