"""The sections of a broadcast's report: each a list of blocks, each block from the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from testbed.records.run import Run
from testbed.report.blocks import Alert, Block, Gallery, Missing, Note, Section, Sheet
from testbed.report.broadcast.ablations import losses_of
from testbed.report.broadcast.examples import FOLDER, examples_of
from testbed.report.broadcast.facts import MEASURES, Facts
from testbed.report.broadcast.figures_ladders import ladder_pick, met_pick
from testbed.report.broadcast.figures_latency import latency_pick
from testbed.report.broadcast.figures_regions import ablation_pick, region_pick
from testbed.report.broadcast.ladders import Ladder, error_ladders, gap_ladders, snr_ladders
from testbed.report.broadcast.looks import Look
from testbed.report.broadcast.regions import Region
from testbed.report.broadcast.sentence import Tally, tallies_of
from testbed.report.broadcast.tables import (
    ablated_table,
    ablations_table,
    broadcast_trials_table,
    errors_table,
    latency_table,
    not_outside_table,
    panels_table,
    points_table,
    sendings_table,
    tally_table,
)
from testbed.report.broadcast.timing import latencies_of, sendings_of
from testbed.report.checks import clock_errors
from testbed.report.figures_power import IMAGES
from testbed.report.sections import energy_blocks, provenance_blocks, trial_alerts
from testbed.report.sections_links import links_section
from testbed.report.style import Device
from testbed.report.tables import clock_table

__all__ = ["BroadcastFound", "broadcast_sections", "lead_blocks"]

UNFOLDED = 24
MOST_ROWS = 1500
"""A table of more rows is left to `testbed export`."""
SHARE_NOTE = "At the share of user 1 that is nearest to one half."


@dataclass(frozen=True)
class BroadcastFound:
    """What was found in a run once, and is used in several places of the page.

    Attributes:
        energy: What ``run.energy()`` gave.
        facts: What was compared.
        regions: What :func:`testbed.report.broadcast.regions.regions_of` gave.
        looks: The look of each scheme.
        devices: The look of each device.
    """

    energy: pd.DataFrame
    facts: Facts
    regions: Sequence[Region]
    looks: Mapping[str, Look]
    devices: Mapping[str, Device]

    @property
    def colours(self) -> dict[str, str]:
        """Return the devices' colours."""
        return {name: device.colour for name, device in self.devices.items()}

    @property
    def subject(self) -> str:
        """Return the name of the scheme that the report asks about."""
        return self.facts.subject.name if self.facts.subject else ""


def lead_blocks(found: BroadcastFound) -> list[Block]:
    """Return the blocks of the first screen: the regions, and where the subject stands.

    Args:
        found: What was found.
    """
    drawn = region_pick(found.facts, found.regions, found.looks)
    if drawn is None:
        return [Missing("No trial with two users was completed, so no region can be drawn.")]
    tallies = tallies_of(found.facts, found.regions)
    if not tallies:
        return [drawn, Missing("There is no other scheme whose region could be held against it.")]
    note = (
        f"Swept points of {found.subject} in every scenario, set and bandwidth ratio, by PSNR. Margin: how much both "
        "users have more than the other scheme’s region gives them. Open: no difference was found. Past: beyond the "
        "last share that the other was swept at, so not judged. Points that are not outside are listed below."
    )
    return [drawn, Sheet(tally_table(tallies, found.looks, found.subject)), Note(note)]


def broadcast_sections(run: Run, found: BroadcastFound) -> list[Section]:
    """Return the sections below the first screen.

    Args:
        run: The run.
        found: What was found in it.
    """
    facts = found.facts
    order = [(p, s) for s in facts.scenarios for p in facts.schemes if _ran(run, p, s)]
    energy = energy_blocks(
        run, found.energy, _with_energy(found.energy, order), found.devices, item=IMAGES, compared="scheme"
    )
    return [
        Section("regions", "Performance regions", "regions", _regions(found)),
        Section("snr", "Against the SNR", "SNR", _snr(found)),
        Section("csi", "Error of the channel estimate", "CSI error", _csi(found)),
        Section("ablations", "Ablations", "ablations", _ablations(found)),
        Section("examples", "Example images", "images", _examples(run, found)),
        Section("latency", "Latency of an image", "latency", _latency(run, found)),
        Section("energy", "Power and energy", "energy", energy),
        *([] if run.manifest.get("simulated") else [links_section(run, found.devices)]),
        Section("trials", "Trials", "trials", _trials(run, facts)),
        Section("fleet", "Fleet and provenance", "fleet", provenance_blocks(run, found.devices)),
    ]


