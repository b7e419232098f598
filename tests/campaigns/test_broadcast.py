"""The plan of a broadcast from assumed facts, and what is made of what its hosts leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from payloads.artifacts.wanted import parse_wanted
from payloads.semcast.spec import frames_of, noise_seed, read_spec
from testbed.campaigns.broadcast import Broadcasting, broadcast_of
from testbed.campaigns.describe import describe_run
from testbed.campaigns.journal import Journal
from testbed.campaigns.phases import Kind
from testbed.campaigns.plan import RunInputs, plan_run
from testbed.campaigns.prepare import Probed, gather, needs_rack
from testbed.campaigns.session import dry_run, evaluation, execute, new
from testbed.campaigns.target import Evaluation, Target
from testbed.config.broadcast import BroadcastCampaign
from testbed.errors import InputError
from testbed.hosts.facts import assume_facts
from testbed.hosts.steps import Command, Fetch, Put
from testbed.records import RecordWriter, load_run, write_manifest
from testbed.semcast.rows import digest
from tests.semcast.campaign_files import write_campaign, write_model


@pytest.fixture(scope="module")
def campaign_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_campaign(tmp_path_factory.mktemp("campaign"))


@pytest.fixture
def target(tmp_path: Path, campaign_file: Path) -> Target:
    return new(tmp_path / "results", campaign_file, None, [])


def inputs_of(target: Target) -> RunInputs:
    facts = {name: assume_facts(host) for name, host in target.inventory.hosts.items()}
    return gather(target, Probed(facts, {}, frozenset()))


def work_of(target: Target) -> Broadcasting:
    assert isinstance(target.campaign, BroadcastCampaign)
    return broadcast_of(target.run, target.campaign, target.inventory, target.trials)


def test_only_learned_schemes_run_on_the_rack_and_the_others_follow(target: Target) -> None:
    inputs = inputs_of(target)
    assert {trial.policy for trial in inputs.trials} == {"fusion", "TD"}
    assert {trial.policy for trial in inputs.computed} == {"webp (TD)"}
    names = [trial.name for trial in (*inputs.trials, *inputs.computed)]
    assert names == [trial.name for trial in target.trials] == [f"t{n:03d}" for n in range(1, 13)]
    planned = [phase.trial for phase in plan_run(inputs) if phase.kind is Kind.TRIAL]
    assert planned == list(inputs.trials)


def test_the_hosts_get_what_their_services_read(target: Target, tmp_path: Path) -> None:
    steps = [step for phase in plan_run(inputs_of(target)) for step in phase.steps]
    puts = {(step.host, step.target): step.content for step in steps if isinstance(step, Put)}
    devices = json.loads(puts["bs", "~/.testbed/devices.json"])["devices"]
    assert [(one["name"], one["user"]) for one in devices] == [("strong", 1), ("weak", 2)]
    listed = json.loads(puts["strong", "~/.testbed/models.json"])
    wanted = parse_wanted(listed)
    assert {one.digest for one in wanted} == {m["weights"]["object"] for m in listed["models"].values()}
    assert {("bs", f"~/.testbed/objects/{one.digest}") for one in wanted} <= puts.keys()
    (tmp_path / "spec.json").write_bytes(puts["bs", "~/.testbed/runs/small-0001/spec.json"])
    spec = read_spec(tmp_path / "spec.json")
    assert list(spec.trials) == [f"t{n:03d}" for n in range(1, 9)]
    images = puts["bs", str(spec.sets["natural-32"].file).replace(str(Path.home()), "~")]
    assert len(images) == 2 * 2 * spec.sets["natural-32"].image_bytes


def test_services_run_on_the_users_and_their_images_are_fetched_when_all_is_told(target: Target) -> None:
    phases = plan_run(inputs_of(target))
    lines = [step.line() for phase in phases for step in phase.steps if isinstance(step, Command)]
    receivers = [line for line in lines if "payloads.semcast.receiver" in line]
    assert [line.partition(":")[0] for line in receivers] == ["weak", "strong"]
    assert "--pace-ops-per-s 1e+12" in receivers[0]
    assert not any("--metrics" in line for line in lines)
    network = target.inventory.network.model_copy(update={"metrics_port": 7079})
    shown = replace(target, inventory=target.inventory.model_copy(update={"network": network}))
    starts = [step.line() for phase in plan_run(inputs_of(shown)) for step in phase.steps]
    assert (
        sum(
            f"--metrics {host.address}:7079" in line
            for line in starts
            for host in shown.inventory.hosts.values()
        )
        == 3
    )
    assert "--pace-ops-per-s" not in receivers[1]
    (transmitter,) = [line for line in lines if "payloads.semcast.transmitter" in line]
    assert "--multicast" not in transmitter
    trial = next(phase for phase in phases if phase.kind is Kind.TRIAL)
    *_, last = trial.rounds()
    assert [(step.host, type(step)) for step in last[1]] == [("strong", Fetch), ("weak", Fetch)]
    asked = [step for step in trial.steps if isinstance(step, Command) and "bsctl" in step.shell]
    assert len(asked) == 1
    assert trial.steps.index(asked[0]) < last[0]


def test_multicast_is_asked_for_where_the_inventory_says_so(target: Target) -> None:
    network = target.inventory.network.model_copy(update={"multicast": "239.83.0.1:7090"})
    inventory = target.inventory.model_copy(update={"network": network})
    steps = [s for p in plan_run(inputs_of(replace(target, inventory=inventory))) for s in p.steps]
    (transmitter,) = [step.line() for step in steps if "semcast.transmitter" in step.line()]
    assert transmitter.endswith("--multicast 239.83.0.1:7090")


def test_what_only_split_experts_have_is_refused_with_the_line(target: Target, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run.yaml:2: workload: split experts were expected"):
        evaluation(tmp_path / "results", target.campaign_file, None, [], Evaluation())


def test_a_user_that_the_lab_has_not_is_named_with_its_line(tmp_path: Path) -> None:
    file = write_campaign(tmp_path, users=["strong", "wean"])
    with pytest.raises(
        InputError, match=r"yaml:\d+: users\[1\]: the lab has no device 'wean'; did you mean weak"
    ):
        new(tmp_path / "results", file, None, [])


def test_a_model_without_weights_is_refused_before_any_host_is_asked(tmp_path: Path) -> None:
    file = write_campaign(tmp_path)
    (tmp_path / "models" / "fused" / "model.safetensors").unlink()
    expected = r"fused/model\.safetensors: the model's weights cannot be read"
    with pytest.raises(InputError, match=expected) as caught:
        new(tmp_path / "results", file, None, [])
    assert caught.value.hint == "scripts/train_semcast.py makes them"


def test_a_run_does_not_go_on_with_other_models_or_images(target: Target, tmp_path: Path) -> None:
    work = work_of(target)
    manifest = json.loads(json.dumps(work.describe()))
    assert work.changed(manifest) == ""
    images = {"natural-32": {**manifest["images"]["natural-32"], "sha256": "0"}}
    assert work.changed({**manifest, "images": images}) == "the set of images natural-32"
    write_model(tmp_path / "fused", seed=2)
    schemes = [{"name": "fusion", "kind": "learned", "models": [str(tmp_path / "fused")]}]
    other = new(tmp_path / "results", write_campaign(tmp_path / "other", schemes=schemes), None, [])
    assert work_of(other).changed(manifest) == "the model fused"


def test_a_run_with_only_paper_left_goes_on_without_the_rack(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {name: assume_facts(host) for name, host in target.inventory.hosts.items()}
    probed = Probed(facts, {}, frozenset())
    write_manifest(target.folder, describe_run(gather(target, probed), probed, "testbed run", 1000.0))
    records = RecordWriter(target.folder)
    trials = [trial for trial in target.trials if not target.on_paper(trial)]
    for trial in trials:
        row = {
            "order": trial.order,
            "policy": trial.policy,
            "scenario": trial.scenario,
            "repeat": trial.repeat,
        }
        times = {"state": "completed", "t_start_s": 0.0, "t_end_s": 1.0, "concurrency": 1}
        records.write_trial({"trial": trial.name, **row, **times}, {})
    target = replace(target, resumed=True)
    journal = Journal(target.folder / "journal.jsonl", 1)
    ask = Command("bs", "bsctl", trials[-1].name)
    journal.write(0, f"trial {trials[-1].name}", "end", ask)
    assert needs_rack(target)  # the boards' logs are still to be fetched
    for number, device in enumerate(target.inventory.devices, 1):
        for state in ("begin", "end"):
            assert needs_rack(target)
            journal.write(number, "collect", state, Command(device.name, "fetch"))
    journal.close()
    assert dry_run(target).phases == []
    monkeypatch.setattr("testbed.hosts.fleet.Fleet.transport", lambda *_: pytest.fail("a host was asked"))
    finished = execute(target)
    assert (finished.completed, finished.planned, finished.failed) == (12, 12, {})
    run = load_run(target.folder)
    assert (run.manifest["state"], len(run.completed)) == ("completed", 12)
    assert set(run.manifest["facts"]) == set(facts)  # what was known of the hosts stays


@pytest.fixture
def left(target: Target) -> tuple[Broadcasting, Path]:
    """What the transmitter and both receivers leave of the first trial: every image is grey."""
    work = work_of(target)
    fetched = target.folder / "fetched" / "t001"
    fetched.mkdir(parents=True)
    spec = work._spec
    trial = spec.trial("t001")
    grey = np.full((32, 32, 3), 100, np.uint8)
    frames, received = [], []
    for place, frame in enumerate(frames_of(spec, trial)):
        times = {"encode_ms": 1.0, "t_send_s": 1000.0 + place, "t_done_s": 1000.5 + place}
        sizes = {"symbols": 512, "side_bits": 16, "bytes": 4200, "copies": 2}
        frames.append({"trial": "t001", "frame": frame.number, **sizes, **times})
        for user, device in enumerate(spec.users, 1):
            seed = noise_seed(spec.seed, trial.repeat, frame.block.pair, user)
            row = {"trial": "t001", "frame": frame.number, "user": user, "device": device, "received": True}
            channel = {"gain_db": 0.0, "believed_db": 0.0, "measured_snr_db": 9.0}
            spent = {"air_ms": 2.0, "decode_ms": 3.0, "noise_seed": seed, "digest": digest(grey)}
            received.append({**row, **channel, **spent, "offset": place * grey.nbytes})
    for name, rows in (("frames", frames), ("received", received), ("clocks", []), ("events", [])):
        (fetched / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for device in spec.users:
        folder = fetched.with_name(f"t001-{device}")
        folder.mkdir()
        (folder / "pixels.bin").write_bytes(grey.tobytes() * len(frames))
    return work, fetched


def test_what_hosts_leave_of_a_trial_becomes_tables_and_pictures(
    left: tuple[Broadcasting, Path], target: Target
) -> None:
    work, fetched = left
    tables = work.read(fetched, "small-0001", "t001", 1000.0)
    write_manifest(target.folder, {"run": "small-0001", "started_unix": 1000.0, "state": "running"})
    records = RecordWriter(target.folder)
    for table, rows in tables.items():
        records.write(table, "t001", rows)
    work.begin(records)
    run = load_run(target.folder)
    assert run.schemes[["scheme", "plays", "model"]].astype(object).where(
        run.schemes.notna(), None
    ).to_numpy().tolist() == [
        ["fusion", "fusion", "fused"],
        ["webp (TD)", "time_division", None],
        ["TD", "time_division", "divided"],
    ]
    assert run.frames["frame"].tolist() == list(range(8))
    assert run.frames["t_send_s"].tolist() == list(range(8))
    assert run.frames["bandwidth_ratio"].round(4).tolist() == [0.1667] * 4 + [0.0833] * 4
    assert len(run.images) == 16
    source = work.sets["natural-32"].pixels[0, 0].astype(float)
    psnr_db = 10 * np.log10(255**2 / ((source - 100) ** 2).mean())
    assert run.images["psnr_db"].iloc[0] == pytest.approx(psnr_db)
    assert not run.images["on_paper"].any()
    shown = {path.name for path in (target.folder / "pictures").iterdir()}
    assert {"source-natural-32-0-1.png", "t001-2-1.png", "t001-2-2.png", "t001-6-1.png"} <= shown
    assert not fetched.with_name("t001-strong").exists()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            lambda f: (f.with_name("t001-weak") / "pixels.bin").write_bytes(b""),
            "weak: frame 0: its image is not among",
        ),
        (
            lambda f: (f.with_name("t001-weak") / "pixels.bin").write_bytes(bytes(8 * 3072)),
            "weak: frame 0: its image is not the one that was decoded",
        ),
        (
            lambda f: (f.with_name("t001-weak") / "pixels.bin").unlink(),
            "pixels.bin: the decoded images cannot be read",
        ),
        (lambda f: (f / "frames.jsonl").write_text(""), "8 frames in order were expected"),
        (lambda f: (f / "received.jsonl").write_text(""), "one row for each of 8 frames and 2 users"),
        (lambda f: (f / "received.jsonl").unlink(), "received.jsonl: cannot be read"),
        (
            lambda f: (f / "received.jsonl").write_text(
                (f / "received.jsonl").read_text().replace('"weak"', '"other"')
            ),
            "other is not the device of the user that it stands by",
        ),
    ],
)
def test_a_trial_of_which_something_is_missing_is_refused(left, damage, problem) -> None:  # type: ignore[no-untyped-def]
    work, fetched = left
    damage(fetched)
    with pytest.raises(InputError, match=problem):
        work.read(fetched, "small-0001", "t001", 1000.0)
