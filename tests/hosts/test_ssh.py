import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from testbed.config.inventory import Host
from testbed.errors import CommandError, ConnectError, DeadlineError, HostError, HostKeyError
from testbed.hosts.deadline import Deadline
from testbed.hosts.endpoint import Endpoint, SshSettings
from testbed.hosts.files import CHUNK_BYTES
from testbed.hosts.ssh import SshTransport, ssh_connect
from testbed.hosts.steps import Command, Fetch, Put


@pytest.fixture
def board(sshd: Any) -> Iterator[SshTransport]:
    transport = ssh_connect(sshd.known_hosts)(sshd.host())
    yield transport
    transport.close()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


def ended(pid: str) -> bool:
    """Return whether a process has ended; its parent may be slow to see that."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_run_gives_output_and_takes_input(board: SshTransport) -> None:
    lines: list[str] = []
    done = board.run(
        Command("board", "cat; echo oops >&2; printf 'a\\nb'", stdin=b"x" * 200_000 + b"\n"),
        on_line=lines.append,
    )
    assert done.stdout == "x" * 200_000 + "\na\nb"
    assert done.stderr == "oops\n"
    assert lines == ["x" * 200_000, "a", "b"]


def test_output_that_is_no_text_is_replaced(board: SshTransport) -> None:
    assert board.run(Command("board", r"printf 'a\377b'")).stdout == "a�b"


def test_much_output_on_both_streams_does_not_block(board: SshTransport) -> None:
    shell = "head -c 5000000 /dev/zero >&2; head -c 5000000 /dev/zero"
    done = board.run(Command("board", shell))
    assert (len(done.stdout), len(done.stderr)) == (5_000_000, 5_000_000)


def test_failure_names_host_command_and_answer(board: SshTransport) -> None:
    with pytest.raises(
        CommandError, match=r"board: `ls /none; exit 3` ended with status 3: .*none"
    ) as caught:
        board.run(Command("board", "ls /none; exit 3"))
    assert caught.value.exit_status == 3
    with pytest.raises(CommandError, match="ended by a signal"):
        board.run(Command("board", "kill -9 $$"))
    assert board.run(Command("board", "echo still there")).stdout == "still there\n"


def test_a_hung_command_is_ended_at_its_deadline(board: SshTransport, tmp_path: Path) -> None:
    board.run(Command("board", "true"))
    mark = tmp_path / "ended"
    shell = f"trap 'echo TERM > {mark}; exit' TERM; sleep 60 & wait"
    # Long enough for a busy machine's shell to have come to its trap.
    with pytest.raises(DeadlineError, match=r"took longer than 2 s"):
        board.run(Command("board", shell, timeout_s=2))
    assert board.run(Command("board", "echo next")).stdout == "next\n"
    wait_for(lambda: mark.exists() and mark.read_text() == "TERM\n")


def test_children_that_keep_the_output_open_do_not_keep_the_command(board: SshTransport) -> None:
    done = board.run(Command("board", "sleep 120 & echo $!", timeout_s=60))
    board.run(Command("board", f"kill {done.stdout}"))


def test_put_and_fetch(board: SshTransport, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 2000)
    folder = tmp_path / "far" / "new folder"
    board.put(Put("board", source, f"{folder}/data"))
    board.put(Put("board", b"0123", f"{folder}/key", mode=0o600, secret=True))
    board.put(Put("board", b"replaced", f"{folder}/key", mode=0o600))
    (folder / "inner").mkdir()
    (folder / "inner" / "leaf").write_text("leaf")
    (folder / "link").symlink_to("data")
    (folder / "loop").symlink_to(".")
    assert (folder / "key").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in folder.iterdir()) == ["data", "inner", "key", "link", "loop"]

    board.fetch(Fetch("board", str(folder), tmp_path / "near"))
    near = {
        str(p.relative_to(tmp_path / "near")): p.read_bytes()
        for p in (tmp_path / "near").rglob("*")
        if p.is_file()
    }
    data = source.read_bytes()
    assert near == {"data": data, "link": data, "key": b"replaced", "inner/leaf": b"leaf"}
    board.fetch(Fetch("board", f"{folder}/key", tmp_path / "one"))
    assert (tmp_path / "one").read_bytes() == b"replaced"


def test_a_leading_tilde_is_the_users_home(board: SshTransport, tmp_path: Path) -> None:
    name = f".testbed-test-{uuid.uuid4().hex}"
    home = Path(board.run(Command("board", "pwd")).stdout.strip())
    try:
        board.put(Put("board", b"hello", f"~/{name}/file"))
        assert board.run(Command("board", f'cat "$HOME/{name}/file"')).stdout == "hello"
        board.fetch(Fetch("board", f"~/{name}", tmp_path / "copy"))
        assert (tmp_path / "copy" / "file").read_bytes() == b"hello"
    finally:
        shutil.rmtree(home / name)


def test_files_that_cannot_be_had(board: SshTransport, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"board: cannot fetch /none/x: No such file"):
        board.fetch(Fetch("board", "/none/x", tmp_path / "x"))
    board.fetch(Fetch("board", "/none/x", tmp_path / "x", optional=True))
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="board: cannot write"):
        board.put(Put("board", b"", f"{tmp_path}/file/below"))


def test_files_are_given_up_at_their_deadline(board: SshTransport, tmp_path: Path) -> None:
    target, silent, slow = tmp_path / "target", tmp_path / "silent", tmp_path / "slow"
    board.put(Put("board", b"as it was", str(target)))
    os.mkfifo(silent)
    # The server waits for somebody to write there, and answers nothing.
    with pytest.raises(DeadlineError, match=r"cannot fetch .*: it took longer than 0\.3 s and was ended"):
        board.fetch(Fetch("board", str(silent), tmp_path / "near", timeout_s=0.3))
    os.close(os.open(silent, os.O_RDWR))
    assert not list(tmp_path.glob("near*"))

    os.mkfifo(slow)
    given_up = threading.Event()

    def trickle() -> None:
        with slow.open("wb", buffering=0) as pipe:
            pipe.write(b"x" * CHUNK_BYTES)
            given_up.wait(2.5)
            pipe.write(b"x" * CHUNK_BYTES)

    # It waits until somebody reads: where nobody came to that, it keeps nobody else.
    writer = threading.Thread(target=trickle, daemon=True)
    writer.start()
    # Another session than the one that was given up: on a busy machine that takes a while, too.
    with pytest.raises(DeadlineError, match=r"cannot write .*: it took longer than 2 s and was ended"):
        board.put(Put("board", slow, str(target), timeout_s=2))
    given_up.set()
    writer.join()
    # Nothing of it is left, and what came late is taken for no later answer.
    assert not list(tmp_path.glob("target.*"))
    board.fetch(Fetch("board", str(target), tmp_path / "near"))
    assert (tmp_path / "near").read_bytes() == b"as it was"


def test_stream_talks_both_ways(board: SshTransport) -> None:
    stream = board.stream(
        Command("board", "echo ready; while read x; do echo got $x; done; echo end >&2; exit 4")
    )
    lines = stream.lines(timeout_s=20)
    assert next(lines) == "ready"
    stream.write(b"1\n2\n")
    assert [next(lines), next(lines)] == ["got 1", "got 2"]
    assert stream.exit_status(0) is None
    stream.end_input()
    assert list(lines) == []
    assert (stream.exit_status(), stream.stderr) == (4, "end\n")
    stream.close()
    with pytest.raises(ConnectError):
        stream.write(b"x")


def test_stream_that_says_nothing(board: SshTransport) -> None:
    stream = board.stream(Command("board", "cat"))
    with pytest.raises(DeadlineError, match=r"said nothing for 0\.1 s"):
        next(stream.lines(timeout_s=0.1))
    stream.close()


def test_several_threads_share_a_connection(board: SshTransport) -> None:
    results: dict[int, str] = {}

    def one(number: int) -> None:
        results[number] = board.run(Command("board", f"echo {number}")).stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"{number}\n" for number in range(6)}


def test_a_lost_connection_is_made_anew(board: SshTransport) -> None:
    with pytest.raises(ConnectError, match="the connection was lost"):
        board.run(Command("board", "kill $PPID; sleep 20"))
    assert board.run(Command("board", "echo back")).stdout == "back\n"


def test_closing_ends_what_waits(board: SshTransport) -> None:
    pid = ""

    def started(line: str) -> None:
        nonlocal pid
        pid = line
        timer.start()

    timer = threading.Timer(0.1, board.close)
    with pytest.raises(ConnectError):
        board.run(Command("board", "echo $$; exec sleep 60"), on_line=started)
    timer.join()
    wait_for(lambda: ended(pid))
    with pytest.raises(ConnectError, match="closed"):
        board.run(Command("board", "true"))


def test_unknown_and_changed_host_keys_are_refused(sshd: Any, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    with pytest.raises(HostKeyError, match=r"not recorded in .*SHA256:") as caught:
        ssh_connect(known)(sshd.host()).run(Command("board", "true"))
    assert "testbed trust" in caught.value.hint
    other = (sshd.folder / "user_key.pub").read_text()
    known.write_text(f"[127.0.0.1]:{sshd.port} {other}")
    with pytest.raises(HostKeyError, match=r"has changed: .*SHA256:.* instead of .*SHA256:") as caught:
        ssh_connect(known)(sshd.host()).run(Command("board", "true"))
    assert "ssh-keygen" in caught.value.hint
    # Who is in between may show a key of another kind: that is a change, too.
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "old")], check=True)
    known.write_text(f"[127.0.0.1]:{sshd.port} {(tmp_path / 'old.pub').read_text()}")
    change = r"has changed: ssh-ed25519 SHA256:.* instead of ecdsa-sha2-nistp256 SHA256:"
    with pytest.raises(HostKeyError, match=change):
        ssh_connect(known)(sshd.host()).run(Command("board", "true"))


def test_a_user_who_is_not_let_in(sshd: Any, tmp_path: Path) -> None:
    connect = ssh_connect(sshd.known_hosts)
    with pytest.raises(ConnectError, match="there is no key file"):
        connect(sshd.host(key_file=tmp_path / "none")).run(Command("board", "true"))
    with pytest.raises(ConnectError, match=r"does not let .* in") as caught:
        connect(sshd.host(key_file=sshd.folder / "host_key")).run(Command("board", "true"))
    assert "authorized_keys" in caught.value.hint


def test_ssh_config_of_the_user_is_honoured(sshd: Any, tmp_path: Path) -> None:
    config = tmp_path / "home" / ".ssh" / "config"
    config.parent.mkdir(parents=True)
    host = sshd.host()
    config.write_text(
        f"Host shelf\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {host.user}\n  IdentityFile {sshd.key_file}\n"
    )
    plain = {"name": "board", "role": "device", "address": "shelf"}
    transport = ssh_connect(sshd.known_hosts)(type(host).model_validate(plain))
    assert transport.run(Command("board", "echo in")).stdout == "in\n"
    transport.close()


def test_gateway_command(sshd: Any) -> None:
    nc = shutil.which("nc")
    if nc is None:
        pytest.skip("netcat is not installed")
    transport = ssh_connect(sshd.known_hosts)(sshd.host(gateway=f"{nc} -N {{address}} {{port}}"))
    assert transport.run(Command("board", "echo through")).stdout == "through\n"
    transport.close()


def test_gateway_command_that_fails(sshd: Any) -> None:
    transport = ssh_connect(sshd.known_hosts)(sshd.host(gateway="echo no route >&2; exit 7"))
    said = r"no answer from 127.0.0.1:\d+: the gateway command ended with status 7: no route"
    with pytest.raises(ConnectError, match=said) as caught:
        transport.run(Command("board", "true"))
    assert "is the host on" in caught.value.hint


@pytest.mark.parametrize("command", ["sleep 60", "trap 'exit 255' TERM; sleep 60 & wait"])
def test_a_dead_host_behind_a_gateway_command_does_not_answer(sshd: Any, command: str) -> None:
    transport = ssh_connect(sshd.known_hosts, connect_timeout_s=0.5)(sshd.host(gateway=command))
    said = r"no answer from 127.0.0.1:\d+ within 0.5 s through the gateway command"
    with pytest.raises(ConnectError, match=said) as caught:
        transport.run(Command("board", "true"))
    assert "is the host on" in caught.value.hint


def test_a_server_that_leaves_a_gateway_command_is_no_dead_host(sshd: Any) -> None:
    transport = ssh_connect(sshd.known_hosts)(sshd.host(gateway="echo SSH-2.0-busy; exit 3"))
    with pytest.raises(ConnectError, match="board: the gateway command ended with status 3"):
        transport.run(Command("board", "true"))


def test_proxy_jump_checks_the_key_of_the_host_on_the_way(sshd: Any, tmp_path: Path) -> None:
    ssh = tmp_path / "home" / ".ssh"
    ssh.mkdir(parents=True)
    user = sshd.host().user
    (ssh / "config").write_text(
        f"Host shelf\n  HostName 127.0.0.1\n  ProxyJump way\n"
        f"Host way\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {user}\n  IdentityFile {sshd.key_file}\n"
    )
    host = sshd.host(address="shelf")
    transport = ssh_connect(sshd.known_hosts, connect_timeout_s=60)(host)
    with pytest.raises(HostKeyError, match=r"host on the way \(127.0.0.1\) .* not found in known_hosts"):
        transport.run(Command("board", "true"))
    shutil.copy(sshd.known_hosts, ssh / "known_hosts")
    assert transport.run(Command("board", "echo jumped")).stdout == "jumped\n"
    transport.close()


def test_nothing_listens(sshd: Any) -> None:
    transport = ssh_connect(sshd.known_hosts)(sshd.host(port=1))
    with pytest.raises(ConnectError, match=r"cannot connect to 127\.0\.0\.1:1: Connection refused"):
        transport.run(Command("board", "true"))


def test_a_server_that_never_speaks_is_given_up_in_time(sshd: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = sshd.host(port=silent.getsockname()[1])
        late = r"no SSH session with .* within (1|0\.\d+) s: [A-Za-z .]+$"  # what was left
        with pytest.raises(ConnectError, match=late):
            ssh_connect(sshd.known_hosts)(host).run(Command("board", "true", timeout_s=1))
        with pytest.raises(ConnectError, match=late):
            ssh_connect(sshd.known_hosts)(host).open(Deadline(1))
        with pytest.raises(ConnectError, match=late):
            ssh_connect(sshd.known_hosts, connect_timeout_s=1)(host).run(Command("board", "true"))


def test_a_login_that_a_busy_server_drops_is_tried_again(start_sshd: Callable[..., Any]) -> None:
    server = start_sshd("MaxStartups 1:100:1", "LoginGraceTime 60")
    server.trust()
    log = server.folder / "log"
    transport = ssh_connect(server.known_hosts, connect_timeout_s=40)(server.host())
    # One client that does not log in takes the only place.
    other = socket.create_connection(("127.0.0.1", server.port))
    other.recv(64)

    def make_room() -> None:
        wait_for(lambda: "drop connection" in log.read_text() or "MaxStartups" in log.read_text())
        other.close()

    thread = threading.Thread(target=make_room)
    thread.start()
    assert transport.run(Command("board", "echo in", timeout_s=40)).stdout == "in\n"
    thread.join()
    transport.close()


def test_root_works_in_the_home_of_the_user(sshd: Any, tmp_path: Path) -> None:
    sudo = tmp_path / "bin" / "sudo"
    sudo.parent.mkdir()
    sudo.write_text('#!/bin/sh\n[ "$1" = -n ] && shift && echo "as root"; HOME=/root exec "$@"\n')
    sudo.chmod(0o755)
    transport = ssh_connect(sshd.known_hosts)(sshd.host(user="nvidia"))
    command = Command("board", "echo \"$HOME\" 'a b'", become=True)
    done = subprocess.run(
        transport.shell_line(command, watched=False),
        shell=True,
        env={"HOME": "/home/nvidia", "PATH": f"{sudo.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "as root\n/home/nvidia a b\n"


def test_what_a_condition_in_ssh_config_needs_is_imported_when_asked_for() -> None:
    assert callable(paramiko.config.invoke.run)  # type: ignore[attr-defined]


def test_several_hosts_on_the_way(tmp_path: Path) -> None:
    config = tmp_path / "home" / ".ssh" / "config"
    config.parent.mkdir(parents=True)
    config.write_text(
        "Host shelf\n  ProxyJump ann@near:2222,far\n"
        "Host near\n  HostName 10.0.0.1\n  IdentityFile /key\n  ProxyCommand nc %h 2222\n"
        "Host far\n  User bob\n  ProxyJump shelf\n"
        "Host self\n  ProxyJump self\nHost plain\n  ProxyJump none\n"
    )

    def way(name: str) -> Endpoint:
        host = Host.model_validate({"name": "board", "role": "device", "address": name, "user": "eve"})
        return SshSettings(tmp_path / "known_hosts").endpoint(host)

    far = way("shelf").jump
    assert far is not None
    near = far.gateway
    assert (far.host, far.user, far.port, far.original_host) == ("far", "bob", 22, "far")
    assert (near.host, near.user, near.port, near.original_host) == ("10.0.0.1", "ann", 2222, "near")
    assert near.gateway == "nc 10.0.0.1 2222"
    assert near.connect_kwargs["key_filename"] == ["/key"]
    assert (way("self").jump, way("plain").jump, way("plain").gateway) == (None, None, None)


def test_a_login_script_that_prints_is_named_as_what_spoils_the_files(start_sshd: Any) -> None:
    noisy = start_sshd("ForceCommand echo Welcome to the rack")
    noisy.trust()
    transport = ssh_connect(noisy.known_hosts)(noisy.host())
    with pytest.raises(HostError, match="its SFTP server does not answer as one") as caught:
        transport.put(Put("board", b"x", "~/file"))
    assert "~/.bashrc" in caught.value.hint
    transport.close()
