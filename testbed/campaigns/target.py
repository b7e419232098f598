"""What is to be run, what that would do, and how it ended: plain data.

A run has quality passes and trials; an evaluation has quality passes only.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.campaigns.passes import Pass, passes_of
from testbed.campaigns.phases import Phase, phase_lines, phases_json
from testbed.campaigns.prepare import Probed
from testbed.campaigns.serving import Serving
from testbed.campaigns.trials import Trial, trials_of
from testbed.config.broadcast import BroadcastCampaign
from testbed.config.campaign import Campaign
from testbed.config.inventory import Inventory
from testbed.config.workloads import AnyCampaign

__all__ = ["Evaluation", "Finished", "Plan", "Target"]


@dataclass(frozen=True)
class Evaluation:
    """A run of quality passes only.

    Attributes:
        policies: The policies that are rated; all where it is empty.
        scenarios: The scenarios that they are rated in; all where it is empty.
    """

    policies: tuple[str, ...] = ()
    scenarios: tuple[str, ...] = ()

    def as_json(self) -> dict[str, list[str]]:
        """Return it as a manifest holds it."""
        return {"policies": list(self.policies), "scenarios": list(self.scenarios)}


@dataclass(frozen=True)
class Target:
    """What is to be run.

    Attributes:
        run: The run's name.
        folder: Its local folder.
        campaign_file: The campaign file.
        inventory_file: The inventory file.
        campaign: The campaign.
        inventory: The fleet.
        limit: The devices that the run is limited to; all where it is empty.
        resumed: Whether the run was started before.
        evaluation: What is rated, where the run has quality passes only; None where it has trials too.
        serving: How the campaign is served, where the run does nothing else.
    """

    run: str
    folder: Path
    campaign_file: Path
    inventory_file: Path
    campaign: AnyCampaign
    inventory: Inventory
    limit: tuple[str, ...] = ()
    resumed: bool = False
    evaluation: Evaluation | None = None
    serving: Serving | None = None

    @property
    def passes(self) -> tuple[Pass, ...]:
        """All quality passes of the run, in order."""
        if self.serving is not None or not isinstance(self.campaign, Campaign):
            return ()
        asked = self.evaluation or Evaluation()
        return passes_of(self.campaign, asked.policies, asked.scenarios)

    @property
    def trials(self) -> list[Trial]:
        """All trials of the run, in order."""
        if self.evaluation is not None:
            return []
        if self.serving is not None:
            return [self.serving.trial]
        return trials_of(self.campaign)

    def on_paper(self, trial: Trial) -> bool:
        """Return whether a trial is computed here and needs no rack, as those of rivals that send nothing."""
        campaign = self.campaign
        return isinstance(campaign, BroadcastCampaign) and campaign.scheme(trial.policy).kind != "learned"

    @property
    def command(self) -> str:
        """The command that makes such a run again."""
        verb = "run" if self.evaluation is None else "evaluate"
        if self.serving is not None:
            verb = "serve"
        words = ["testbed", verb, str(self.campaign_file), "--inventory", str(self.inventory_file)]
        asked = self.evaluation or Evaluation()
        options = {"--limit": self.limit, "--policy": asked.policies, "--scenario": asked.scenarios}
        for option, names in options.items():
            for name in names:
                words += [option, name]
        if self.serving is not None:
            words += self.serving.words
        return shlex.join(words)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        target: What is to be run.
        probed: What the hosts answered, or what was assumed of them.
        phases: The phases, the probe first.
    """

    target: Target
    probed: Probed
    phases: Sequence[Phase]

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "run": self.target.run,
            "trials": len(self.target.trials),
            "passes": [one.name for one in self.target.passes],
            "facts": self.probed.as_json(),
            "phases": phases_json(self.phases),
        }

    def as_text(self) -> str:
        """Return the plan for people: the facts that it rests on, then each phase's steps."""
        campaign = self.target.campaign
        names, plural = [name for group in campaign.compared for name in group], campaign.compared_are
        shape = f"{len(names)} {plural} x {len(campaign.scenarios)} scenarios x {campaign.repeats} repeats"
        what = f"{len(self.target.trials)} trials ({shape})"
        if self.target.serving is not None:
            what = f"serves {self.target.serving.as_text()}"
        elif self.target.evaluation is not None:
            what = _counted(len(self.target.passes), "quality pass", "quality passes")
        lines = [f"run {self.target.run}: {what}, nothing is changed", "", "facts"]
        lines += [f"  {line}" for line in self.probed.as_lines()]
        lines += phase_lines(self.phases)
        return "\n".join(lines)


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes:
        run: The run's name.
        folder: Its folder.
        report: The report's path.
        completed: How many trials of the campaign are whole, earlier starts included.
        planned: How many trials the campaign has.
        failed: What each failed trial said.
        stopped: What else went wrong, or an empty string.
        passes: How many quality passes the run has, all of them whole; None where it has trials too.
        resumable: Whether a run that was cut off goes on where it was.
    """

    run: str
    folder: Path
    report: Path
    completed: int
    planned: int
    failed: dict[str, str]
    stopped: str
    passes: int | None = None
    resumable: bool = True

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return {
            "run": self.run,
            "folder": str(self.folder),
            "report": str(self.report),
            "completed": self.completed,
            "planned": self.planned,
            "failed": self.failed,
            "stopped": self.stopped,
            **({} if self.passes is None else {"passes": self.passes}),
        }

    def as_text(self) -> str:
        """Return the outcome for people."""
        lines = [f"{self.run}: {self.completed} of {self.planned} trials completed"]
        if self.passes is not None:
            whole = _counted(self.passes, "quality pass", "quality passes")
            lines = [f"{self.run}: {whole} completed"]
        lines += [f"  {trial} failed: {error}" for trial, error in self.failed.items()]
        if self.stopped:
            lines.append(f"  {self.stopped}")
        if self.completed < self.planned and self.resumable:
            lines.append(f"  the others: testbed run --resume {self.folder}")
        lines.append(f"report: {self.report}")
        return "\n".join(lines)


def _counted(count: int, one: str, several: str) -> str:
    """Return a count with its noun."""
    return f"{count} {one if count == 1 else several}"
