"""The network of scripts/bench/pulling.py: a base station and devices, each a network namespace, at one switch.

Every cable has the same rate in both directions: a token bucket at each of its ends.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

__all__ = ["BS", "Lab", "sh"]

BS = "bs"
INTERFACE = "eth0"
SWITCH = "switch"
_QUEUE = ("burst", "128kb", "limit", "1mb")
_END_S = 15.0


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
    """A base station and devices. Use it as a context manager.

    Args:
        devices: How many devices.
        mbit: The rate of every cable, in each direction.
    """

    def __init__(self, devices: int, mbit: float) -> None:
        self.devices = tuple(f"d{number}" for number in range(devices))
        self.hosts = (BS, *self.devices)
        self.mbit = mbit
        self._name = f"tbp{os.getpid()}{secrets.token_hex(2)}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def namespace(self, host: str) -> str:
        """Return the name of a host's network namespace."""
        return f"{self._name}{host}"

    def address(self, host: str) -> str:
        """Return a host's address."""
        return f"10.107.0.{1 + self.hosts.index(host)}"

    def command(self, host: str, *words: str) -> list[str]:
        """Return a command as it is run in a host's namespace."""
        return ["ip", "netns", "exec", self.namespace(host), *words]

    def start(
        self, host: str, *words: str, environment: Mapping[str, str], output: Path
    ) -> subprocess.Popen[bytes]:
        """Start a process at a host; it is ended with the lab.

        Args:
            host: Where.
            words: The command.
            environment: What is added to this process's environment.
            output: Where its output and its errors go.
        """
        with output.open("wb") as file:
            process = subprocess.Popen(
                self.command(host, *words), env={**os.environ, **environment}, stdout=file, stderr=file
            )
        self._processes.append(process)
        return process

    def sent_bytes(self, host: str) -> int:
        """Return the bytes of the frames that a host has sent."""
        path = f"/sys/class/net/{INTERFACE}/statistics/tx_bytes"
        return int(sh(*self.command(host, "cat", path)))

    def __enter__(self) -> Self:
        try:
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            end(process)
        for host in (SWITCH, *self.hosts):
            subprocess.run(["ip", "netns", "del", self.namespace(host)], capture_output=True)

    def _up(self) -> None:
        switch = self.namespace(SWITCH)
        for host in (SWITCH, *self.hosts):
            sh("ip", "netns", "add", self.namespace(host))
            sh("ip", "-n", self.namespace(host), "link", "set", "lo", "up")
        sh("ip", "-n", switch, "link", "add", "name", "bridge", "type", "bridge")
        sh("ip", "-n", switch, "link", "set", "bridge", "up")
        for host in self.hosts:
            here = self.namespace(host)
            peer = ("type", "veth", "peer", "name", host, "netns", switch)
            sh("ip", "link", "add", "name", INTERFACE, "netns", here, *peer)
            sh("ip", "-n", switch, "link", "set", host, "master", "bridge")
            sh("ip", "-n", switch, "link", "set", host, "up")
            sh("ip", "-n", here, "addr", "add", f"{self.address(host)}/24", "dev", INTERFACE)
            sh("ip", "-n", here, "link", "set", INTERFACE, "up")
            for namespace, interface in ((here, INTERFACE), (switch, host)):
                rate = ("rate", f"{self.mbit:g}mbit", *_QUEUE)
                sh("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf", *rate)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and wait until it has."""
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def await_file(path: Path, process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    """Wait until a process has made a file.

    Raises:
        RuntimeError: It ended, or did not make it in time.
    """
    deadline = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start")
        time.sleep(0.02)
