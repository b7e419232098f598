"""What shapes the links decides what a campaign may ask for, and which steps a run has."""

from pathlib import Path

import pytest

from testbed.campaigns.lab_steps import channel_bytes
from testbed.campaigns.phases import Kind
from testbed.campaigns.plan import plan_run
from testbed.campaigns.prepare import Probed, gather
from testbed.campaigns.session import new
from testbed.config.inventory import load_inventory
from testbed.errors import InputError
from testbed.hosts.facts import assume_facts
from testbed.hosts.steps import Put
from testbed.links.channels import channel_of

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "payloads" / "models" / "tiny-mixtral"
INVENTORY = """
lab: two
network: {network}
hosts:
  bs: {{role: base_station, address: 10.0.0.1, python: {{manage: false}}}}
  left: {{role: device, address: 10.0.0.2, board: jetson-orin-nano-8gb, python: {{manage: false}}}}
  right: {{role: device, address: 10.0.0.3, board: jetson-orin-nano-8gb, python: {{manage: false}}}}
"""
CAMPAIGN = """
campaign: shaped
inventory: two.yaml
model: {model}
seed: 3
repeats: {repeats}
prompts: {{file: prompts.jsonl}}
policies:
{policies}
scenarios:
{scenarios}
{more}
"""
POLICY = "  - {name: top-1, selection: {kind: top_k, k: 1}}"
SHARED = "  - {name: fair, selection: {kind: top_k, k: 1}, bandwidth: {kind: proportional, per: layer}}"
EVEN = "  - {name: even, links: {default: {downlink_mbit: 8, uplink_mbit: 8}}}"
FADING = """  - name: fading
    channel: {model: shannon, bandwidth_mhz: 10, duration_s: 1, devices: {default: {snr_db: 15}}}"""
DELAYED = "  - {name: far, links: {default: {downlink_mbit: 8, uplink_mbit: 8, delay_ms: 5}}}"
FREE = "  - {name: free, links: {}}"


