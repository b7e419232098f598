import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed.config.inventory import Host, Inventory
from tests.ports import kept_port


@dataclass
class Sshd:
    """A real OpenSSH server on the loopback interface."""

    folder: Path
    port: int

    @property
    def key_file(self) -> Path:
        return self.folder / "user_key"

    @property
    def host_public_key(self) -> str:
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def host(self, **changes: object) -> Host:
        settings = {"name": "board", "role": "device", "address": "127.0.0.1", "port": self.port}
        settings |= {"user": pwd.getpwuid(os.geteuid()).pw_name, "key_file": self.key_file}
        return Host.model_validate(settings | changes)

    def trust(self) -> None:
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.host_public_key}\n")


def keygen(file: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)


def asks_pam() -> str:
    """Return whether sshd is to use PAM: by itself it lets no account in that is locked, as root is on Ubuntu."""
    user = f"{pwd.getpwuid(os.geteuid()).pw_name}:!"
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:  # sshd cannot read it either
        lines = []
    return "yes" if any(line.startswith(user) for line in lines) else "no"


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def start_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sshd]]:
    """Start sshd with extra lines of configuration; all are ended with the session."""
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH's sshd is not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    running: list[subprocess.Popen[bytes]] = []
    ports: list[socket.socket] = []

    def start(*lines: str) -> Sshd:
        folder = tmp_path_factory.mktemp("sshd")
        keygen(folder / "host_key")
        keygen(folder / "user_key")
        ports.append(kept_port())
        server = Sshd(folder, int(ports[-1].getsockname()[1]))
        (folder / "sshd_config").write_text(
            "\n".join(
                [
                    *lines,
                    f"Port {server.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {folder}/host_key",
                    f"AuthorizedKeysFile {folder}/user_key.pub",
                    "PidFile none",
                    "StrictModes no",
                    f"UsePAM {asks_pam()}",
                    "PasswordAuthentication no",
                    "PermitRootLogin yes",
                    "Subsystem sftp internal-sftp",
                ]
            )
            + "\n"
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(program), "-D", "-e", "-f", f"{folder}/sshd_config"], stdout=log, stderr=log
            )
        running.append(process)
        for _ in range(600):
            if answers(server.port):
                return server
            if process.poll() is not None:
                pytest.skip(f"sshd does not start: {(folder / 'log').read_text().strip()}")
            time.sleep(0.05)
        raise AssertionError("sshd does not answer")

    yield start
    for process in running:
        process.terminate()
        process.wait(60)
    for port in ports:
        port.close()


@pytest.fixture(scope="session")
def sshd(start_sshd: Callable[..., Sshd]) -> Sshd:
    server = start_sshd()
    server.trust()
    return server


@pytest.fixture(autouse=True)
def no_ssh_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def inventory() -> Inventory:
    hosts = {"bs": {"role": "base_station", "address": "10.0.0.1"}}
    hosts |= {f"dev{i}": {"role": "device", "address": f"10.0.0.{i + 10}"} for i in range(6)}
    return Inventory.model_validate({"lab": "test", "hosts": hosts})
