"""The verbs of `testbed shape` that look, and the one that clears, over scripted hosts."""

import io
import json

import pytest

from testbed.errors import CommandError, ConnectError, InputError
from testbed.hosts.fake import Answer

ABLE = dict.fromkeys(
    ("bs-htb-tbf", "bs-htb-netem", "bs-line", "device-htb-tbf", "device-htb-netem", "socket-pacing")
)


NOBODY = json.dumps({"held": None, "reserved": None})


def capable(**missing):
    return json.dumps({"root": True, "kinds": {}, "backends": ABLE | missing})


def test_backends_say_first_what_keeps_the_lab_from_what_it_asks_for(lab, shape):
    lab("{leaf: netem}")
    why = "netem: not in this kernel"
    for host in lab.script:
        lab.script[host].append(("linkd capabilities", capable(**{"bs-htb-netem": why})))
    done = shape("backends")
    assert done.exit_code == 1
    assert "bs: it cannot shape as the inventory says" in done.stderr
    assert "network: {leaf: auto}" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["bs", "bs-htb-netem", "*", "no", "netem:", "not", "in", "this", "kernel"] in rows
    assert ["left", "device-htb-tbf", "yes"] in rows


def test_backends_of_a_lab_that_can_do_it_are_no_error_and_limited(lab, shape):
    lab.script["bs"].append(("linkd capabilities", capable(**{"bs-htb-netem": "no", "bs-line": "no"})))
    done = shape("backends", "--limit", "bs", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["problems"] == []
    assert list(lab.made) == ["bs"]


def test_a_host_without_the_code_is_named_with_what_to_do(lab, shape):
    failure = CommandError("bs", "python -m payloads.linkd", 1, "python3: No module named payloads")
    lab.script["bs"].append(("linkd capabilities", failure))
    done = shape("backends", "-l", "bs")
    assert done.exit_code == 1
    assert "testbed provision" in done.stderr


def test_show_has_a_row_for_each_device_and_direction(lab, shape, link):
    links = [link("left"), link("right", delay_ms=5.0, jitter_ms=1.0, downlink=None)]
    lab.script["bs"].append(("linkd show --json", json.dumps({"links": links, "playing": True})))
    done = shape("show")
    assert done.exit_code == 0
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["left", "downlink", "8", "0", "0.5", "bs-htb-tbf", "3000", "2", "1", "0"] in cells
    assert ["right", "downlink", "8", "5 ± 1", "0.5", "bs-htb-tbf", "-", "-", "-", "-"] in cells
    assert "a channel is played (by bs)" in done.stdout


def test_show_can_be_limited_to_a_device(lab, shape, link):
    answer = {"links": [link("left"), link("right")], "playing": False}
    lab.script["bs"].append(("linkd show --json", json.dumps(answer)))
    shown = json.loads(shape("show", "-l", "right", "--json").stdout)
    assert [one["device"] for one in shown["hosts"]["bs"]["links"]] == ["right"]


def test_where_no_daemon_runs_no_links_are_shaped(lab, shape):
    failure = CommandError("bs", "linkd", 1, "linkd: linkd does not run: ~/.testbed/linkd.sock: No such file")
    lab.script["bs"].append(("linkd show", failure))
    done = shape("show")
    assert (done.exit_code, done.stdout) == (0, "no links are shaped\n")


def test_show_names_a_host_that_does_not_answer(lab, shape):
    lab.script["bs"].append(("linkd show", ConnectError("bs", "no answer")))
    done = shape("show")
    assert done.exit_code == 1
    assert "bs: no answer" in done.stderr
    assert done.stdout == ""  # whether links are shaped there is not known


def test_clear_asks_every_host_and_a_dry_run_none(lab, shape, asked):
    dry = shape("clear", "--dry-run")
    assert [line.partition(":")[0] for line in dry.stdout.splitlines()] == ["bs", "left", "right"]
    assert not lab.made
    for host, restored in (("bs", "eth0"), ("left", None), ("right", None)):
        lab.script[host].append(("services lease show", NOBODY))
        lab.script[host].append(("linkd clear", json.dumps({"restored": restored})))
    done = shape("clear")
    assert done.stdout.splitlines() == [
        "bs: eth0 is as it was",
        "left: nothing was shaped",
        "right: nothing was shaped",
    ]
    for transport in lab.made.values():
        assert asked(transport)[-1] == "linkd clear"


def test_clear_leaves_the_links_of_a_host_alone_that_somebody_else_has(lab, shape, asked):
    ann = {"kind": "run", "owner": "ann@laptop", "purpose": "run wdmoe-0007", "since_s": 60.0, "left_s": None}
    lab.script["bs"].append(("services lease show", json.dumps({"held": ann, "reserved": None})))
    for host in ("left", "right"):
        lab.script[host].append(("services lease show", NOBODY))
        lab.script[host].append(("linkd clear", json.dumps({"restored": None})))
    done = shape("clear")
    assert done.exit_code == 3
    assert "bs: held by ann@laptop (run wdmoe-0007)" in done.stderr
    assert done.stdout.splitlines() == ["left: nothing was shaped", "right: nothing was shaped"]
    assert "linkd clear" not in asked(lab.made["bs"])


EVENTS = [
    {"event": "rates", "unix_s": 1.0, "cause": "watch", "why": None,
     "rates": {"left": {"downlink_mbit": 8.0, "uplink_mbit": None}}},
    {"event": "sample", "unix_s": 2.0, "devices": ["left"], "downlink_bytes": [1000], "uplink_bytes": [None],
     "downlink_backlog_bytes": [0], "uplink_backlog_bytes": [None]},
]  # fmt: skip


def test_watch_prints_a_line_an_event_and_says_when_the_daemon_ends(lab, shape):
    text = "\n".join(map(json.dumps, EVENTS))
    lab.script["bs"].append(
        ("linkd watch", Answer(text, stderr="linkd: linkd went away while it was watched"))
    )
    done = shape("watch")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [{"host": "bs", **e} for e in EVENTS]
    assert "went away" in str(done.exception)


def test_watch_says_how_links_come_to_be_shaped_where_none_are(lab, shape):
    lab.script["bs"].append(("linkd watch", Answer("", stderr="linkd: linkd does not run: no such file")))
    done = shape("watch")
    assert "testbed shape apply" in done.exception.hint


def test_the_table_of_watch_follows_the_events():
    from rich.console import Console

    from testbed.cli.shape_watch import LinksNow

    now = LinksNow(["left"])
    later = EVENTS[1] | {"unix_s": 3.0, "downlink_bytes": [126_000], "downlink_backlog_bytes": [77]}
    block = EVENTS[0] | {"cause": "block", "rates": {"left": {"downlink_mbit": 3.25, "uplink_mbit": None}}}
    for event in (*EVENTS, later, block):
        now.take(event)
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(now.table())
    text = console.export_text()
    row = next(line.split() for line in text.splitlines() if "downlink" in line)
    assert row == ["left", "downlink", "3.250", "1.000", "77"]
    assert "1 changes, the last: block" in text


def test_nothing_is_shown_or_watched_where_nothing_is_shaped(lab, campaign, shape):
    lab("{shaping: none}")
    campaign.write_text(campaign.read_text().partition("scenarios:")[0] + FREE)
    assert "nothing shapes this lab's links" in shape("preview", campaign).stdout
    for verb in ("show", "watch"):
        assert "nothing shapes this lab's links" in shape(verb).stdout
    assert json.loads(shape("show", "--json").stdout)["hosts"] == {}
    assert shape("watch", "--json").stdout == ""
    with pytest.raises(InputError, match="nothing shapes the links"):
        raise shape("apply", "--rate", 8).exception


FREE = "scenarios: [{name: free, links: {}}]"


def test_preview_shows_the_rates_before_anything_runs(lab, campaign, shape):
    rows = json.loads(shape("preview", campaign, "--json").stdout)
    assert [(row["scenario"], row["device"], row["direction"]) for row in rows][:2] == [
        ("fading", "left", "downlink"),
        ("fading", "left", "uplink"),
    ]
    text = shape("preview", campaign, "-s", "even").stdout
    assert text.splitlines()[1].split()[:5] == ["even", "left", "downlink", "fixed", "0.5"]
    assert not lab.made