@pytest.fixture
def target(tmp_path, monkeypatch):
    """Return what makes the target of a run from the lab's network settings and a campaign's parts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "prompts.jsonl").write_text('{"id": "p1", "text": "so it was"}\n')

    def make(network="{}", scenarios=EVEN, policies=POLICY, more="", repeats=1):
        (tmp_path / "two.yaml").write_text(INVENTORY.format(network=network))
        text = CAMPAIGN.format(
            model=MODEL, scenarios=scenarios, policies=policies, more=more, repeats=repeats
        )
        (tmp_path / "shaped.yaml").write_text(text)
        return new(tmp_path / "results", tmp_path / "shaped.yaml", None, [])

    return make


def phases_of(target):
    facts = {name: assume_facts(host) for name, host in target.inventory.hosts.items()}
    probed = Probed(facts, {}, frozenset())
    inputs = gather(target, probed)
    return plan_run(inputs)


def lines_of(phases, *kinds):
    return [step.line() for phase in phases if not kinds or phase.kind in kinds for step in phase.steps]


def verbs_of(phase):
    """Return who does what in a trial, as `host verb`."""
    verbs = []
    for step in phase.steps:
        for verb in ("show", "play", "trial", "hold", "history", "fetch"):
            if f"linkd {verb}" in step.line() or f"bsctl {verb}" in step.line() or f": {verb}" in step.line():
                verbs.append(f"{step.host} {verb}")
    return verbs


def trial_of(phases):
    return next(phase for phase in phases if phase.kind is Kind.TRIAL)


def test_fixed_links_are_not_played(target):
    phases = phases_of(target())
    verbs = ["bs show", "bs trial", "bs show", "bs history", "bs fetch"]
    assert verbs_of(trial_of(phases)) == verbs
    assert not any("--channel" in line for line in lines_of(phases))


def test_a_channel_is_staged_for_each_repeat_and_played_during_the_trial(target):
    made = target(scenarios=f"{FADING}\n{EVEN}", repeats=2, policies=f"{POLICY}\n{SHARED}")
    phases = phases_of(made)
    staged = [
        step for phase in phases for step in phase.steps if isinstance(step, Put) and step.title == "channel"
    ]
    assert sorted(Path(step.target).name for step in staged) == ["fading-r0.json", "fading-r1.json"]
    scenario = made.campaign.scenario("fading")
    for step in staged:
        repeat = int(step.target[-6])
        channel = channel_of(scenario, ["left", "right"], seed=3, repeat=repeat)
        assert step.content == channel_bytes(channel)
    assert staged[0].content != staged[1].content
    for phase in phases:
        if phase.kind is Kind.TRIAL:
            played = phase.trial.scenario == "fading"
            verbs = ["bs play"] * played + ["bs trial"] + ["bs hold"] * played
            assert verbs_of(phase) == ["bs show", *verbs, "bs show", "bs history", "bs fetch"]
        if phase.kind is Kind.LINKS:
            file = f"fading-r{phase.trial.repeat}.json"
            assert [file in line for line in lines_of([phase])] == [phase.trial.scenario == "fading"]


def test_two_plans_of_a_channel_are_the_same(target):
    made = target(scenarios=FADING)
    assert lines_of(phases_of(made)) == lines_of(phases_of(made))


def test_where_devices_shape_all_play_together_around_the_trial(target):
    phases = phases_of(target("{shaping: device}", FADING))
    trial = trial_of(phases)
    rounds = [sorted(set(verbs_of(_of(steps)))) for _, steps in trial.rounds()]
    everyone = ("bs", "left", "right")
    assert rounds[:3] == [
        [f"{host} show" for host in everyone],
        [f"{host} play" for host in everyone],
        ["bs trial"],
    ]
    assert rounds[3] == sorted(
        [f"{host} {verb}" for host in everyone for verb in ("hold", "show", "history")] + ["bs fetch"]
    )
    staged = [
        step.host for phase in phases for step in phase.steps if getattr(step, "title", "") == "channel"
    ]
    assert staged == ["bs", "left", "right"]
    daemons = [line for line in lines_of(phases) if "linkd serve" in line]
    assert sorted(("--side device" in line, line.partition(":")[0]) for line in daemons) == [
        (False, "bs"),
        (True, "left"),
        (True, "right"),
    ]
    cleared = [line for line in lines_of(phases, Kind.RESTORE) if "linkd clear" in line]
    assert [line.partition(":")[0] for line in cleared] == ["bs", "left", "right"]


def _of(steps):
    from testbed.campaigns.phases import Phase

    return Phase("round", tuple(steps))


def test_pacing_needs_a_daemon_that_only_keeps_the_rates(target):
    lines = lines_of(phases_of(target("{shaping: pacing}")))
    (daemon,) = [line for line in lines if "linkd serve" in line]
    assert "--backend pacing" in daemon
    (station,) = [line for line in lines if "payloads.wdmoe.bs.base_station" in line]
    assert station.endswith("--links '~/.testbed/linkd.sock' --pacing")


def test_where_nothing_is_shaped_the_radio_is_recorded(target):
    phases = phases_of(target("{shaping: none, wifi_interface: wlp1s0}", FREE))
    lines = lines_of(phases)
    assert not any("payloads.linkd" in line for line in lines)
    assert {phase.kind for phase in phases} & {Kind.LINKS, Kind.VERIFY} == set()
    loggers = [line for line in lines if "boardlog wifi --interface wlp1s0" in line]
    assert [line.partition(":")[0] for line in loggers] == ["left", "right"]
    fetched = [line for line in lines_of(phases, Kind.COLLECT) if line.endswith("wifi.csv")]
    assert len(fetched) == 2


def test_the_radio_can_be_left_out(target):
    lines = lines_of(phases_of(target("{shaping: none, wifi_interface: null}", FREE)))
    assert not any("wifi" in line for line in lines)


def test_the_inventory_names_leaf_and_interface(target):
    lines = lines_of(phases_of(target("{leaf: tbf, interface: enp3s0}")))
    (daemon,) = [line for line in lines if "linkd serve" in line]
    assert daemon.endswith("--leaf tbf --interface enp3s0")


@pytest.mark.parametrize(
    ("network", "parts", "expected"),
    [
        ("{shaping: none}", {}, r"shaped\.yaml:11: scenarios\[0\]\.links\.default: nothing shapes"),
        (
            "{shaping: none}",
            {"scenarios": FADING},
            r"shaped\.yaml:12: scenarios\[0\]\.channel: nothing shapes",
        ),
        (
            "{shaping: none}",
            {"scenarios": FREE, "more": "verify: {repeats: 3}"},
            r"shaped\.yaml:12: verify: nothing shapes",
        ),
        (
            "{shaping: none}",
            {"scenarios": FREE, "policies": SHARED},
            r"shaped\.yaml:9: policies\[0\]\.bandwidth",
        ),
        ("{shaping: device}", {"policies": SHARED}, r"shaped\.yaml:9: policies\[0\]\.bandwidth: each device"),
        ("{shaping: pacing}", {"scenarios": DELAYED}, r"links\.default\.delay_ms: a paced socket"),
        (
            "{shaping: device}",
            {"scenarios": DELAYED},
            r"links\.default\.delay_ms: a device gives a rate only",
        ),
        ("{leaf: tbf}", {"scenarios": DELAYED}, r"links\.default\.delay_ms: a token bucket"),
    ],
)
def test_what_cannot_be_combined_is_wrong_input_with_its_line(target, network, parts, expected):
    with pytest.raises(InputError, match=expected):
        target(network, **parts)


@pytest.mark.parametrize(
    ("network", "parts"),
    [
        ("{shaping: bs}", {"policies": SHARED, "scenarios": DELAYED}),
        ("{shaping: pacing}", {"policies": SHARED, "scenarios": FADING}),
        ("{shaping: device, leaf: netem}", {"scenarios": DELAYED}),
        ("{shaping: none}", {"scenarios": FREE}),
    ],
)
def test_what_can_be_combined_is_planned(target, network, parts):
    assert phases_of(target(network, **parts))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("{shaping: wire}", r":3: network\.shaping: one of `bs`, `device`, `pacing`, `none`"),
        ("{shaping: pacing, leaf: tbf}", r":3: network\.leaf: nothing has a leaf"),
        ("{shaping: device, leaf: line}", r":3: network\.leaf: the user-space line runs at the base station"),
        ("{interface: no/name}", r":3: network\.interface: the name of a network interface was expected"),
    ],
)
def test_network_settings_that_are_wrong_are_named(tmp_path, network, expected):
    path = tmp_path / "two.yaml"
    path.write_text(INVENTORY.format(network=network))
    with pytest.raises(InputError, match=expected):
        load_inventory(path)
