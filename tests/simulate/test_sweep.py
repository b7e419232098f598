"""Sweeps: the points of a file, the same tables from processes and from a Dask cluster, and going on after a cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from testbed.cli.main import app
from testbed.config.sweep import changed, load_sweep, points_of
from testbed.config.yaml import read_yaml
from testbed.errors import InputError, TestbedError
from testbed.simulate.sweep import SweepRun, Swept, check_points, new_sweep, resumed_sweep, run_sweep
from testbed.simulate.workers import cluster_workers, local_workers

ROOT = Path(__file__).parents[2]

SWEEP = """
sweep: small
campaign: campaign.yaml
batch_tokens: 20
vary:
  tau: {set: policies.ours.selection.tau, to: [1.0, 0.8]}
  snr: {set: [scenarios.*.channel.devices.default.snr_db], to: [5, 20]}
  boards: {devices: [3, 10]}
"""

#: Where the numbers do not matter: two points of two repeats each.
FEW = SWEEP.replace("[5, 20]", "[5]").replace("[3, 10]", "[3]")

CAMPAIGN = """
campaign: small
inventory: inventory.yaml
model: mixtral-8x7b-shape
seed: 3
repeats: 2
prompts: {file: prompts.jsonl, max_new_tokens: 2, warmup: 0}
policies:
  - {name: top-2, selection: {kind: top_k, k: 2}}
  - {name: ours, selection: {kind: budget, tau: 0.9}, bandwidth: {kind: minmax}}
scenarios:
  - name: fading
    channel: {model: shannon, bandwidth_mhz: 20, coherence_ms: 50, duration_s: 2, devices: {default: {snr_db: 10}}}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    (tmp_path / "prompts.jsonl").write_text('{"id": "p1", "text": "one"}\n')
    boards = "\n".join(
        f"  d{n}: {{role: device, address: 10.0.0.{n + 2}, board: jetson-agx-orin-64gb}}" for n in range(4)
    )
    (tmp_path / "inventory.yaml").write_text(
        f"lab: small\nhosts:\n  bs: {{role: base_station, address: 10.0.0.1}}\n{boards}\n"
    )
    return tmp_path


def test_points_are_every_combination_and_change_what_they_name(files: Path) -> None:
    sweep = load_sweep(files / "sweep.yaml")
    points = points_of(sweep)
    assert len(points) == 8
    assert points[1].values == {"tau": 1.0, "snr": 5, "boards": 10}
    campaign = changed(sweep, points[6], read_yaml(files / "campaign.yaml"))
    assert campaign.policy("ours").selection.settings()["tau"] == 0.8
    assert campaign.policy("top-2").selection.settings() == {"kind": "top_k", "k": 2}
    channel = campaign.scenario("fading").channel
    assert channel is not None
    assert channel.devices["default"].snr_db == 20


def test_what_is_no_calibration_is_named_before_anything_is_simulated(files: Path) -> None:
    text = CAMPAIGN + "latency: {calibration: prompts.jsonl}\n"
    (files / "campaign.yaml").write_text(text)
    with pytest.raises(InputError, match=r"prompts\.jsonl: a calibration was expected"):
        check_points(new_sweep(files / "sweep.yaml", load_sweep(files / "sweep.yaml"), files))


