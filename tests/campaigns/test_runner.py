import io
import json

import pytest
from rich.console import Console

from testbed.campaigns.journal import Journal, read_journal
from testbed.campaigns.plan import Kind, Phase
from testbed.campaigns.progress import Progress, time_left_s
from testbed.campaigns.runner import Runner
from testbed.campaigns.trials import Trial
from testbed.errors import CommandError, ConnectError, TestbedError
from testbed.hosts.fake import Answer
from testbed.hosts.steps import Command, Fetch
from testbed.records import load_run, write_manifest

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


def trial_phase(name, folder, policy="top-2"):
    show = Command("bs", "linkd show")
    fetch = Fetch("bs", f"~/runs/{name}", folder / "fetched" / name)
    steps = (show, Command("bs", f"bsctl trial {name}"), show, fetch)
    return Phase(f"trial {name}", steps, Kind.TRIAL, Trial(name, policy, "even", 0))


def counted(frame_bytes, frames):
    """What the link daemon shows of one device's link."""
    counts = {"bytes": frame_bytes, "packets": frames, "drops": 0}
    return Answer(json.dumps({"links": [{"device": "left", "downlink": counts, "uplink": counts}]}))


@pytest.fixture(autouse=True)
def counters(script):
    script["bs"] += [("linkd show", counted(100 * n, n)) for n in range(8)]


def answer_trial(script, records, name, t_s):
    result = {"t_start_s": STARTED + t_s, "t_end_s": STARTED + t_s + 2, "control_bytes": {}}
    result = {"result": result}
    said = json.dumps({"done": 1, "of": 1, "what": "prompt p1"}) + "\n" + json.dumps(result)
    script["bs"].append((f"bsctl trial {name}", said))
    script["bs"].append((f"fetch ~/runs/{name}", Answer(files=records(name, STARTED + t_s))))


HOLD = Phase("hold", tuple(Command(h, "services hold") for h in ("bs", "left", "right")), Kind.LEASE)
RESTORE = Phase("restore", (Command("bs", "linkd clear"),), Kind.RESTORE)


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
    answer_trial(script, records, "t002", 20.0)
    outcome = run([trial_phase("t001", run.folder), trial_phase("t002", run.folder)])
    assert outcome.completed == ["t002"]
    assert "device left lost" in outcome.failed["t001"]
    trials = load_run(run.folder).trials.set_index("trial")
    assert trials.loc["t001", "state"] == "failed"
    assert "during layer 2" in trials.loc["t001", "error"]


def test_an_answer_that_nobody_understands_fails_its_trial_alone(run, script, records):
    script["bs"].append(("bsctl trial t001", "killed\n"))
    script["bs"].append(("fetch ~/runs/t001", Answer(files=records("t001", STARTED))))
    answer_trial(script, records, "t002", 20.0)
    outcome = run([trial_phase("t001", run.folder), trial_phase("t002", run.folder)])
    assert outcome.completed == ["t002"]
    assert "answered what was not expected: 'killed'" in outcome.failed["t001"]


def test_three_failures_in_a_row_end_the_run_and_restore_the_links(run, script, transports):
    for name in ("t001", "t002", "t003"):
        script["bs"].append((f"bsctl trial {name}", CommandError("bs", "bsctl", 1, "no answer")))
    script["bs"].append(("linkd clear", ""))
    phases = [*(trial_phase(f"t00{i}", run.folder) for i in range(1, 5)), RESTORE]
    with pytest.raises(TestbedError, match="3 trials failed") as caught:
        run(phases)
    assert "--resume" in caught.value.hint
    assert transports["bs"][-1].steps[-1].line() == "bs: linkd clear"


def test_a_failing_phase_still_restores_and_lets_the_hosts_go(run, script, transports):
    script["left"].append(("pull", ConnectError("left", "connection lost")))
    script["bs"].append(("linkd clear", ""))
    with pytest.raises(ConnectError, match="connection lost"):
        run([HOLD, Phase("pull", (Command("left", "pull"),)), RESTORE])
    assert "bs: linkd clear" in [step.line() for step in transports["bs"][-1].steps]
    assert all(transport.closed for made in transports.values() for transport in made)


def test_ctrl_c_restores_over_fresh_connections(run, script, transports):
    script["bs"].append(("bsctl trial t001", KeyboardInterrupt()))
    script["bs"].append(("linkd clear", ""))
    with pytest.raises(KeyboardInterrupt):
        run([trial_phase("t001", run.folder), RESTORE])
    assert len(transports["bs"]) == 2
    assert [step.line() for step in transports["bs"][1].steps] == ["bs: linkd clear"]
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
