"""`testbed shape apply` and `verify` over scripted hosts: the plan, what is said, and the exit code."""

import csv
import json
import sys

import pytest

from testbed.errors import ConnectError, InputError
from testbed.hosts.fake import Answer


@pytest.fixture
def away(lab):
    """A lab whose hosts do not answer: a dry run takes them for hosts that have nothing yet."""
    for host in lab.script:
        lab.script[host].append(("", ConnectError(host, "no answer")))
    return lab


def phases_of(done):
    return {phase["name"]: phase["steps"] for phase in json.loads(done.stdout)["phases"]}


def test_a_dry_run_of_apply_lists_every_step_and_changes_nothing(away, shape):
    done = shape("apply", "--rate", 8, "--uplink-rate", 2, "--delay-ms", 5, "--dry-run", "--json")
    phases = phases_of(done)
    assert list(phases) == [
        "hold the hosts",
        "provision",
        "stage files",
        "start what shapes and answers",
        "links: 8-2-mbit",
        "verify links: 8-2-mbit",
        "restore",
    ]
    (step,) = phases["links: 8-2-mbit"]
    assert '"downlink_mbit": 8.0, "uplink_mbit": 2.0, "delay_ms": 5.0' in step
    assert "no answer" in json.loads(done.stdout)["assumed"]["left"]
    assert sum("linkd respond" in step for step in phases["start what shapes and answers"]) == 2


def test_where_devices_shape_each_runs_its_own_daemon(away, shape):
    away("{shaping: device}")
    phases = phases_of(shape("apply", "--rate", 8, "--dry-run", "--json", "-l", "left"))
    starts = [step for step in phases["start what shapes and answers"] if "linkd serve" in step]
    assert [step.partition(":")[0] for step in starts] == ["left", "bs"]
    assert "--side device" in starts[0]
    assert "--side" not in starts[1]
    at_device, at_bs = sorted(phases["links: 8-mbit"], reverse=True)
    assert '"address": "10.0.0.1"' in at_device
    assert '"downlink_mbit": null, "uplink_mbit": 8.0' in at_device
    assert '"downlink_mbit": 8.0, "uplink_mbit": null' in at_bs
    (probe,) = phases["verify links: 8-mbit"]
    assert '"backends": {"downlink": "bs-htb-tbf", "uplink": "device-htb-tbf"}' in probe
    assert [step.partition(":")[0] for step in phases["restore"]][:2] == ["bs", "left"]


def test_a_paced_lab_needs_no_queueing_discipline(away, shape):
    away("{shaping: pacing}")
    phases = phases_of(shape("apply", "--rate", 8, "--dry-run", "--json"))
    assert any("--backend pacing" in step for step in phases["start what shapes and answers"])


def test_a_scenario_with_a_channel_is_played_when_it_is_applied(away, campaign, shape):
    phases = phases_of(shape("apply", campaign, "-s", "fading", "--dry-run", "--json"))
    assert any("put" in step and "channels/fading.json" in step for step in phases["stage files"])
    (step,) = phases["links: fading"]
    assert "--channel '~/.testbed/runs/shape/channels/fading.json'" in step
    assert list(phases)[-2:] == ["play the channel", "restore"]


def test_verify_takes_all_scenarios_and_says_how_long_it_takes(away, campaign, shape):
    done = shape("verify", campaign, "--dry-run", "--json")
    assert [name for name in phases_of(done) if name.startswith("verify")] == [
        "verify links: fading",
        "verify links: even",
    ]
    assert not any("--channel" in step for steps in phases_of(done).values() for step in steps)
    longer = shape("verify", campaign, "--repeats", 50, "--dry-run", "--json")
    seconds = [json.loads(one.stdout)["verify_seconds"] for one in (done, longer)]
    assert seconds[1] > 5 * seconds[0] > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["apply"], "name a campaign file, or a rate"),
        (["apply", "CAMPAIGN"], "name one of the campaign's scenarios"),
        (["apply", "CAMPAIGN", "-s", "even", "--rate", "3"], "leave the campaign or the rates out"),
        (["apply", "CAMPAIGN", "-s", "evn"], "no scenario 'evn'"),
        (["apply", "--rate", "0.001"], r"0\.001 Mbit/s cannot be shaped"),
        (["apply", "--rate", "0"], "^0 Mbit/s cannot be shaped"),
        (["apply", "--rate", "3", "--uplink-rate", "-1"], "^-1 Mbit/s cannot be shaped"),
        (["apply", "--rate", "nan"], "^nan Mbit/s cannot be shaped"),
        (["apply", "--rate", "3", "--jitter-ms", "2"], "needs a delay"),
        (["verify"], "name a campaign file, or rates"),
        (["verify", "--rate", "3", "--rate", "0"], "^0 Mbit/s cannot be shaped"),
        (["verify", "--rate", "3", "--sizes", "1024,x"], "numbers with commas"),
        (["verify", "--rate", "3", "--sizes", "3"], "9 bytes to 4 MiB"),
        (["preview", "CAMPAIGN", "-s", "evn"], "no scenario 'evn'"),
    ],
)
def test_wrong_input_is_said_before_a_host_is_asked(lab, campaign, arguments, expected, shape):
    done = shape(*(campaign if one == "CAMPAIGN" else one for one in arguments))
    with pytest.raises(InputError, match=expected):
        raise done.exception
    assert not lab.made


