"""A broadcast campaign played on this machine: its tables, and what does not depend on who plays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from testbed.campaigns.trials import trials_of
from testbed.cli.main import app
from testbed.errors import InputError, RefusedError
from testbed.records import Run, load_run, write_manifest
from testbed.records.lock import locked
from testbed.semcast.models import models_of
from testbed.semcast.pairs import sets_of
from testbed.semcast.play import play_trial, stage_of
from testbed.semcast.simulate import PlayedCampaign, same_images
from testbed.semcast.target import BroadcastTarget
from testbed.simulate.session import dry_run, execute, resumed_target, target
from tests.semcast.campaign_files import LINKS, write_campaign, write_model


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> BroadcastTarget:
    folder = tmp_path_factory.mktemp("campaign")
    found = target(write_campaign(folder, repeats=1), folder / "results", command="testbed simulate")
    assert isinstance(found, BroadcastTarget)
    return found


@pytest.fixture(scope="module")
def played(wanted: BroadcastTarget) -> PlayedCampaign:
    said: list[str] = []
    done = execute(wanted, jobs=2, say=said.append)
    assert said[-1] == "6 of 6 trials"
    assert isinstance(done, PlayedCampaign)
    return done


@pytest.fixture(scope="module")
def run(played: PlayedCampaign) -> Run:
    return load_run(played.folder)


def test_every_scheme_sends_the_same_blocks_over_the_same_channels(run: Run) -> None:
    assert run.trials["state"].eq("completed").all()
    assert run.manifest["workload"] == "broadcast"
    frames = run.frames.merge(run.trials[["trial", "policy", "scenario"]], on="trial")
    conditions = ["set", "pair", "bandwidth_ratio", "share"]
    blocks = [group[conditions].to_numpy().tolist() for _, group in frames.groupby("trial")]
    assert len(blocks) == 6
    assert all(one == blocks[0] for one in blocks)
    images = run.images.merge(run.trials[["trial", "policy", "scenario"]], on="trial")
    for _, same in images.groupby(["scenario", "frame", "user"]):
        assert len(same) == 3
        assert same["noise_seed"].nunique() == same["gain_db"].round(4).nunique() == 1
        assert same["digest"].nunique() > 1
    # Shares meet the same fades too, or a region would be drawn by luck: two pairs, two users.
    faded = images[images["scenario"] == "fading"]
    assert faded["frame"].nunique() == 8
    assert faded["gain_db"].round(4).nunique() == 4


def test_rivals_are_on_paper_and_have_the_symbols_of_the_side_information(run: Run) -> None:
    images = run.images.merge(run.trials[["trial", "policy"]], on="trial")
    assert set(images.loc[images["on_paper"], "policy"]) == {"webp (TD)"}
    learned = images[~images["on_paper"]]
    assert learned["measured_snr_db"].notna().all()
    assert images.loc[images["on_paper"], "measured_snr_db"].isna().all()
    frames = run.frames.merge(run.trials[["trial", "policy"]], on="trial").set_index("policy")
    assert set(frames.loc["fusion", "symbols"]) == {512, 256}
    # 16 bits at log2(1 + 10 ** 0.1) bits a symbol.
    assert set(frames.loc["webp (TD)", "symbols"]) == {512 + 14, 256 + 14}
    assert set(frames.loc["webp (TD)", "side_bits"]) == {0}


def test_a_trial_does_not_depend_on_who_plays_it(wanted: BroadcastTarget, run: Run) -> None:
    campaign = wanted.campaign
    sets, models = sets_of(campaign.images, 2), models_of(campaign)
    stage = stage_of(campaign, "again", sets, models)
    for trial in trials_of(campaign)[:1] + trials_of(campaign)[-1:]:
        again = play_trial(stage, trial)
        kept = run.images[run.images["trial"] == trial.name]
        assert [row["digest"] for row in again.images] == kept["digest"].tolist()
        assert [row["psnr_db"] for row in again.images] == kept["psnr_db"].tolist()


def test_pictures_are_kept_of_what_is_shown(played: PlayedCampaign) -> None:
    names = {path.name for path in (played.folder / "pictures").iterdir()}
    trials = [f"t{n:03d}-{block}-{user}.png" for n in range(1, 7) for block in (2, 6) for user in (1, 2)]
    assert names == {*trials, "source-natural-32-0-1.png", "source-natural-32-0-2.png"}


def test_images_are_compared_byte_for_byte_where_the_noise_is_the_same(run: Run) -> None:
    same = same_images(run, run)
    assert (same.equal, same.compared) == (64, 64)
    assert load_run(run.path).images.groupby("on_paper").size().to_dict() == {False: 64, True: 32}


def test_the_dry_run_counts_the_frames(wanted: BroadcastTarget) -> None:
    plan = dry_run(wanted)
    assert (plan["trials"], plan["frames"]) == (6, 6 * 8)
    assert plan["models"] == ["fused", "divided"]


def test_what_a_broadcast_has_not_is_refused(wanted: BroadcastTarget, tmp_path: Path, run: Run) -> None:
    file = write_campaign(tmp_path)
    with pytest.raises(InputError, match="--batch-tokens: a broadcast has no latency model and no tokens"):
        target(file, tmp_path, batch_tokens=8)
    with pytest.raises(InputError, match="is simulated itself"):
        target(file, run.path.parent, run=run.path.name)
    many = write_campaign(tmp_path, images=[{"set": "natural-32", "pairs": 49}])
    with pytest.raises(
        InputError, match=r"run\.yaml:\d+: images\[0\]: natural-32: 49 pairs for 2 users"
    ) as caught:
        target(many, tmp_path)
    assert caught.value.hint == "ask for 48 pairs at most"


def test_a_run_of_other_frames_is_not_compared(wanted: BroadcastTarget, run: Run, tmp_path: Path) -> None:
    measured = tmp_path / "measured"
    shutil.copytree(run.path, measured)
    write_manifest(measured, {**run.manifest, "simulated": False})
    found = target(write_campaign(tmp_path, repeats=1), tmp_path, run="measured")
    assert isinstance(found, BroadcastTarget)
    assert found.differs == []
    with pytest.raises(InputError, match="sent other frames: its campaign file differs in seed, shares"):
        target(write_campaign(tmp_path, seed=4, shares=[0.5]), tmp_path, run="measured")
    scenarios = [{"name": "10-1", "snr_db": [11, 1], "links": LINKS}]
    found = target(write_campaign(tmp_path, repeats=1, scenarios=scenarios), tmp_path, run="measured")
    assert isinstance(found, BroadcastTarget)
    assert found.differs == ["the scenario 10-1"]


def test_two_controllers_do_not_write_one_simulation(tmp_path: Path) -> None:
    found = target(write_campaign(tmp_path), tmp_path / "results")
    assert isinstance(found, BroadcastTarget)
    with locked(found.folder), pytest.raises(RefusedError, match="is being run by another testbed"):
        execute(found, jobs=1, say=print)
    assert not found.folder.exists()


def test_ctrl_c_says_how_a_simulation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("testbed.semcast.simulate.write_trial", stop)
    file, results = write_campaign(tmp_path, repeats=1), tmp_path / "results"
    answer = CliRunner().invoke(app, ["simulate", str(file), "--results", str(results), "--jobs", "1"])
    assert answer.exit_code == 130
    assert f"testbed simulate --resume {results / 'sim-small-0001'}" in answer.stderr


def test_a_simulation_that_was_cut_off_goes_on_with_what_is_left(tmp_path: Path) -> None:
    file = write_campaign(
        tmp_path, bandwidth_ratios=["1/6"], shares=[0.5], images=[{"set": "natural-32", "pairs": 1}]
    )
    found = target(file, tmp_path / "results", command="testbed simulate", repeats=1)

    def stop(text: str) -> None:
        if text.startswith("2 of 6"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(found, jobs=1, say=stop)
    (folder,) = (tmp_path / "results").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("tables/images/*")}
    assert load_run(folder).manifest["state"] == "interrupted"
    assert len(before) == 2
    said: list[str] = []
    done = execute(resumed_target(tmp_path / "results", folder.name), jobs=1, say=said.append)
    assert said == [f"{number} of 6 trials" for number in (3, 4, 5, 6)]
    assert done.folder == folder
    assert len(load_run(folder).completed) == 6
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(InputError, match="is complete"):
        resumed_target(tmp_path / "results", folder.name)


def test_three_users_are_served_as_two_are(tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "three", users=3)
    file = write_campaign(
        tmp_path,
        users=["strong", "other", "weak"],
        images=[{"set": "natural-32", "pairs": 1}],
        bandwidth_ratios=["1/6"],
        shares=[[0.5, 0.3, 0.2]],
        schemes=[
            {"name": "fusion", "kind": "learned", "models": ["models/three"]},
            {"name": "webp", "kind": "digital", "codec": "webp", "sharing": "superposition"},
        ],
        scenarios=[{"name": "all", "snr_db": [12, 8, 1], "links": LINKS}],
    )
    found = target(file, tmp_path / "results")
    assert isinstance(found, BroadcastTarget)
    campaign = found.campaign
    stage = stage_of(campaign, "three", sets_of(campaign.images, 3), models_of(campaign))
    for trial in trials_of(campaign)[::2]:
        played = play_trial(stage, trial)
        assert [row["share"] for row in played.frames] == [0.5]
        assert [(row["user"], row["snr_db"]) for row in played.images] == [(1, 12), (2, 8), (3, 1)]
        assert len({row["image"] for row in played.images}) == 3