def _simulated(files: Path) -> pd.DataFrame:
    run = new_sweep(files / "sweep.yaml", load_sweep(files / "sweep.yaml"), files)
    with ThreadPoolExecutor(1) as executor:
        return run_sweep(run, executor, in_flight=1, say=lambda _: None).table


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "policies.ours.",
            "policies.theirs.",
            "sweep.yaml:6: vary.tau.set: .* has nothing that policies.theirs",
        ),
        ("to: [1.0, 0.8]", "to: [1.0, 7]", r"point 4 \(tau = 7, snr = 5, boards = 3\).*tau"),
        (
            "campaign: campaign.yaml",
            "campaign: nope.yaml",
            "sweep.yaml:3: campaign: .*nope.yaml cannot be read",
        ),
        ("boards:", "trial:", "a name of letters, digits and _ that is none of"),
        (
            "{devices: [3, 10]}",
            "{devices: [3], to: [1]}",
            "sweep.yaml:8: vary.boards: either `set` and `to` were expected, or `devices`",
        ),
        (
            "{set: policies.ours.selection.tau, to: [1.0, 0.8]}",
            "{set: [seed, repeats], to: [x]}",
            "2 mistakes",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_is_simulated(
    files: Path, old: str, new: str, problem: str
) -> None:
    (files / "sweep.yaml").write_text(SWEEP.replace(old, new))
    with pytest.raises(InputError, match=problem):
        _simulated(files)
    shown = CliRunner().invoke(
        app, ["sweep", str(files / "sweep.yaml"), "--results", str(files), "--dry-run"]
    )
    assert isinstance(shown.exception, InputError)
    said = shown.exception.message.splitlines()
    assert len(set(said)) == len(said)
    assert not list(files.glob("sweep-small-*"))


@pytest.mark.parametrize(
    "file", sorted((ROOT / "campaigns").glob("sweep-*.yaml")), ids=lambda file: file.stem
)
def test_a_sweep_that_comes_with_testbed_has_no_mistake(file: Path, tmp_path: Path) -> None:
    check_points(new_sweep(file, load_sweep(file), tmp_path))


@pytest.fixture
def dask_address(tmp_path: Path) -> Iterator[str]:
    from distributed import LocalCluster

    with LocalCluster(
        local_directory=str(tmp_path / "dask"),
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        dashboard_address=None,
        host="127.0.0.1",
        protocol="tcp://",
    ) as cluster:
        yield cluster.scheduler_address


def test_processes_and_a_cluster_give_the_same_table(files: Path, dask_address: str) -> None:
    sweep = load_sweep(files / "sweep.yaml")
    tables = []
    with local_workers(2) as here:
        run = new_sweep(files / "sweep.yaml", sweep, files)
        tables.append(run_sweep(run, here.executor, in_flight=4, say=lambda _: None).table)
    with cluster_workers(dask_address) as there:
        run = new_sweep(files / "sweep.yaml", sweep, files)
        assert run.name == "sweep-small-0002"
        tables.append(run_sweep(run, there.executor, in_flight=4, say=lambda _: None).table)
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    texts = [(files / f"sweep-small-000{n}/sweep.csv").read_bytes() for n in (1, 2)]
    assert texts[0] == texts[1]
    table = tables[0]
    assert len(table) == 8 * 2 * 2
    # More signal, and more devices, make it faster; a budget of 1 drops nothing.
    means = table[table["policy"] == "top-2"].groupby(["boards", "snr"])["itl_ms"].mean()
    assert means[3, 20] < means[3, 5]
    ours = table[table["policy"] == "ours"]
    assert (ours[ours["tau"] == 1.0]["mass_kept"] == 1).all()
    assert (ours[ours["tau"] == 0.8]["mass_kept"] < 1).all()


class _Cut(ThreadPoolExecutor):
    """Fails after some units, as a machine that is switched off."""

    def __init__(self, after: int) -> None:
        super().__init__(1)
        self.left = after

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        self.left -= 1
        if self.left < 0:
            failed: Future[Any] = Future()
            failed.set_exception(ConnectionError("the worker is gone"))
            return failed
        return super().submit(*args, **kwargs)


def test_a_sweep_that_was_cut_off_goes_on_with_what_is_left(files: Path) -> None:
    (files / "sweep.yaml").write_text(FEW)
    expected = _simulated(files)
    cut = new_sweep(files / "sweep.yaml", load_sweep(files / "sweep.yaml"), files)
    with _Cut(3) as executor, pytest.raises(TestbedError, match="point 1 failed: ConnectionError"):
        run_sweep(cut, executor, in_flight=1, say=lambda _: None)
    assert not (cut.folder / "sweep.csv").exists()
    with ThreadPoolExecutor(1) as executor:
        rest = run_sweep(resumed_sweep(cut.folder), executor, in_flight=1, say=lambda _: None)
    assert (rest.simulated, rest.units) == (1, 4)
    pd.testing.assert_frame_equal(rest.table, expected, check_exact=True)
    (files / "campaign.yaml").write_text(CAMPAIGN.replace("seed: 3", "seed: 4"))
    with pytest.raises(InputError, match="the campaign file has changed since sweep-small-0002 was started"):
        resumed_sweep(cut.folder)


def test_the_command_shows_the_points_and_then_simulates_them(files: Path) -> None:
    command = ["sweep", str(files / "sweep.yaml"), "--results", str(files), "--json"]
    shown = CliRunner().invoke(app, [*command, "--dry-run"])
    assert len(json.loads(shown.stdout)["points"]) == 8
    assert not list(files.glob("sweep-small-*"))
    refused = CliRunner().invoke(app, [*command, "--jobs", "1", "--dask", "tcp://127.0.0.1:1"])
    assert isinstance(refused.exception, InputError)
    (files / "sweep.yaml").write_text(FEW)
    done = CliRunner().invoke(app, [*command, "--jobs", "1"])
    assert json.loads(done.stdout)["units"] == 4, done.stderr
    assert "4 of 4 repeats\n" in done.stderr  # in a pipe too


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1", "carrier-pigeon://home:1"])
def test_what_is_no_address_of_a_cluster_is_refused_at_once(files: Path, address: str) -> None:
    answer = CliRunner().invoke(
        app, ["sweep", str(files / "sweep.yaml"), "--results", str(files), "--dask", address]
    )
    assert isinstance(answer.exception, InputError)
    assert answer.exception.message.startswith("--dask: ")
    assert not list(files.glob("sweep-small-*"))


def test_ctrl_c_says_how_the_sweep_goes_on(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int, _of: int) -> None:
        if done:
            raise KeyboardInterrupt

    def stopped(run: SweepRun, executor: Executor, **options: Any) -> Swept:
        return run_sweep(run, executor, **{**options, "done": stop})

    monkeypatch.setattr("testbed.simulate.sweep.run_sweep", stopped)
    (files / "sweep.yaml").write_text(FEW)
    command = ["sweep", "--results", str(files), "--jobs", "1"]
    answer = CliRunner().invoke(app, [*command, str(files / "sweep.yaml")])
    assert answer.exit_code == 130
    assert f"testbed sweep --resume {files / 'sweep-small-0001'}" in answer.stderr
    monkeypatch.undo()
    rest = CliRunner().invoke(app, [*command, "--resume", "sweep-small-0001", "--json"])
    assert 0 < json.loads(rest.stdout)["simulated"] < 4


def test_a_batch_is_for_models_without_weights(files: Path) -> None:
    (files / "shape").mkdir()
    (files / "shape" / "config.json").write_bytes(
        (ROOT / "payloads/models/mixtral-8x7b-shape/config.json").read_bytes()
    )
    for name in ("model.safetensors", "tokenizer.json"):
        (files / "shape" / name).touch()
    text = (files / "campaign.yaml").read_text()
    (files / "campaign.yaml").write_text(text.replace("model: mixtral-8x7b-shape", "model: shape"))
    with pytest.raises(InputError, match=r"sweep\.yaml:4: batch_tokens: shape has weights"):
        _simulated(files)
