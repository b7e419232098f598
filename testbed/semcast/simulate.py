"""A broadcast campaign without a rack: every trial played on the processors at hand, a folder like that of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.campaigns.trials import Trial, trials_of
from testbed.errors import InputError
from testbed.records import RecordWriter, Run, load_run
from testbed.semcast.models import models_of
from testbed.semcast.pairs import sets_of
from testbed.semcast.play import PlayedTrial, Stage, play_trial, stage_of
from testbed.semcast.rows import scheme_rows
from testbed.semcast.target import BroadcastTarget
from testbed.semcast.written import PICTURES, described, write_sources, write_trial
from testbed.simulate.processes import each_of
from testbed.simulate.recorded import manifest_of, recorded

__all__ = ["PlayedCampaign", "Same", "play_campaign", "same_images"]

_stage: list[Stage] = []


@dataclass(frozen=True)
class Same:
    """How many images of a run are those that were played here.

    Attributes:
        run: The run.
        equal: How many are the same, byte for byte.
        compared: How many both have: the same trial, frame and user, and the same noise.
        differs: What of the campaign file was otherwise in that run.
    """

    run: str
    equal: int
    compared: int
    differs: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "run": self.run,
            "equal": self.equal,
            "compared": self.compared,
            "differs": list(self.differs),
        }


@dataclass(frozen=True)
class PlayedCampaign:
    """How a simulation of a broadcast ended.

    Attributes:
        run: Its name.
        folder: Its folder.
        report: The report's path.
        trials: How many trials it has.
        frames: How many frames were sent in them.
        seconds: How long it took.
        same: The run that it was compared with.
    """

    run: str
    folder: Path
    report: Path
    trials: int
    frames: int
    seconds: float
    same: Same | None

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "run": self.run,
            "folder": str(self.folder),
            "report": str(self.report),
            "trials": self.trials,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "predicts": self.same.as_json() if self.same else None,
        }

    def as_text(self) -> str:
        """Return the outcome for people."""
        lines = [f"{self.run}: {self.trials} trials, {self.frames:,} frames, played in {self.seconds:.1f} s"]
        if self.same is not None:
            lines.append(
                f"{self.same.equal:,} of {self.same.compared:,} images that the devices of {self.same.run} decoded "
                "are the same, byte for byte"
            )
            if self.same.differs:
                lines.append(
                    f"the campaign is not as in {self.same.run}: {', '.join(self.same.differs)} differ"
                )
        lines.append(f"report: {self.report}")
        return "\n".join(lines)


def play_campaign(wanted: BroadcastTarget, *, jobs: int, say: Callable[[str], None]) -> PlayedCampaign:
    """Play a campaign and write it as a run.

    Args:
        wanted: What is to be played.
        jobs: How many processes work on it; the tables do not depend on that.
        say: Told how far it is.

    Raises:
        InputError: Images or a model cannot be read.
    """
    from testbed.report import write_report

    campaign = wanted.campaign
    folder, all_trials = wanted.folder, trials_of(campaign)
    name = folder.name
    sets, models = sets_of(campaign.images, len(campaign.users)), models_of(campaign)
    stage = stage_of(campaign, name, sets, models)
    manifest = {
        **manifest_of(name, campaign, wanted.inventory, wanted.command, wanted.predicts),
        **described(models, sets),
        "simulation": {
            "repeats": campaign.repeats,
            **({"differs": list(wanted.differs)} if wanted.differs else {}),
        },
    }
    manifest["files"] = {**manifest["files"], **wanted.files}
    whole = _whole(wanted, manifest)
    trials = [trial for trial in all_trials if trial.name not in whole]

    def write_trials(records: RecordWriter) -> Iterator[None]:
        records.write("schemes", "campaign", scheme_rows(campaign, models))
        write_sources(folder / PICTURES, sets, stage.spec.blocks, stage.shown)
        for trial, played in zip(trials, _played(stage, trials, jobs), strict=True):
            write_trial(trial, played, records, 0.0, 0.0)  # no clock runs: nothing was on air
            yield

    try:
        run, seconds = recorded(
            folder,
            manifest,
            write_trials,
            lambda done: say(f"{len(whole) + done} of {len(all_trials)} trials"),
        )
    except InputError as error:
        error.hint = error.hint or f"mend the cause, then: testbed simulate --resume {folder}"
        raise
    same = same_images(run, wanted.predicts, wanted.differs) if wanted.predicts is not None else None
    report = write_report(run, folder / "report.html")
    return PlayedCampaign(name, folder, report, len(all_trials), len(run.frames), seconds, same)


def _whole(wanted: BroadcastTarget, manifest: Mapping[str, Any]) -> set[str]:
    """Return the trials that are whole, of a simulation that goes on.

    Raises:
        InputError: Models or images are not as they were.
    """
    if not wanted.goes_on:
        return set()
    run = load_run(wanted.folder)
    for key in ("models", "images"):
        if run.manifest[key] != manifest[key]:
            raise InputError(
                f"the {key} have changed since {run.name} was started", hint="start a new simulation"
            )
    return {str(name) for name in run.completed["trial"]}


def same_images(ours: Run, theirs: Run, differs: Sequence[str] = ()) -> Same:
    """Return how many images of two runs are the same.

    Args:
        ours: What was played here.
        theirs: A run of the rack.
        differs: What of the campaign file was otherwise in that run.
    """
    key = ["policy", "scenario", "repeat", "frame", "user", "noise_seed"]
    sides = []
    for run in (ours, theirs):
        decoded = run.images[~run.images["on_paper"]]
        trials = run.completed[["trial", "policy", "scenario", "repeat"]]
        sides.append(decoded.merge(trials, on="trial")[[*key, "digest"]])
    both = sides[0].merge(sides[1], on=key, suffixes=("", "_theirs"))
    return Same(theirs.name, int((both["digest"] == both["digest_theirs"]).sum()), len(both), differs)


def _played(stage: Stage, trials: Sequence[Trial], jobs: int) -> Iterator[PlayedTrial]:
    """Yield what came of each trial, in order."""
    if jobs <= 1 or len(trials) == 1:
        for trial in trials:
            yield play_trial(stage, trial)
        return
    yield from each_of(_play, trials, min(jobs, len(trials)), _take, stage)


def _take(stage: Stage) -> None:
    _stage[:] = [stage]


def _play(trial: Trial) -> PlayedTrial:
    return play_trial(_stage[0], trial)