def _ran(run: Run, scheme: str, scenario: str) -> bool:
    done = run.completed
    return bool(((done["policy"] == scheme) & (done["scenario"] == scenario)).any())


def _with_energy(energy: pd.DataFrame, order: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the schemes and scenarios that were on air: what is computed on paper takes no board's energy."""
    known = set(zip(energy["policy"], energy["scenario"], strict=True))
    return [pair for pair in order if pair in known]


def _regions(found: BroadcastFound) -> list[Block]:
    facts, regions = found.facts, found.regions
    if not regions:
        return [Missing("No trial was completed.")]
    blocks: list[Block] = [
        Note(
            "A region is what lies below and to the left of the swept points and of the lines between any two of them "
            "(two shares can take turns from frame to frame). The margin of a point is how much both users have more "
            "than the other scheme’s region gives them: above 0 it lies outside. Beyond the last share that a scheme "
            "was swept at nothing is known of it, so points past that are not judged. All schemes have the same "
            "complex symbols and the same power; bits told beside them, headers of codecs included, are counted."
        )
    ]
    if len(facts.users) > 2:
        blocks.append(Note("Regions are of users 1 and 2; the table has every user."))
    table = not_outside_table(facts, regions)
    learned = [scheme.name for scheme in facts.baselines if scheme.learned]
    if table.rows:
        blocks.append(Sheet(table, folded=len(table.rows) > UNFOLDED))
    elif learned and tallies_of(facts, regions):
        titles = ", ".join(measure.title for measure in MEASURES if _measured(regions, measure.column))
        blocks.append(
            Note(f"By {titles}, {found.subject} is outside {' and '.join(learned)} at every swept point.")
        )
    blocks += _by_measure(found)
    if facts.baselines and tallies_of(facts, regions):
        blocks.append(Sheet(panels_table(facts, regions)))
    points = points_table(facts, regions)
    if len(points.rows) <= MOST_ROWS:
        blocks.append(Sheet(points, folded=True))
    else:
        blocks.append(
            Note(
                f"The table of all {len(points.rows):,} swept points is too long for a page: `testbed export`."
            )
        )
    blocks.append(Note(_statistics(found)))
    return blocks


def _by_measure(found: BroadcastFound) -> list[Block]:
    """Say how the counts change where another measure judges."""
    texts = []
    for measure in MEASURES[1:]:
        tallies = tallies_of(found.facts, found.regions, measure.column)
        if tallies:
            texts.append(f"by {measure.title}: {', '.join(_counted(tally) for tally in tallies)}")
    return [Note(f"Points outside, {'; '.join(texts)}.")] if texts else []


def _counted(tally: Tally) -> str:
    return f"{tally.baseline.name} {tally.count('outside')} of {tally.judged}"


def _measured(regions: Sequence[Region], column: str) -> bool:
    return any(region.measure.column == column for region in regions)


def _statistics(found: BroadcastFound) -> str:
    paper = found.facts.images.groupby("scheme", sort=False)["on_paper"].all()
    names = [str(name) for name, only in paper.items() if only]
    text = (
        "PSNR is over all 8-bit values of an image, and a mean is the mean of the images’ PSNR. Intervals: a bootstrap "
        "over pairs of images (each with all its repeats, which draw its noise and fading anew; of one pair, over the "
        "repeats) and over training seeds, widened to Student’s interval for how few there are, and added; schemes met "
        "the same images, noise and fading, and are resampled together. Each interval holds for itself, not all of "
        "them together."
    )
    return text + (f" On paper: {', '.join(names)}." if names else "")


def _snr(found: BroadcastFound) -> list[Block]:
    facts = found.facts
    blocks: list[Block] = []
    ladders = snr_ladders(facts.scenarios)
    joined = bool(ladders)
    if not ladders:
        named = [s.name for s in facts.scenarios.values() if s.fading == "none" and s.snr_db]
        still = {float(place): name for place, name in enumerate(named)}
        ladders = [Ladder("all without fading", still)] if len(still) > 1 else []
    drawn = ladder_pick(
        "snr-ladder",
        "PSNR against SNR",
        f"{SHARE_NOTE} Scenarios of equal gap between the users. Bars: 95 % intervals for comparing schemes. Open "
        "marks: some images could not be decoded."
        if joined
        else f"{SHARE_NOTE} No two scenarios differ in the SNR alone, so points are not joined: the other user’s SNR "
        "differs too.",
        facts,
        found.regions,
        found.looks,
        ladders,
        lambda _, scenario, user: scenario.snr_db[user],
        lambda user: f"SNR of user {user} (dB)",
        joined=joined,
    )
    if drawn is not None:
        blocks.append(drawn)
    met = met_pick(facts, found.looks)
    if met is not None:
        blocks.append(met)
    gap = ladder_pick(
        "gap-ladder",
        "Effect of the gap between the users",
        f"{SHARE_NOTE} Scenarios that differ in the gap alone.",
        facts,
        found.regions,
        found.looks,
        gap_ladders(facts.scenarios),
        lambda rung, *_: rung.at,
        lambda _: "SNR of user 1 less that of user 2 (dB)",
    )
    if gap is not None:
        blocks.append(gap)
    return blocks or [
        Missing("There is one SNR only in this campaign: two scenarios that differ in it are needed.")
    ]


def _csi(found: BroadcastFound) -> list[Block]:
    drawn = ladder_pick(
        "csi-ladder",
        "",
        "Against the scenario of the least error, frame by frame, in the mean over the swept shares. The error is the "
        "variance of what the estimate of a channel’s gain is off by; the fades and the noise are the same. Bars: 95 % "
        "intervals.",
        found.facts,
        found.regions,
        found.looks,
        error_ladders(found.facts.scenarios),
        lambda rung, *_: rung.at,
        lambda _: "variance of the error of the estimate",
        changes=True,
    )
    if drawn is None:
        return [Missing("No two scenarios of this campaign differ in `csi_error` alone.")]
    table = errors_table(found.facts, found.regions)
    return [drawn, *([Sheet(table, folded=len(table.rows) > UNFOLDED)] if table.rows else [])]


def _ablations(found: BroadcastFound) -> list[Block]:
    losses = losses_of(found.facts, found.regions)
    drawn = ablation_pick(found.facts, losses)
    if drawn is None:
        return [Missing("This campaign has no ablation that was played beside the scheme that it is one of.")]
    table = ablations_table(losses)
    margins = ablated_table(found.facts, found.regions)
    return [drawn, Sheet(margins), Sheet(table, folded=len(table.rows) > UNFOLDED)]


def _examples(run: Run, found: BroadcastFound) -> list[Block]:
    shown, left_out = examples_of(run, found.facts)
    if not shown:
        return [Missing("No example picture was kept in this run.")]
    blocks: list[Block] = [
        Note(
            "The first pair of a set, at the share nearest to one half, in the first repeat; as decoded, without loss. "
            f"The files are in the run’s folder `{FOLDER}`."
        )
    ]
    blocks += [
        Gallery(f"examples-{place}", example.title, example.strips, folded=place > 0)
        for place, example in enumerate(shown)
    ]
    if left_out:
        blocks.append(Note(f"Not embedded, so that the page stays small: {'; '.join(left_out)}."))
    return blocks


def _latency(run: Run, found: BroadcastFound) -> list[Block]:
    if run.manifest.get("simulated"):
        return [Missing("A simulated run has no latency: nothing was sent.")]
    rows, sendings = latencies_of(found.facts), sendings_of(found.facts)
    drawn = latency_pick(rows, found.devices)
    if drawn is None:
        return [Missing("No image that was sent has all its times.")]
    blocks: list[Block] = [
        drawn,
        Sheet(latency_table(rows, found.colours), folded=len(rows) > UNFOLDED),
        Sheet(sendings_table(sendings), folded=len(sendings) > UNFOLDED),
    ]
    errors = clock_errors(run)
    if not errors:
        return [*blocks, Alert("No clock was estimated: the split into air and decoding is void.", "clocks")]
    text = "A clock error moves time between air and decoding of a device; the sums do not depend on it."
    return [*blocks, Note(text, "clocks"), Sheet(clock_table(errors, found.colours))]


def _trials(run: Run, facts: Facts) -> list[Block]:
    blocks = trial_alerts(run)
    if run.trials.empty:
        return [*blocks, Missing("No trial was recorded.")]
    return [*blocks, Sheet(broadcast_trials_table(run, facts), folded=len(run.trials) > 12)]
