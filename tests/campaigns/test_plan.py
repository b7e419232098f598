"""The plan of the quickstart from assumed facts: no host and no network."""

from dataclasses import replace
from pathlib import Path

import pytest

from testbed.campaigns.phases import Kind
from testbed.campaigns.plan import plan_run
from testbed.campaigns.prepare import Probed, gather
from testbed.campaigns.session import new
from testbed.campaigns.trials import Trial
from testbed.errors import InputError
from testbed.hosts.facts import assume_facts
from testbed.hosts.steps import Put

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return new(tmp_path / "results", ROOT / "campaigns/quickstart.yaml", None, [])


def inputs_of(target, objects=frozenset()):
    facts = {name: assume_facts(host) for name, host in target.inventory.hosts.items()}
    probed = Probed(facts, {}, frozenset(objects))
    return gather(target, probed)


def steps_of(phases):
    return [step for phase in phases for step in phase.steps]


def test_the_first_run_is_named_after_its_campaign(target):
    assert target.run == "quickstart-0001"


def test_the_next_run_takes_the_next_number(target):
    (target.folder).mkdir(parents=True)
    again = new(target.folder.parent, target.campaign_file, None, [])
    assert again.run == "quickstart-0002"


def test_every_trial_sets_its_links_and_a_new_scenario_is_verified(target):
    inputs = inputs_of(target)
    phases = [p for p in plan_run(inputs) if p.trial]
    scenario = None
    for trial in inputs.trials:
        mine = [p.kind for p in phases if p.trial == trial]
        verify = [Kind.VERIFY] if trial.scenario != scenario else []
        assert mine == [Kind.LINKS, *verify, Kind.TRIAL]
        scenario = trial.scenario


def test_leases_come_before_services_and_the_links_go_back_before_the_end(target):
    kinds = [phase.kind for phase in plan_run(inputs_of(target))]
    phases = plan_run(inputs_of(target))
    names = [phase.name for phase in phases]
    assert names.index("hold the hosts") < names.index("provision") < names.index("serve the shards")
    (_, first), (_, others) = phases[names.index("hold the hosts")].rounds()
    assert [step.host for step in first] == [target.inventory.base_station.name]
    assert {step.host for step in (*first, *others)} == set(target.inventory.hosts)
    assert kinds[-2:] == [Kind.RESTORE, Kind.COLLECT]


def test_the_lines_hold_no_secret_and_follow_from_the_inputs(target):
    first, second = inputs_of(target), inputs_of(target)
    assert first.key != second.key
    lines = [step.line() for step in steps_of(plan_run(first))]
    assert lines == [step.line() for step in steps_of(plan_run(second))]
    assert first.key not in "\n".join(lines)


def test_each_host_gets_its_certificate_and_the_data_plane_uses_it(target):
    inputs = inputs_of(target)
    puts = [
        s for s in steps_of(plan_run(inputs)) if isinstance(s, Put) and s.target.startswith("~/.testbed/tls/")
    ]
    assert {(put.host, put.target.rpartition("/")[2]) for put in puts} == {
        (host, name)
        for host in target.inventory.hosts
        for name in ("authority.pem", "certificate.pem", "key.pem")
    }
    assert {(put.mode, put.secret) for put in puts} == {(0o600, True)}
    services = [step.line() for step in steps_of(plan_run(inputs)) if "--tls" in step.line()]
    assert len(services) == len(target.inventory.hosts)


def test_a_plain_data_plane_has_a_key_and_no_certificates(target):
    network = target.inventory.network.model_copy(update={"security": "plain"})
    inputs = inputs_of(replace(target, inventory=target.inventory.model_copy(update={"network": network})))
    lines = [step.line() for step in steps_of(plan_run(inputs))]
    assert not [line for line in lines if "tls" in line]
    serving = [line for line in lines if "expert_worker" in line or "base_station" in line]
    assert len(serving) == len(target.inventory.hosts)
    assert all("--key-file" in line for line in serving)


def test_metrics_are_served_where_the_inventory_names_a_port(target):
    def services(target):
        lines = [step.line() for step in steps_of(plan_run(inputs_of(target)))]
        return [line for line in lines if "expert_worker" in line or "base_station " in line]

    assert not any("--metrics" in line for line in services(target))
    network = target.inventory.network.model_copy(update={"metrics_port": 9100})
    shown = services(replace(target, inventory=target.inventory.model_copy(update={"network": network})))
    assert len(shown) == len(target.inventory.hosts)
    for host in target.inventory.hosts.values():
        assert sum(f"--metrics {host.address}:9100" in line for line in shown) == 1


def test_objects_that_the_base_station_holds_are_not_sent_again(target):
    def sent(inputs):
        return [s for s in steps_of(plan_run(inputs)) if isinstance(s, Put) and "/objects/" in s.target]

    everything = inputs_of(target)
    digests = list(everything.work.manifest.objects())
    assert {Path(step.target).name for step in sent(everything)} == set(digests)
    assert [Path(s.target).name for s in sent(inputs_of(target, digests[1:]))] == digests[:1]


def test_each_device_is_asked_for_its_experts_only(target):
    inputs = inputs_of(target)
    held = [
        (layer, expert)
        for layer, row in inputs.work.placement.items()
        for expert, holders in row.items()
        for _ in holders
    ]
    assert len(held) == len(set(held)) == inputs.work.manifest.layers * inputs.work.manifest.experts_per_layer
    counts = {
        d.name: sum(d.name in h for h in inputs.work.placement[0].values()) for d in target.inventory.devices
    }
    assert counts == {"agx-orin": 4, "orin-nx": 2, "orin-nano": 1, "xavier-nx": 1}


def test_limit_keeps_the_base_station_and_the_named_devices(target):
    limited = new(target.folder.parent, target.campaign_file, None, ["orin-nx", "agx-orin", "orin-nano"])
    assert list(limited.inventory.hosts) == ["bs", "agx-orin", "orin-nx", "orin-nano"]
    with pytest.raises(InputError, match="no host"):
        new(target.folder.parent, target.campaign_file, None, ["orin"])


def test_trials_are_named_in_the_order_of_running(target):
    assert [trial.name for trial in target.trials] == [f"t{n:03d}" for n in range(1, 21)]
    assert isinstance(target.trials[0], Trial)
