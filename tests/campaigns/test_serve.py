"""Serving a campaign: its plan, where clients are let in, and how it ends in order."""

from __future__ import annotations

import io
import json
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from testbed.campaigns import serve
from testbed.campaigns.journal import Journal
from testbed.campaigns.phases import Kind, Phase
from testbed.campaigns.plan import plan_run
from testbed.campaigns.progress import Progress
from testbed.campaigns.serving import SERVED, Serving, serving_of
from testbed.campaigns.session import NOBODY, resumed
from testbed.campaigns.target import Plan
from testbed.config.campaign import load_campaign
from testbed.errors import ConnectError, InputError
from testbed.hosts.fake import FakeTransport
from testbed.hosts.forward import Forward
from testbed.hosts.steps import Command, Put
from testbed.records import list_runs, load_run, write_manifest
from testbed.report.metrics import planned_trials
from tests.campaigns.test_plan import inputs_of, steps_of, target  # noqa: F401  a fixture

ROOT = Path(__file__).resolve().parents[2]
CAMPAIGN = ROOT / "campaigns/quickstart.yaml"


@pytest.fixture
def token(tmp_path):
    path = tmp_path / "token"
    path.write_text("0123456789abcdef")
    path.chmod(0o600)
    return path


def test_the_first_policy_and_scenario_are_served_unless_others_are_named():
    campaign = load_campaign(CAMPAIGN)
    assert serving_of(campaign, None, None, None, "127.0.0.1:8000", None) == Serving(
        "top-2", "even", 1, "127.0.0.1:8000"
    )
    named = serving_of(campaign, "top-1", "one-weak-device", 4, "[::1]:80", None)
    assert (named.trial.name, named.trial.policy, named.trial.concurrency) == (SERVED, "top-1", 4)
    assert (named.trial.order, named.listens) == (1, ("::1", 80))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"policy": "best"}, "no policy 'best'"),
        ({"scenario": "odd"}, "no scenario 'odd'"),
        ({"address": "everywhere:80"}, "expected ADDRESS:PORT with an IP address"),
        ({"address": "0.0.0.0:80"}, "others reach it, so a token is needed"),
        ({"token_file": Path("/nowhere")}, "cannot read the token file"),
        ({"concurrency": 257}, "concurrency: expected 1 to 256, got 257"),
        ({"context_tokens": 2049}, "context: expected 2 to 2048 tokens, which tiny-mixtral reads, got 2049"),
        ({"context_tokens": 1}, "context: expected 2 to 2048 tokens"),
    ],
)
def test_what_cannot_be_served_is_said_before_any_host_is_asked(changes, problem):
    asked = {
        "policy": None,
        "scenario": None,
        "concurrency": None,
        "address": "127.0.0.1:1",
        "token_file": None,
    }
    with pytest.raises(InputError, match=problem):
        serving_of(load_campaign(CAMPAIGN), **{**asked, **changes})


def test_the_plan_is_a_runs_with_one_trial_that_serves(target, token):  # noqa: F811
    served = Serving("top-1", "one-weak-device", 4, "10.0.0.1:8000", token)
    target = replace(target, serving=served)
    assert target.passes == ()
    assert target.command.startswith("testbed serve ")
    assert str(token) in target.command
    inputs = inputs_of(target)
    phases = plan_run(inputs)
    assert [phase.trial.name for phase in phases if phase.kind is Kind.TRIAL] == [SERVED]
    steps = steps_of(phases)
    (put,) = [step for step in steps if isinstance(step, Put) and "http-token" in step.target]
    assert (put.mode, put.secret, put.content) == (0o600, True, b"0123456789abcdef")
    lines = [step.line() for step in steps]
    assert "0123456789abcdef" not in "\n".join(lines)
    (started,) = [line for line in lines if "bs.base_station" in line]
    assert started.endswith("--http 10.0.0.1:8000 --http-token-file '~/.testbed/http-token'")
    (asked,) = [line for line in lines if "bsctl" in line]
    assert asked.endswith("--policy top-1 --trial serve-001 --concurrency 4")
    assert "--context" not in target.command
    limited = replace(target, serving=replace(served, context_tokens=512))
    assert "--concurrency 4 --context 512 --listen" in limited.command
    assert "serves top-1 in one-weak-device, 4 at once, 512 tokens each at most" in (
        Plan(limited, NOBODY, []).as_text()
    )
    lines = [step.line() for step in steps_of(plan_run(inputs_of(limited)))]
    assert next(line for line in lines if "bsctl" in line).endswith("--concurrency 4 --context 512")
    # A run of trials offers no API.
    assert "--http" not in "\n".join(
        step.line() for step in steps_of(plan_run(inputs_of(replace(target, serving=None))))
    )


