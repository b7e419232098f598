import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import Typer
from typer.testing import CliRunner, Result

from testbed.cli import trust
from testbed.errors import RefusedError
from testbed.hosts.ssh import ssh_connect
from testbed.hosts.steps import Command


@pytest.fixture
def run(sshd: Any, tmp_path: Path) -> Any:
    """Run `testbed trust` on a lab whose two hosts are the sshd of the tests."""
    host = {"address": "127.0.0.1", "port": sshd.port, "user": "x"}
    hosts = {"bs": host | {"role": "base_station"}, "dev": host | {"role": "device", "address": "localhost"}}
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump({"lab": "test", "hosts": hosts}))
    app = Typer()
    app.command()(trust.trust)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["--inventory", str(tmp_path / "lab.yaml"), *arguments])

    return run


def fingerprint(sshd: Any) -> str:
    shown = subprocess.run(
        ["ssh-keygen", "-lf", f"{sshd.folder}/host_key.pub"], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()[1]


def test_new_keys_are_shown_and_recorded_only_when_agreed(run: Any, sshd: Any, tmp_path: Path) -> None:
    refused = run()
    assert isinstance(refused.exception, RefusedError)
    assert refused.exception.exit_code == 3
    assert refused.stdout.count(fingerprint(sshd)) == 2
    known = tmp_path / "lab.known_hosts"
    assert not known.exists()

    agreed = run("--yes", "--limit", "bs")
    assert agreed.exit_code == 0
    assert "recorded 1 key in" in agreed.stderr
    assert known.read_text() == f"[127.0.0.1]:{sshd.port} {sshd.host_public_key}\n"

    again = run("--limit", "bs", "--json")
    assert again.exit_code == 0
    (found,) = json.loads(again.stdout)
    assert (found["host"], found["state"], found["fingerprint"]) == ("bs", "known", fingerprint(sshd))
    transport = ssh_connect(known)(sshd.host())
    assert transport.run(Command("board", "echo in")).stdout == "in\n"
    transport.close()


def test_what_else_the_file_holds_stays(run: Any, sshd: Any, tmp_path: Path) -> None:
    known = tmp_path / "lab.known_hosts"
    before = f"# ours\n[localhost]:{sshd.port} {sshd.host_public_key}"
    known.write_text(before)
    assert run("--yes").exit_code == 0
    assert known.read_text() == f"{before}\n[127.0.0.1]:{sshd.port} {sshd.host_public_key}\n"


def test_a_changed_key_is_refused_and_not_replaced(run: Any, sshd: Any, tmp_path: Path) -> None:
    known = tmp_path / "lab.known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.port} {(sshd.folder / 'user_key.pub').read_text()}")
    before = known.read_text()
    result = run("--yes", "--limit", "bs")
    assert result.exit_code == 3
    assert known.read_text() == before
    assert (
        f"error: bs: the host's key has changed: ssh-ed25519 {fingerprint(sshd)} instead of" in result.stderr
    )
    assert "ssh-keygen -f" in result.stderr


def test_a_key_of_another_kind_is_no_changed_key(
    run: Any, start_sshd: Any, sshd: Any, tmp_path: Path
) -> None:
    second = tmp_path / "second_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(second)], check=True)
    both = start_sshd(f"HostKey {second}")
    text = (tmp_path / "lab.yaml").read_text().replace(str(sshd.port), str(both.port))
    (tmp_path / "lab.yaml").write_text(text)
    ecdsa = " ".join((tmp_path / "second_key.pub").read_text().split()[:2])
    (tmp_path / "lab.known_hosts").write_text(f"[127.0.0.1]:{both.port} {ecdsa}\n")
    result = run("--limit", "bs", "--json")
    assert json.loads(result.stdout)[0]["state"] == "known"
    transport = ssh_connect(tmp_path / "lab.known_hosts")(both.host())
    assert transport.run(Command("board", "echo in")).stdout == "in\n"
    transport.close()


def test_a_host_that_does_not_answer_does_not_keep_the_others(run: Any, sshd: Any, tmp_path: Path) -> None:
    text = (tmp_path / "lab.yaml").read_text().replace("localhost", "127.0.0.2")
    (tmp_path / "lab.yaml").write_text(text)
    result = run("--yes", "--timeout", "60")
    assert result.exit_code == 1
    assert "error: dev: cannot connect to 127.0.0.2" in result.stderr
    assert "recorded 1 key" in result.stderr
