import io
import json
import time

import pytest
from rich.console import Console

from testbed.campaigns.journal import Journal, read_journal
from testbed.campaigns.phases import Kind, Phase
from testbed.campaigns.progress import Progress, time_left_s
from testbed.campaigns.runner import Runner
from testbed.campaigns.serve import ServeRunner
from testbed.campaigns.trials import Trial
from testbed.config.inventory import Host
from testbed.errors import CommandError, ConnectError, HeldError, HostError, RefusedError, TestbedError
from testbed.hosts.fake import Answer
from testbed.hosts.payload import payload_command
from testbed.hosts.steps import Command, Fetch
from testbed.links.commands import (
    clear_command,
    history_command,
    hold_command,
    play_command,
    set_command,
    show_command,
)
from testbed.links.scenario import LinkRate, ShapingPlan
from testbed.records import load_run, read_manifest, write_manifest

STARTED = 1000.0


@pytest.fixture
def run(tmp_path, open_fleet):
    """Carry out phases and return the runner and what it said."""
    folder = tmp_path / "run"
    write_manifest(folder, {"run": "r-0001", "started_unix": STARTED, "state": "running"})
    said = io.StringIO()

    def execute(phases):
        journal = Journal(folder / "journal.jsonl", session=1)
        progress = Progress(sum(p.kind is Kind.TRIAL for p in phases), Console(file=said, width=200))
        runner = Runner(open_fleet, folder, "r-0001", STARTED, journal, progress)
        try:
            return runner.execute(phases)
        finally:
            journal.close()

    execute.folder = folder
    execute.said = said
    return execute


BS = Host.model_validate(
    {"name": "bs", "role": "base_station", "address": "10.0.0.1", "python": {"manage": False}}
)


def trial_phase(name, folder, policy="top-2", plays=False):
    """A trial as the plan has it where the base station shapes."""
    show, history = show_command(BS), history_command(BS)
    ask = Command("bs", payload_command("python3", "station.bsctl", "trial", name))
    fetch = Fetch("bs", f"~/runs/{name}", folder / "fetched" / name)
    play, hold = ((play_command(BS),), (hold_command(BS),)) if plays else ((), ())
    steps = (show, *play, ask, *hold, show, history, fetch)
    return Phase(f"trial {name}", steps, Kind.TRIAL, Trial(name, policy, "even", 0))


def counted(frame_bytes, frames):
    """What the link daemon shows of one device's link."""
    counts = {"bytes": frame_bytes, "packets": frames, "drops": 0}
    link = {"device": "left", "downlink_mbit": 8, "uplink_mbit": 8, "downlink": counts, "uplink": counts}
    return Answer(json.dumps({"links": [link]}))


@pytest.fixture(autouse=True)
def counters(script):
    script["bs"] += [("linkd show", counted(100 * n, n)) for n in range(8)]
    nothing = json.dumps({"devices": ["left"], "changes": [], "samples": []})
    script["bs"].append(("linkd history", Answer(nothing, times=None)))


def answer_trial(script, records, name, t_s):
    result = {"t_start_s": STARTED + t_s, "t_end_s": STARTED + t_s + 2, "control_bytes": {}}
    result = {"result": result}
    said = json.dumps({"done": 1, "of": 1, "what": "prompt p1"}) + "\n" + json.dumps(result)
    script["bs"].append((f"bsctl trial {name}", said))
    script["bs"].append((f"fetch ~/runs/{name}", Answer(files=records(name, STARTED + t_s))))


HOLD = Phase("hold", tuple(Command(h, "services hold") for h in ("bs", "left", "right")), Kind.LEASE)
RESTORE = Phase("restore", (clear_command(BS),), Kind.RESTORE)
CLEARED = clear_command(BS).line()
LINKS = ShapingPlan("even", (LinkRate("left", "10.0.0.2", 7070, 7071, 8.0, 8.0),))


def test_the_journal_holds_the_plan_line_by_line(run, script, records):
    script["left"].append(("pull", "{}"))
    script["right"].append(("pull", "{}"))
    script["bs"].append(("linkd clear", ""))
    answer_trial(script, records, "t001", 10.0)
    pull = Phase("pull", (Command("left", "pull"), Command("right", "pull")))
    phases = [HOLD, pull, trial_phase("t001", run.folder), RESTORE]
    outcome = run(phases)
    assert outcome.completed == ["t001"]
    entries = read_journal(run.folder / "journal.jsonl")
    begun = {e.number: e.line for e in entries if e.state == "begin"}
    assert [begun[n] for n in sorted(begun)] == [s.line() for p in phases for s in p.steps]
    assert {e.number for e in entries if e.state == "end"} == set(begun)


