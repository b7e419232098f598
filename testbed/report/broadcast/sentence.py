"""The sentence at the top of a broadcast's report, written from the data: it claims no more than its intervals do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed.report.broadcast.facts import Facts, Panel, Scheme, ratio_name
from testbed.report.broadcast.ladders import middle
from testbed.report.broadcast.regions import Region, Standing
from testbed.report.numbers import plain

__all__ = ["Tally", "broadcast_headline", "broadcast_second_line", "margin_text", "tallies_of"]

GAP = "\N{NO-BREAK SPACE}"
NAMED = 4


@dataclass(frozen=True)
class Tally:
    """Where the subject stands against one baseline, counted over panels and shares, by PSNR.

    Attributes:
        baseline: The baseline.
        standings: Every standing, with its panel.
    """

    baseline: Scheme
    standings: Sequence[tuple[Panel, Standing]]

    def count(self, verdict: str) -> int:
        """Return how many points stand so."""
        return sum(standing.verdict == verdict for _, standing in self.standings)

    @property
    def judged(self) -> int:
        """Return how many points there are but for those past the baseline's end."""
        return len(self.standings) - self.count("past")

    @property
    def margins(self) -> tuple[float, float]:
        """Return the least and the greatest margin, of points that are not past the baseline's end."""
        values = [s.margin.value for _, s in self.standings if s.verdict != "past"]
        return (min(values), max(values)) if values else (float("nan"), float("nan"))


def tallies_of(facts: Facts, regions: Sequence[Region], measure: str = "psnr_db") -> list[Tally]:
    """Return the tally of each baseline, those of the same backbone first; none without a second user.

    Args:
        facts: What was compared.
        regions: What :func:`testbed.report.broadcast.regions.regions_of` gave.
        measure: The column of the measure.
    """
    found: Mapping[str, list[tuple[Panel, Standing]]] = {scheme.name: [] for scheme in facts.baselines}
    for region in regions:
        if region.measure.column == measure:
            for standing in region.standings:
                found[standing.baseline].append((region.panel, standing))
    return [Tally(scheme, found[scheme.name]) for scheme in facts.baselines if found[scheme.name]]


def broadcast_headline(facts: Facts, regions: Sequence[Region], where: str = "") -> str:
    """Return the sentence.

    Args:
        facts: What was compared.
        regions: The regions of all measures.
        where: What it ran on, such as "on 2 emulated boards".
    """
    tail = f", {where}" if where else ""
    subject, tallies = facts.subject, tallies_of(facts, regions)
    if subject is None or not any(subject.name in region.points for region in regions):
        return "No trial was completed, so there is nothing to report yet."
    if not tallies:
        return _alone(facts, subject, regions, tail)
    chosen = [tally for tally in tallies if tally.baseline.learned] or tallies[:2]
    if not any(standing.margin.known for tally in chosen for _, standing in tally.standings):
        return (
            f"{subject.name} was held against {_listed([t.baseline.name for t in chosen])} with one pair of images and "
            f"one repeat: that gives no interval, so this shows no difference yet{tail}."
        )
    texts = [f"of {tally.baseline.name} at {tally.count('outside')} of {tally.judged}" for tally in chosen]
    points = "swept point" if all(tally.judged == 1 for tally in chosen) else "swept points"
    texts[0] = f"{texts[0]} {points}"
    return (
        f"{subject.name} lies outside the region {_listed(texts)} (PSNR, 95{GAP}% intervals over "
        f"{_over(regions)}){tail}."
    )


def broadcast_second_line(facts: Facts, regions: Sequence[Region]) -> str:
    """Return what the sentence leaves out: where the subject is not outside, and how it stands against codecs.

    Args:
        facts: What was compared.
        regions: The regions of all measures.
    """
    tallies = tallies_of(facts, regions)
    learned = [tally for tally in tallies if tally.baseline.learned]
    parts = []
    for tally in learned:
        rest = [f"{tally.count(v)} {name}" for v, name in _NOT_OUTSIDE.items() if tally.count(v)]
        if rest:
            parts.append(f"{tally.baseline.name}: {_listed(rest)}")
    texts = [f"Not outside {'; '.join(parts)}."] if parts else []
    codecs = [tally for tally in tallies if not tally.baseline.learned]
    if codecs and learned:
        named = "; ".join(
            f"{tally.baseline.name} outside at {tally.count('outside')}, inside at {tally.count('inside')} "
            f"of {tally.judged}"
            for tally in codecs[:NAMED]
        )
        more = f"; {len(codecs) - NAMED} more below" if len(codecs) > NAMED else ""
        texts.append(f"Against codecs: {named}{more}.")
    return " ".join(texts)


_NOT_OUTSIDE = {"open": "without a difference found", "inside": "inside", "past": "past its last swept share"}


def _alone(facts: Facts, subject: Scheme, regions: Sequence[Region], tail: str) -> str:
    region = next(r for r in regions if subject.name in r.points)
    point = middle(region.points[subject.name])
    users = [
        f"user {user} {point.texts(place, region.measure.unit)[0]}" for place, user in enumerate(facts.users)
    ]
    return (
        f"{subject.name} gave {_listed(users)} of PSNR in {region.panel.scenario} at share {point.share:g} "
        f"({region.panel.set}, k/n = {ratio_name(region.panel.ratio)}){tail}; there is no other scheme to compare."
    )


def _over(regions: Sequence[Region]) -> str:
    own = [region for region in regions if region.measure.column == "psnr_db"]
    pairs, repeats, seeds = (max(counts) for counts in zip(*(region.counted for region in own), strict=True))
    texts = [f"{pairs} pairs of images{f' in {repeats} repeats' if repeats > 1 else ''}"] if pairs > 1 else []
    texts += [f"{repeats} repeats"] if pairs == 1 and repeats > 1 else []
    return _listed([*texts, *([f"{seeds} training seeds"] if seeds > 1 else [])])


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def margin_text(low: float, high: float) -> str:
    """Return a range of margins with their signs: ``+0.42 to +0.60``; with one decimal where one is 10 or more."""
    decimals = 1 if max(abs(low), abs(high)) >= 10 else 2
    texts = [("+" if round(value, decimals) > 0 else "") + plain(value, decimals) for value in (low, high)]
    return " to ".join(dict.fromkeys(texts))
