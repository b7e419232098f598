"""A service that ends right after its start is part of the error of what needed it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.campaigns.ended import ended_services, started_service
from testbed.campaigns.executor import Executor
from testbed.campaigns.lab_steps import LabSteps
from testbed.campaigns.phases import Kind, Phase
from testbed.campaigns.progress import Progress
from testbed.errors import CommandError, ConnectError
from testbed.hosts.fake import Answer
from testbed.hosts.steps import Command, Put

REFUSED = "bsctl: cannot reach the base station at /root/.testbed/bs.sock: Connection refused"
ASK = Command("bs", "bsctl trial t001")


def described(name, state, restarts=0, reason="", last_line="", ready=True):
    service = {"name": name, "state": state, "restarts": restarts, "ready": ready and state == "running"}
    return service | {"last_reason": reason, "last_line": last_line}


def answer(*services):
    # The words before are a login script's.
    return Answer("welcome\n" + json.dumps({"services": services}) + "\n", times=None)


@pytest.fixture
def carry_out(open_fleet, inventory, script):
    """Start the services of either workload's base station and its devices, then ask it for a trial."""
    lab = LabSteps(inventory)

    def run(program, ask=ASK, kind=Kind.DO):
        worker = {"wdmoe.bs.base_station": "worker"}.get(program, "receiver")
        starts = [lab.service(device, worker, "x") for device in inventory.devices]
        starts.append(lab.service(lab.bs, "base-station", program))
        for step in starts:
            script[step.host].append((f"services start {started_service(step)} ", "started"))
        executor = Executor(open_fleet, Progress(0))
        executor.carry_out([Phase("start", tuple(starts)), Phase("ask", (ask,), kind)])

    return run


@pytest.mark.parametrize("program", ["wdmoe.bs.base_station", "semcast.transmitter"])
def test_the_last_line_of_a_base_station_that_ended_is_part_of_the_error(carry_out, script, program):
    script["bs"] += [
        ("bsctl trial", CommandError("bs", "bsctl trial t001", 1, REFUSED)),
        (
            "services status",
            answer(described("base-station", "failed", 5, "exited with status 1", "MemoryError")),
        ),
    ]
    for name in ("left", "right"):
        script[name].append(("services status", answer(described("x", "running"))))
    with pytest.raises(CommandError) as caught:
        carry_out(program)
    assert str(caught.value) == caught.value.message
    assert caught.value.message == (
        f"bs: `bsctl trial t001` ended with status 1: {REFUSED}; "
        "base-station on bs: failed (exited with status 1), its last line: MemoryError"
    )


def test_a_host_that_was_taken_over_is_told_of_once_and_not_for_each_service_that_stopped_by_it(
    carry_out, script
):
    why = "the lease ended: taken over by bob@desk (mine now)"
    script["bs"] += [
        ("bsctl trial", CommandError("bs", "bsctl trial t001", 1, REFUSED)),
        ("services status", answer(described("base-station", "stopped", 0, why, "ready"))),
    ]
    for name in ("left", "right"):
        script[name].append(("services status", answer(described("worker", "ending", 0, why, "connected"))))
    with pytest.raises(CommandError) as caught:
        carry_out("wdmoe.bs.base_station")
    said = f"{REFUSED}; on bs, left, right: {why}"
    assert caught.value.message == f"bs: `bsctl trial t001` ended with status 1: {said}"


def test_so_is_that_of_a_device_that_had_to_be_started_again(carry_out, script):
    script["bs"] += [
        ("bsctl trial", CommandError("bs", "bsctl", 1, "device left lost")),
        ("services status", answer(described("base-station", "running"))),
    ]
    script["left"].append(("services status", answer(described("worker", "running", 1, "", "Killed"))))
    script["right"].append(("services status", ConnectError("right", "no answer")))
    with pytest.raises(
        CommandError, match=r"device left lost; worker on left had to be started again, .*: Killed$"
    ):
        carry_out("wdmoe.bs.base_station")


@pytest.mark.parametrize("error", [ConnectError("bs", "connection lost"), KeyboardInterrupt()])
def test_nobody_is_asked_where_no_command_failed(carry_out, script, transports, error):
    script["bs"].append(("bsctl trial", error))
    with pytest.raises(type(error)):
        carry_out("semcast.transmitter")
    assert not any(
        "services status" in s.line() for made in transports.values() for t in made for s in t.steps
    )


def test_a_restart_is_told_of_once(carry_out, script, open_fleet):
    from testbed.campaigns.ended import StartedServices

    started = StartedServices()
    started.note(Command("bs", "python -m payloads.services start base-station --restart -- x"))
    script["bs"].append(("services status", answer(described("base-station", "running", 2, "", "oh"))))
    said = []
    for _ in range(2):
        error = CommandError("bs", "bsctl", 1, "no answer")
        started.explain(error, open_fleet())
        said.append(error.message.count("; base-station on bs had to be started again, its last line: oh"))
    assert said == [1, 0]


def test_one_that_is_not_ready_again_yet_is_told_of_each_time():
    service = described("base-station", "running", 1, "killed by signal 9 (Killed)", "loading", ready=False)
    told = list(ended_services("bs", json.dumps({"services": [service]}), {"base-station": 1}))
    words = "base-station on bs is being started again (killed by signal 9 (Killed)), its last line: loading"
    assert told == [("base-station", 1, words)]


def test_services_of_earlier_runs_do_not_count():
    text = json.dumps({"services": [described("receiver", "failed", 0, "exited with status 1", "old")]})
    assert list(ended_services("left", text, {"worker": 0})) == []


def test_only_a_start_starts_a_service():
    assert (
        started_service(Command("bs", "PYTHONPATH=x exec python3 -m payloads.services start linkd -- y"))
        == "linkd"
    )
    assert started_service(Command("bs", "PYTHONPATH=x exec python3 -m payloads.services stop --all")) is None
    assert started_service(Put("bs", b"", "~/ payloads.services start x ", "put")) is None


@given(
    st.recursive(
        st.none() | st.text(max_size=3) | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["services", "name", "state", "restarts"]), inner)
        ),
        max_leaves=6,
    )
)
def test_an_answer_that_makes_no_sense_says_nothing(value):
    assert list(ended_services("bs", json.dumps(value), {})) == []
    assert list(ended_services("bs", str(value), {})) == []