def test_what_was_served_does_not_go_on(tmp_path):
    files = {"campaign": "c", "inventory": "i", "limit": [], "serving": ["--policy", "top-2"]}
    manifest = {"run": "r-0001", "started_unix": 0, "state": "interrupted", "files": files}
    manifest["command"] = "testbed serve c"
    write_manifest(tmp_path / "r-0001", manifest)
    with pytest.raises(InputError, match="was served, which does not go on") as caught:
        resumed(tmp_path, "r-0001", [])
    assert caught.value.hint == "serve it again: testbed serve c"


def test_what_was_served_has_one_trial_whatever_the_campaign_asks_for(tmp_path):
    files = {"campaign": "c", "inventory": "i", "limit": []}
    manifest = {"state": "completed", "campaign": CAMPAIGN.read_text()}
    for number, serving in enumerate((["--policy", "top-2"], None)):
        name = f"r-000{number}"
        own = {"run": name, "started_unix": -number, "files": {**files, "serving": serving}}
        write_manifest(tmp_path / name, {**manifest, **own})
    assert [run.planned for run in list_runs(tmp_path)] == [1, 20]
    assert [planned_trials(load_run(tmp_path / f"r-000{number}")) for number in (0, 1)] == [1, 20]


@pytest.fixture
def runner(tmp_path, target, open_fleet):  # noqa: F811
    """A runner that serves on a scripted lab; what it told of itself is in `told`."""
    target = replace(target, serving=Serving("top-2", "even", 1, "127.0.0.1:8000"))
    journal = Journal(tmp_path / "journal.jsonl", session=1)
    progress = Progress(1, Console(file=io.StringIO()))
    made = serve.ServeRunner(open_fleet, tmp_path / "run", target.run, 1000.0, journal, progress)
    made.told = []
    door = serve.Door(target, 0)
    made.prepare(target, door, lambda reached, _note: made.told.append(reached), None)
    yield made
    door.close()
    journal.close()


def test_clients_are_let_in_when_the_base_station_serves_and_one_word_ends_it(runner):
    phase = Phase("trial serve-001", (), Kind.TRIAL, runner._target.serving.trial)
    assert not runner.end()
    runner.listen(phase, "noise")
    runner.listen(phase, json.dumps({"done": 1, "of": 2, "what": "prompt p1"}))
    assert runner.told == []
    line = json.dumps({"done": 0, "of": 0, "what": "serving at http://127.0.0.1:8000/v1"})
    runner.listen(phase, line)
    runner.listen(phase, line)
    (reached,) = runner.told
    assert reached.remote_url == "http://127.0.0.1:8000/v1"
    assert reached.url == runner._door.url
    assert reached.url in reached.as_text()
    assert reached.as_json()["model"] == "tiny-mixtral"

    stopped = threading.Event()

    def stop(_step):
        stopped.set()
        return "{}"

    runner._door._way = FakeTransport("bs", [("bsctl stop$", stop)])
    assert runner.end()
    assert stopped.wait(10)
    assert not runner.end()


def test_a_signal_ends_what_serves_and_interrupts_what_does_not():
    ended = []

    def end():
        ended.append(1)
        return len(ended) == 2

    with serve._ended_by_signal(end):
        with pytest.raises(KeyboardInterrupt):  # nothing is served yet
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):  # it is ending already
            signal.raise_signal(signal.SIGINT)
    assert len(ended) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class _Tunnel(socket.socket):
    def shutdown_write(self):
        self.shutdown(socket.SHUT_WR)


def test_a_port_of_this_machine_leads_through_a_tunnel():
    def tunnel():
        near, far = socket.socketpair()
        threading.Thread(target=_shout, args=(far,), daemon=True).start()
        return _Tunnel(fileno=near.detach())

    with Forward(0, tunnel) as forward:
        for text in (b"hello", b"x" * 300_000):
            with socket.create_connection(("127.0.0.1", forward.port), 10) as caller:
                threading.Thread(target=_say, args=(caller, text), daemon=True).start()
                heard = b"".join(iter(lambda caller=caller: caller.recv(1 << 16), b""))
            assert heard == text.upper()
        with pytest.raises(InputError, match="cannot listen on"):
            Forward(forward.port, tunnel)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", forward.port), 10)


def _shout(far):
    with far:
        while data := far.recv(1 << 16):
            far.sendall(data.upper())


def _say(caller, text):
    caller.sendall(text)
    caller.shutdown(socket.SHUT_WR)


def test_where_no_tunnel_opens_the_caller_is_let_go():
    def no_tunnel():
        raise ConnectError("bs", "gone")

    with (
        Forward(0, no_tunnel) as forward,
        socket.create_connection(("127.0.0.1", forward.port), 10) as caller,
    ):
        assert caller.recv(1) == b""


def test_the_command_that_ends_it_is_the_base_stations(inventory):
    command = serve.stop_command(inventory)
    assert isinstance(command, Command)
    assert command.host == "bs"
    assert command.shell.endswith("payloads.station.bsctl stop")