def test_a_trial_is_written_whole_and_on_the_clock_of_the_run(run, script, records):
    answer_trial(script, records, "t001", 10.0)
    run([trial_phase("t001", run.folder)])
    read = load_run(run.folder)
    assert read.trials[["trial", "state", "t_start_s", "t_end_s"]].to_dict("records") == [
        {"trial": "t001", "state": "completed", "t_start_s": 10.0, "t_end_s": 12.0}
    ]
    assert read.requests["t_start_s"].tolist() == [10.0]
    assert read.traffic["frame_bytes"].tolist() == [100, 100]


def test_a_failed_trial_is_recorded_and_the_next_one_runs(run, script, records):
    lost = CommandError("bs", "bsctl trial t001", 1, "device left lost: connection closed during layer 2")
    script["bs"].append(("bsctl trial t001", lost))
    script["bs"].append(("fetch ~/runs/t001.failed", Answer()))
    answer_trial(script, records, "t002", 20.0)
    outcome = run([trial_phase("t001", run.folder), trial_phase("t002", run.folder)])
    assert outcome.completed == ["t002"]
    assert "device left lost" in outcome.failed["t001"]
    trials = load_run(run.folder).trials.set_index("trial")
    assert trials.loc["t001", "state"] == "failed"
    assert "during layer 2" in trials.loc["t001", "error"]


def test_of_a_failed_trial_what_happened_to_its_devices_is_kept(run, script):
    """Only what tells why it failed, and nothing of an earlier start of the run."""
    now = time.time()
    event = {"trial": "t001", "request": "p1", "step": 2, "layer": 0, "device": "left"}
    events = [event | {"t_s": now - 500, "event": "lost"}, event | {"t_s": now + 1, "event": "failed"}]
    files = {"events.jsonl": "\n".join(map(json.dumps, events)).encode()}
    script["bs"].append(("bsctl trial t001", CommandError("bs", "bsctl trial t001", 1, "device left lost")))
    script["bs"].append(("fetch ~/runs/t001.failed", Answer(files=files)))
    run([trial_phase("t001", run.folder)])
    read = load_run(run.folder)
    assert read.events[["device", "event", "step"]].to_dict("records") == [
        {"device": "left", "event": "failed", "step": 2}
    ]
    assert read.requests.empty
    assert read.trials["concurrency"].tolist() == [1]


def test_of_a_serving_that_failed_all_is_kept(run, script, records, monkeypatch):
    """Its trial has failed all the same."""
    monkeypatch.setattr(Runner, "keeps_failed", ServeRunner.keeps_failed)
    script["bs"].append(("bsctl trial t001", CommandError("bs", "bsctl trial t001", 1, "linkd went away")))
    script["bs"].append(("fetch ~/runs/t001.failed", Answer(files=records("t001", STARTED + 10.0))))
    run([trial_phase("t001", run.folder)])
    read = load_run(run.folder)
    assert read.requests["t_start_s"].tolist() == [10.0]
    assert read.trials["state"].tolist() == ["failed"]


def test_an_answer_that_nobody_understands_fails_its_trial_alone(run, script, records):
    script["bs"].append(("bsctl trial t001", "killed\n"))
    script["bs"].append(("fetch ~/runs/t001", Answer(files=records("t001", STARTED))))
    script["bs"].append(("fetch ~/runs/t001.failed", HostError("bs", "there is no such folder")))
    answer_trial(script, records, "t002", 20.0)
    outcome = run([trial_phase("t001", run.folder), trial_phase("t002", run.folder)])
    assert outcome.completed == ["t002"]
    assert "answered what was not expected: 'killed'" in outcome.failed["t001"]


def test_three_failures_in_a_row_end_the_run_and_restore_the_links(run, script, transports):
    for name in ("t001", "t002", "t003"):
        script["bs"].append((f"bsctl trial {name}", CommandError("bs", "bsctl", 1, "no answer")))
        script["bs"].append((f"fetch ~/runs/{name}.failed", HostError("bs", "there is no such folder")))
    script["bs"].append(("linkd clear", ""))
    phases = [*(trial_phase(f"t00{i}", run.folder) for i in range(1, 5)), RESTORE]
    with pytest.raises(TestbedError, match="3 trials failed") as caught:
        run(phases)
    assert "--resume" in caught.value.hint
    assert transports["bs"][-1].steps[-1].line() == CLEARED


