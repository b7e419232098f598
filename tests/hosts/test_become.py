import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import CommandError, HostError
from testbed.hosts.become import BecomePassword, asked_line, prefix
from testbed.hosts.ssh import SshTransport, ssh_connect
from testbed.hosts.steps import Command

# As sudo reads it: byte by byte up to the end of the line; it asks again where the password is wrong.
SUDO = """#!/bin/sh
while :; do case "$1" in -n) none=1 ;; -S) asks=1 ;; -k) ;; -p) shift ;; *) break ;; esac; shift; done
if [ "$(cat MODE)" = asks ]; then
  [ -z "$none" ] || { echo "sudo: a password is required" >&2; exit 1; }
  IFS= read -r word
  [ "$word" = "open sesame" ] || { echo "Sorry, try again." >&2; echo "sudo: no password was provided" >&2; exit 1; }
fi
exec "$@"
"""


@pytest.fixture
def sudo(tmp_path: Path) -> Callable[[str], Path]:
    """Put a sudo in place that asks for a password, or does not; return its folder."""

    def make(mode: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "mode").write_text(mode)
        (folder / "sudo").write_text(SUDO.replace("MODE", str(folder / "mode")))
        (folder / "sudo").chmod(0o755)
        return folder

    return make


@pytest.mark.parametrize("mode", ["asks", "free"])
def test_a_command_is_never_given_the_password(sudo: Callable[[str], Path], mode: str) -> None:
    start, mark = prefix(BecomePassword("open sesame"))
    line = asked_line('echo "$HOME"; cat', mark)
    done = subprocess.run(
        ["sh", "-c", line],
        input=start + b"first\nsecond",
        env={"HOME": "/home/ann", "PATH": f"{sudo(mode)}:/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"/home/ann\nfirst\nsecond"
    assert "sesame" not in line
    assert "sesame" not in repr(BecomePassword("open sesame"))


@pytest.fixture
def board(
    start_sshd: Callable[..., Any], sudo: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SshTransport]:
    """Return a transport to a host where the user is not root, as far as we know."""

    def connect(mode: str, password: str = "open sesame") -> SshTransport:
        server = start_sshd(f"SetEnv PATH={sudo(mode)}:/usr/bin:/bin")
        server.trust()
        monkeypatch.setattr(SshTransport, "_user", "ann")
        return ssh_connect(server.known_hosts, become=BecomePassword(password))(server.host())

    return connect


@pytest.mark.parametrize("mode", ["asks", "free"])
def test_root_by_a_password_where_it_is_asked_for(board: Callable[..., SshTransport], mode: str) -> None:
    transport = board(mode)
    assert transport.run(Command("board", "echo in", become=True)).stdout == "in\n"
    fed = transport.run(Command("board", "cat; echo $#", stdin=b"content\n", become=True))
    assert fed.stdout == "content\n0\n"
    with pytest.raises(CommandError) as caught:
        transport.run(Command("board", "echo no >&2; exit 3", become=True))
    assert caught.value.exit_status == 3
    stream = transport.stream(Command("board", "read x; echo got $x", stdin=b"some\n", become=True))
    assert list(stream.lines(10)) == ["got some"]
    transport.close()


def test_a_wrong_password_is_said(board: Callable[..., SshTransport]) -> None:
    transport = board("asks", "close sesame")
    with pytest.raises(HostError, match="ann cannot become root by the password given") as caught:
        transport.run(Command("board", "true", become=True))
    assert "sesame" not in str(caught.value)
    transport.close()
