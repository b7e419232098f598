"""The hosts of scripts/bench/pulling.py: their objects, servers, pulls, and the programs they are compared with."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pulling_lab import BS, Lab, await_file, sh

from payloads.artifacts.store import bearer_token

__all__ = ["Site"]

ROOT = Path(__file__).resolve().parents[2]
PORT, SSH_PORT = 7080, 2222
SLOW_SYNC = """import os, time
_fsync = os.fsync
def slow(descriptor):
    time.sleep({seconds})
    _fsync(descriptor)
os.fsync = slow
"""

Objects = list[tuple[str, int]]


class Site:
    """The hosts of a lab, each with a home of its own.

    Args:
        lab: Their network.
        root: The folder of their homes.
        python: The interpreter that pulls and serves.
    """

    def __init__(self, lab: Lab, root: Path, python: str) -> None:
        self.lab = lab
        self._root = root
        self._python = python
        for host in lab.hosts:
            (self._home(host) / "objects").mkdir(parents=True)
            (self._home(host) / "key").write_text("ab" * 32)

    def _home(self, host: str) -> Path:
        return self._root / host

    def _environment(self, host: str, sync_ms: float = 0) -> dict[str, str]:
        path = str(ROOT)
        if sync_ms:
            slow = self._root / "slow"
            slow.mkdir(exist_ok=True)
            (slow / "sitecustomize.py").write_text(SLOW_SYNC.format(seconds=sync_ms / 1e3))
            path = f"{slow}:{path}"
        return {"TESTBED_HOME": str(self._home(host)), "PYTHONPATH": path}

    def objects(self, name: str, count: int, size_bytes: int) -> Objects:
        """Make random objects at the base station; return their digests and sizes."""
        made = []
        for _ in range(count):
            content = os.urandom(size_bytes)
            digest = hashlib.sha256(content).hexdigest()
            (self._home(BS) / "objects" / digest).write_bytes(content)
            made.append((digest, size_bytes))
        return made

    def forget(self, host: str) -> None:
        """Remove all that a host holds."""
        shutil.rmtree(self._home(host) / "objects")
        (self._home(host) / "objects").mkdir()

    def sent(self, host: str) -> int:
        """Return the bytes of the frames that a host has sent."""
        return self.lab.sent_bytes(host)

    def serve(self, host: str, *options: str) -> None:
        """Start a host's server and wait until it serves."""
        ready = self._root / f"ready-{host}"
        listen = ("--listen", f"{self.lab.address(host)}:{PORT}")
        command = (self._python, "-m", "payloads.artifacts", "serve", *listen, *options)
        environment = {**self._environment(host), "TESTBED_READY": str(ready)}
        await_file(
            ready, self.lab.start(host, *command, environment=environment, output=self._root / f"log-{host}")
        )

    def _start(
        self, host: str, wanted: Objects, *options: str, mirrors: Sequence[str] = (), sync_ms: float = 0
    ) -> subprocess.Popen[bytes]:
        """Start a pull."""
        list_file = self._root / f"wanted-{host}.json"
        entries = [{"object": digest, "bytes": size} for digest, size in wanted]
        list_file.write_text(json.dumps({"objects": entries}))
        command = [self._python, "-m", "payloads.artifacts", "pull", "--wanted", str(list_file), *options]
        for server in (*mirrors, BS):
            command += ["--from", f"http://{self.lab.address(server)}:{PORT}"]
        environment = {**os.environ, **self._environment(host, sync_ms)}
        return subprocess.Popen(self.lab.command(host, *command), env=environment, stdout=subprocess.PIPE)

    def pull(self, host: str, wanted: Objects, *options: str, sync_ms: float = 0) -> dict[str, Any]:
        """Pull, and return what the pull said of itself."""
        return _said(self._start(host, wanted, *options, sync_ms=sync_ms))

    def pull_together(
        self, wanted: Mapping[str, Objects], mirrors: Sequence[str] = ()
    ) -> tuple[float, list[dict[str, Any]]]:
        """Pull at several hosts; return the seconds until all are done, and what each said."""
        begun = time.perf_counter()
        processes = [self._start(host, objects, mirrors=mirrors) for host, objects in wanted.items()]
        said = [_said(process) for process in processes]
        return time.perf_counter() - begun, said

    def cut(self, host: str, wanted: Objects, seconds: float) -> bool:
        """Kill a pull some seconds after it has begun to receive; tell whether it was still at it."""
        folder = self._home(host) / "objects"
        before = _bytes_in(folder)
        process = self._start(host, wanted)
        while _bytes_in(folder) == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(seconds)
        alive = process.poll() is None
        process.kill()
        process.communicate()
        return alive

    def check(self, host: str, wanted: Objects) -> None:
        """See that a host holds what it wants.

        Raises:
            RuntimeError: It does not.
        """
        for digest, _ in wanted:
            content = (self._home(host) / "objects" / digest).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise RuntimeError(f"{host}: {digest} is damaged")

    def curl(self, host: str, wanted: Objects) -> float:
        """Fetch the objects by curl, over one connection; return the seconds."""
        target = self._root / "curl"
        target.mkdir(exist_ok=True)
        token = bearer_token(self._home(BS) / "key")
        words = []
        for digest, _ in wanted:
            url = f"http://{self.lab.address(BS)}:{PORT}/objects/{digest}"
            words += ["-o", str(target / digest), url]
        seconds = self._timed(host, "curl", "-sS", "-H", f"Authorization: Bearer {token}", *words)
        self._look(target, wanted)
        return seconds

    def peers(self, host: str, wanted: Objects) -> dict[str, float]:
        """Return the seconds of what else copies files, bare and with a look at the digests afterwards."""
        bare = self.curl(host, wanted)
        found = {"curl": bare, "curl+sha256sum": bare + self._look(self._root / "curl", wanted)}
        if shutil.which("scp") and Path("/usr/sbin/sshd").exists():
            seconds = self._scp(host)
            found["scp+sha256sum"] = seconds + self._look(self._root / "scp", wanted)
        return found

    def _scp(self, host: str) -> float:
        """Fetch all that the base station holds by scp; return the seconds."""
        folder = self._root / "ssh"
        folder.mkdir(mode=0o700)
        for name in ("host", "user"):
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        shutil.copy(folder / "user.pub", folder / "authorized")
        Path("/run/sshd").mkdir(exist_ok=True)
        address = self.lab.address(BS)
        (folder / "known").write_text(f"[{address}]:{SSH_PORT} {(folder / 'host.pub').read_text()}")
        settings = {
            "ListenAddress": f"{address}:{SSH_PORT}",
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "authorized",
            "PidFile": folder / "pid",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "Subsystem": "sftp internal-sftp",
        }
        (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        command = ("/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config"))
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(self.lab.command(BS, *command), stderr=log)
        try:
            await_file(folder / "pid", server)
            options = [f"-o{key}" for key in (f"UserKnownHostsFile={folder / 'known'}", "IdentitiesOnly=yes")]
            at = f"{getpass.getuser()}@{address}:{self._home(BS) / 'objects'}"
            words = ["-q", "-r", "-i", str(folder / "user"), "-P", str(SSH_PORT), *options, at]
            return self._timed(host, "scp", *words, str(self._root / "scp"))
        finally:
            server.terminate()
            server.wait()

    def _timed(self, host: str, *words: str) -> float:
        begun = time.perf_counter()
        subprocess.run(self.lab.command(host, *words), check=True)
        return time.perf_counter() - begun

    def _look(self, folder: Path, wanted: Objects) -> float:
        """Return the seconds of sha256sum; a wrong digest is an error."""
        text = "".join(f"{digest}  {folder / digest}\n" for digest, _ in wanted)
        begun = time.perf_counter()
        subprocess.run(["sha256sum", "--check", "--quiet"], input=text.encode(), check=True)
        return time.perf_counter() - begun


def _bytes_in(folder: Path) -> int:
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _said(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a pull ended with {process.returncode}")
    said: dict[str, Any] = json.loads(out)
    return said