def test_a_failing_phase_still_restores_and_lets_the_hosts_go(run, script, transports):
    script["left"].append(("pull", ConnectError("left", "connection lost")))
    script["bs"].append(("linkd clear", ""))
    with pytest.raises(ConnectError, match="connection lost"):
        run([HOLD, Phase("pull", (Command("left", "pull"),)), RESTORE])
    assert CLEARED in [step.line() for step in transports["bs"][-1].steps]
    assert all(transport.closed for made in transports.values() for transport in made)


def refused(owner: str) -> Answer:
    by = {"kind": "run", "owner": owner, "purpose": "run x-0001", "since_s": 60.0, "left_s": None}
    return Answer(json.dumps({"held": False, "refused": by}), exit_status=3)


def test_a_host_that_somebody_else_holds_is_left_alone(run, script, transports):
    script["bs"][:] = [("services hold", refused("ann@laptop"))]
    stops = tuple(Command(host, "services stop --all") for host in ("bs", "left", "right"))
    ready = Phase("provision", (Command("bs", "make folders"),), Kind.PROVISION)
    with pytest.raises(
        HeldError, match=r"bs: held by ann@laptop \(run x-0001\), since .*, until it ends"
    ) as error:
        run([HOLD, ready, Phase("restore", (clear_command(BS), *stops), Kind.RESTORE)])
    assert error.value.exit_code == 3
    assert "--take-over-from ann@laptop" in error.value.hint
    # Nothing had begun anywhere: the others are let go, and nothing is closed.
    asked = {host: [step.line() for step in made[-1].steps] for host, made in transports.items()}
    assert asked == {host: [f"{host}: services hold"] for host in ("bs", "left", "right")}


def test_hosts_that_one_owner_holds_are_named_together(run, script):
    for host in ("bs", "left"):
        script[host][:] = [("services hold", refused("ann@laptop"))]
    script["right"][:] = [("services hold", refused("bob@desk"))]
    with pytest.raises(RefusedError) as error:
        run([HOLD])
    lines = str(error.value).splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "bs, left: held by ann@laptop",
        "right: held by bob@desk",
    ]


def test_a_host_that_cannot_be_made_ready_is_let_go_and_nothing_is_closed(run, script, transports):
    script["left"].append(("make folders", ConnectError("left", "the disk is full")))
    ready = Phase("provision", (Command("left", "make folders"),), Kind.PROVISION)
    with pytest.raises(ConnectError, match="the disk is full"):
        run([HOLD, ready, RESTORE])
    assert [step.line() for step in transports["bs"][-1].steps] == ["bs: services hold"]


def test_how_the_boards_are_set_stands_in_the_manifest(run, script):
    power = {"mode": "15W", "jetson_clocks": True, "before": {"mode": "MAXN", "jetson_clocks": False}}
    script["left"].append(("power set", json.dumps({"power": power})))
    run([HOLD, Phase("set the power", (Command("left", "services power set --mode 15W"),), Kind.POWER)])
    assert read_manifest(run.folder)["board_power"] == {"left": power}


def test_ctrl_c_restores_over_fresh_connections(run, script, transports):
    script["bs"].append(("bsctl trial t001", KeyboardInterrupt()))
    script["bs"].append(("linkd clear", ""))
    with pytest.raises(KeyboardInterrupt):
        run([trial_phase("t001", run.folder), RESTORE])
    assert len(transports["bs"]) == 2
    assert [step.line() for step in transports["bs"][1].steps] == [CLEARED]
    assert "t001" not in set(load_run(run.folder).trials["trial"])


def test_every_failing_host_is_named(run, script):
    for host in ("left", "right"):
        script[host].append(("pull", ConnectError(host, "connection lost")))
    with pytest.raises(ConnectError, match="left"):
        run([Phase("pull", (Command("left", "pull"), Command("right", "pull")))])
    assert "right: connection lost" in run.said.getvalue()


def test_the_time_left_follows_from_the_trials_done():
    assert time_left_s([], 3) is None
    assert time_left_s([2.0, 4.0], 3) == 9.0


def set_phase(trial="t001"):
    return Phase(f"links of {trial}", (set_command(BS, LINKS),), Kind.LINKS, Trial(trial, "top-2", "even", 0))