@pytest.mark.parametrize("network", ["{shaping: pacing}", "{leaf: tbf}", "{shaping: device}"])
def test_a_lab_that_gives_rates_only_gives_no_delay(lab, shape, network):
    lab(network)
    with pytest.raises(InputError, match="gives no delay"):
        raise shape("apply", "--rate", "3", "--delay-ms", "2").exception


def row(device, direction, ok=True, **changes):
    return {
        "device": device, "direction": direction, "backend": "bs-htb-tbf", "state": "idle", "asked_mbit": 8.0,
        "delay_ms": 0.0, "message_bytes": 4096, "n": 5, "expected_ms": 2.78, "measured_ms": 2.8 if ok else 0.2,
        "p95_ms": 2.9, "ratio": 1.0 if ok else 0.07, "ok": ok, "rtt_ms": 0.1, **changes,
    }  # fmt: skip


@pytest.fixture
def ready(lab, monkeypatch, link):
    """A lab that has the code already, whose daemon sets what it is asked to."""
    from testbed.campaigns.shape import Deployed

    monkeypatch.setattr("testbed.campaigns.shape.deployed", lambda *_args, **_kwargs: Deployed((), {}))
    for host in lab.script:
        lab.script[host] += [
            ("services lease show", '{"held": null, "reserved": null}'),
            ("services hold", Answer('{"held": true}', times=None)),
            ("put secret", Answer(times=None)),
            ("services (start|stop)", Answer(times=None)),
        ]
    lab.script["bs"] += [
        ("linkd set", Answer(json.dumps({"links": [link("left"), link("right")]}), times=None)),
        ("linkd clear", Answer(times=None)),
    ]
    return lab


def test_verify_prints_each_row_and_ends_with_1_where_one_is_off(ready, tmp_path, shape, asked):
    rows = [row("left", "downlink"), row("left", "uplink", ok=False)]
    ready.script["bs"].append(("linkd probe", "\n".join(map(json.dumps, rows))))
    done = shape("verify", "--rate", 8, "--csv", tmp_path / "out" / "rows.csv")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert lines[1].split() == [
        "8-mbit", "left", "downlink", "idle", "4096", "8", "2.78", "2.80", "2.90", "1.000", "ok",
    ]  # fmt: skip
    assert lines[2].split()[-2:] == ["0.070", "OFF"]
    assert lines[-1] == "1 of 2 are off"
    with (tmp_path / "out" / "rows.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [one["ok"] for one in written] == ["True", "False"]
    assert "this takes about" in done.stderr
    assert asked(ready.made["bs"])[-2:] == ["linkd clear", "services stop --all"]


def test_verify_of_right_links_ends_with_0_and_gives_all_rows_as_json(ready, shape):
    ready.script["bs"].append(("linkd probe .*--busy", json.dumps(row("left", "downlink"))))
    ready.script["bs"].append(("linkd probe .*--busy", json.dumps(row("left", "uplink", asked_mbit=1.0))))
    done = shape("verify", "--rate", 8, "--rate", 1, "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"] is True
    assert [(one["scenario"], one["direction"]) for one in answer["rows"]] == [
        ("8-mbit", "downlink"),
        ("1-mbit", "uplink"),
    ]


def test_what_is_off_is_red_on_a_terminal(monkeypatch, capsys):
    from testbed.cli.shape_tables import print_verification

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    rows = [{"scenario": "s", **row("left", way, ok=way == "uplink")} for way in ("downlink", "uplink")]
    print_verification(rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("\033[31m") for line in lines[1:3]] == [True, False]


def test_a_single_device_has_no_others_to_load(ready, shape, asked):
    ready.script["bs"].append(("linkd probe", json.dumps(row("left", "downlink"))))
    done = shape("verify", "--rate", 8, "-l", "left")
    assert "only the idle link" in done.stderr
    assert not any("--busy" in step for step in asked(ready.made["bs"]))


def test_apply_says_what_is_in_force_and_puts_it_back_when_its_time_is_over(ready, shape, asked):
    probes = [row(device, way) for device in ("left", "right") for way in ("downlink", "uplink")]
    ready.script["bs"].append(("linkd probe", "\n".join(map(json.dumps, probes))))
    done = shape("apply", "--rate", 8, "--for", 0, "--json")
    assert done.exit_code == 0, done.output
    shaped, restored = map(json.loads, done.stdout.splitlines())
    assert [(one["device"], one["direction"], one["asked_mbit"]) for one in shaped["links"]] == [
        ("left", "downlink", 8.0),
        ("left", "uplink", 2.5),
        ("right", "downlink", 8.0),
        ("right", "uplink", 2.5),
    ]
    assert (shaped["event"], restored) == ("shaped", {"event": "restored", "ok": True})
    assert asked(ready.made["bs"])[-2:] == ["linkd clear", "services stop --all"]


def test_apply_stays_until_ctrl_c_which_is_no_failure(ready, monkeypatch, shape, asked):
    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    done = shape("apply", "--rate", 8, "--no-verify")
    assert done.exit_code == 0
    assert "the links are as they were" in done.stderr
    assert asked(ready.made["bs"]) == ["linkd clear", "services stop --all"]  # over a fresh connection


def test_apply_ends_with_1_where_a_link_is_off(ready, shape):
    ready.script["bs"].append(("linkd probe", json.dumps(row("left", "uplink", ok=False))))
    done = shape("apply", "--rate", 8, "--for", 0)
    assert done.exit_code == 1
    assert "OFF" in done.stdout
    assert "1 of 1 probes are off" in done.stderr