SET = {
    "device": "left",
    "downlink_mbit": 8.0,
    "uplink_mbit": 8.0,
    "delay_ms": 0.0,
    "loss_percent": 0.0,
    "backends": {"downlink": "bs-htb-tbf", "uplink": "bs-htb-tbf"},
}


def test_what_the_links_did_in_a_trial_is_recorded(run, script, records):
    script["bs"].insert(0, ("linkd set", json.dumps({"links": [SET]})))
    changes = [
        [STARTED + 1, "set", None, [8.0], [8.0]],
        [STARTED + 10.5, "block", None, [3.0], [8.0]],
        [STARTED + 11.0, "allocate", "t001 layer 2", [3.0], [2.0]],
        [STARTED + 11.5, "hold", None, [3.0], [2.0]],
    ]
    samples = [
        [STARTED + t, [1000 * t], [10 * t], [5], [None]] for t in (2, 3, 10, 11, 20, 21)
    ]  # the trial is from 10 to 12 s: what the verification before it sent is not its own
    history = json.dumps({"devices": ["left"], "changes": changes, "samples": samples})
    script["bs"].insert(0, ("linkd history", history))
    script["bs"] += [("linkd play", '{"playing": true}'), ("linkd hold", '{"was_playing": true}')]
    answer_trial(script, records, "t001", 10.0)
    run([set_phase(), trial_phase("t001", run.folder, plays=True)])
    read = load_run(run.folder)
    rows = read.links.sort_values("t_s")[["t_s", "direction", "cause", "asked_mbit", "backend"]]
    assert rows[rows["cause"] != "set"].values.tolist() == [
        [10.5, "downlink", "block", 3.0, "bs-htb-tbf"],
        [11.0, "uplink", "allocate", 2.0, "bs-htb-tbf"],
    ]
    assert sorted(rows[rows["cause"] == "set"]["direction"]) == ["downlink", "uplink"]
    assert read.links.set_index("cause").loc["allocate", "why"] == "t001 layer 2"
    sent = read.throughput.set_index(["direction", "t_s"])["frame_bytes"].to_dict()
    assert sent == {
        ("downlink", 11.0): 1000, ("downlink", 20.0): 9000, ("uplink", 11.0): 10, ("uplink", 20.0): 90,
    }  # fmt: skip
    assert read.throughput.set_index("direction").loc["uplink", "backlog_bytes"].isna().all()
    assert read.manifest["links"]["backends"] == {"left": {"downlink": "bs-htb-tbf", "uplink": "bs-htb-tbf"}}


def test_links_that_were_not_what_was_asked_are_said_in_the_trial(run, script, records):
    answer = {"devices": ["left"], "changes": [], "samples": [], "line_died_unix_s": STARTED + 11}
    script["bs"].insert(0, ("linkd history", json.dumps(answer)))
    answer_trial(script, records, "t001", 10.0)
    run([trial_phase("t001", run.folder)])
    (trial,) = load_run(run.folder).trials.to_dict("records")
    assert trial["state"] == "completed"
    assert "line died" in trial["links_error"]


def test_a_refused_set_stops_the_run_with_what_to_put_in_the_inventory(run, script, transports):
    said = "linkd: refused: the leaf tbf needs what bs does not have (htb: not in this kernel)"
    script["bs"] += [("linkd set", CommandError("bs", "linkd set", 3, said)), ("linkd clear", "")]
    with pytest.raises(RefusedError, match=r"bs: refused: .*htb: not in this kernel") as caught:
        run([set_phase(), RESTORE])
    assert "network: {shaping: pacing}" in caught.value.hint
    assert transports["bs"][-1].steps[-1].line() == CLEARED


def test_hosts_wait_for_each_other_at_a_cut(run, script, transports):
    order = []

    def note(step):
        order.append(step.shell)
        return "{}"

    for host in ("left", "right"):
        script[host] += [("first", Answer("", times=None)), ("second", note)]
    script["bs"].append(("between", note))
    steps = [Command(host, "first") for host in ("left", "right")]
    steps += [Command("bs", "between"), *(Command(host, "second") for host in ("left", "right"))]
    run([Phase("cut", tuple(steps), cuts=(2, 3))])
    assert order == ["between", "second", "second"]
    ended = [entry.number for entry in read_journal(run.folder / "journal.jsonl") if entry.state == "end"]
    assert (sorted(ended[:2]), ended[2], sorted(ended[3:])) == ([0, 1], 2, [3, 4])
