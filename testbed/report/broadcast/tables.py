"""The tables of a broadcast's report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from testbed.records.run import Run
from testbed.report.broadcast.ablations import Loss
from testbed.report.broadcast.facts import MEASURES, Facts, Panel, ratio_name
from testbed.report.broadcast.ladders import changes_along, error_ladders
from testbed.report.broadcast.looks import Look
from testbed.report.broadcast.regions import Point, Region, Standing, places_of
from testbed.report.broadcast.sentence import Tally, margin_text
from testbed.report.broadcast.timing import PARTS, Latency, Sending
from testbed.report.linkfacts import trial_links
from testbed.report.numbers import NO_VALUE, number, with_interval
from testbed.report.tables import Cell, DataTable, Header, count_cell, interval_cell, links_cell, ms_cell

__all__ = [
    "ablated_table",
    "ablations_table",
    "broadcast_trials_table",
    "errors_table",
    "latency_table",
    "not_outside_table",
    "panels_table",
    "points_table",
    "sendings_table",
    "tally_table",
]

_VERDICTS = {
    "outside": ("outside", ""),
    "open": ("no difference found", "weak"),
    "inside": ("inside", "bad"),
    "past": ("past its last swept share", "weak"),
}


def tally_table(tallies: Sequence[Tally], looks: Mapping[str, Look], subject: str) -> DataTable:
    """Return where the subject stands against each baseline, over all panels and shares, by PSNR."""
    headers = [
        Header("against"),
        Header("outside", True, "swept points whose margin has an interval above 0, of those judged"),
        Header(
            "margin (dB)", True, "least and greatest: how much both users have more than the region gives"
        ),
        Header("open", True, "swept points whose interval holds 0: no difference found"),
        Header("inside", True, "swept points whose interval lies below 0"),
        Header("past", True, "swept points beyond the last share that the baseline was swept at: not judged"),
    ]
    body = []
    for tally in tallies:
        low, high = tally.margins
        known = math.isfinite(low)
        name, inside = tally.baseline.name, tally.count("inside")
        body.append(
            [
                Cell(name, colour=looks[name].colour),
                Cell(f"{tally.count('outside')} of {tally.judged}", float(tally.count("outside")), "strong"),
                Cell(
                    margin_text(low, high) if known else NO_VALUE,
                    low,
                    csv=f"{low:.6g} to {high:.6g}" if known else None,
                ),
                count_cell(tally.count("open")),
                Cell(str(inside), float(inside), "bad" if inside else ""),
                count_cell(tally.count("past")),
            ]
        )
    return DataTable("tally", f"Where {subject} stands", headers, body)


def panels_table(facts: Facts, regions: Sequence[Region]) -> DataTable:
    """Return where the subject stands by set, ratio, baseline (rows) and scenario (columns), by PSNR."""
    caption = "By images, bandwidth ratio and scenario (PSNR): points outside, and the margins in dB"
    names = [baseline.name for baseline in facts.baselines]
    return _by_panel("panels", caption, "against", names, regions, lambda region: region.standings)


def ablated_table(facts: Facts, regions: Sequence[Region]) -> DataTable:
    """Return where whole schemes stand against the regions of their ablations; else as :func:`panels_table`."""
    caption = "The whole scheme against the ablation's region (PSNR): points outside, and the margins in dB"
    names = [scheme.name for scheme in facts.schemes.values() if scheme.ablates]
    return _by_panel("ablated", caption, "ablation", names, regions, lambda region: region.without)


def _by_panel(
    key: str,
    caption: str,
    against: str,
    names: Sequence[str],
    regions: Sequence[Region],
    standings_of: Callable[[Region], Sequence[Standing]],
) -> DataTable:
    own = {r.panel: r for r in regions if r.measure.column == "psnr_db"}
    scenarios = list(dict.fromkeys(panel.scenario for panel in own))
    headers = [Header("images"), Header("k/n"), Header(against)]
    headers += [
        Header(scenario, True, "points outside of those judged, and the least and greatest margin in dB")
        for scenario in scenarios
    ]
    body = []
    for place, ratio in dict.fromkeys((panel.set, panel.ratio) for panel in own):
        for name in names:
            cells = []
            for scenario in scenarios:
                region = own.get(Panel(scenario, place, ratio))
                standings = standings_of(region) if region is not None else []
                cells.append(_panel_cell([s for s in standings if s.baseline == name]))
            if any(cell.raw is not None for cell in cells):
                body.append([Cell(place), Cell(ratio_name(ratio), ratio), Cell(name), *cells])
    return DataTable(key, caption, headers, body, grouped=True)


def not_outside_table(facts: Facts, regions: Sequence[Region]) -> DataTable:
    """Return every point at which the subject is not outside a baseline of the same backbone, in any measure."""
    learned = {scheme.name for scheme in facts.baselines if scheme.learned}
    headers = [
        Header("measure"),
        Header("images"),
        Header("k/n"),
        Header("scenario"),
        Header("against"),
        Header("share", True, "of user 1"),
        Header("margin", True, "how much both users have more than the region gives; below 0: less"),
        Header("95 % interval", True),
        Header("verdict"),
    ]
    body = []
    for region in regions:
        for standing in region.standings:
            if standing.verdict != "outside" and standing.baseline in learned:
                body.append(_standing_row(region, standing))
    names = " or ".join(name for name in (s.name for s in facts.baselines) if name in learned)
    subject = facts.subject.name if facts.subject else ""
    return DataTable("not-outside", f"Where {subject} is not outside {names}", headers, body)


def points_table(facts: Facts, regions: Sequence[Region]) -> DataTable:
    """Return what each user got, by scheme, scenario, set, ratio and share, in every measure."""
    measures = [m for m in MEASURES if any(r.measure == m for r in regions)]
    by_key = {(r.measure.column, r.panel): r for r in regions}
    headers = [Header("scheme"), Header("scenario"), Header("images"), Header("k/n"), Header("share", True)]
    for user in facts.users:
        for measure in measures:
            unit = f" ({measure.unit})" if measure.unit else ""
            headers.append(Header(f"{measure.title} {user}{unit}", True, f"user {user}, mean over images"))
            if measure == MEASURES[0]:
                headers.append(Header("95 % interval", True, "over pairs of images and training seeds"))
        headers.append(Header(f"decoded {user} (%)", True))
    headers += [Header("pairs", True), Header("repeats", True), Header("seeds", True)]
    body = []
    for region in regions:
        if region.measure != MEASURES[0]:
            continue
        for name, points in region.points.items():
            cube = region.cubes[name]
            for place, point in enumerate(points):
                cells = [Cell(name), Cell(region.panel.scenario), Cell(region.panel.set)]
                cells += [Cell(ratio_name(region.panel.ratio), region.panel.ratio), ms_cell(point.share)]
                for user in range(len(facts.users)):
                    for measure in measures:
                        other = by_key.get((measure.column, region.panel))
                        same = other.points.get(name) if other is not None else None
                        cells += _value_cells(same[place] if same else None, user, measure == MEASURES[0])
                    share = 100 * point.received[user]
                    cells.append(Cell(number(share), share, "bad" if share < 100 else ""))
                counts = len(cube.pairs), len(cube.repeats), len(cube.models)
                body.append([*cells, *(count_cell(count) for count in counts)])
    return DataTable("points", "Every swept point", headers, body)


def ablations_table(losses: Sequence[Loss]) -> DataTable:
    """Return what each ablation changes, by panel and user."""
    headers = [
        Header("ablation"),
        Header("against"),
        Header("images"),
        Header("k/n"),
        Header("scenario"),
        Header("user", True),
        Header("change of PSNR (dB)", True, "ablated less whole, mean over the swept shares"),
        Header("95 % interval (dB)", True),
        Header("seeds", title="training seeds of the ablated and of the whole scheme"),
    ]
    body = []
    for loss in losses:
        for user, change in enumerate(loss.changes, start=1):
            value, interval = with_interval(change)
            body.append(
                [
                    Cell(loss.scheme),
                    Cell(loss.whole),
                    Cell(loss.panel.set),
                    Cell(ratio_name(loss.panel.ratio), loss.panel.ratio),
                    Cell(loss.panel.scenario),
                    count_cell(user),
                    Cell(value, change.value, "strong"),
                    interval_cell(change, interval),
                    Cell(f"{loss.seeds[0]} / {loss.seeds[1]}"),
                ]
            )
    return DataTable("ablations-table", "Ablations", headers, body)


def errors_table(facts: Facts, regions: Sequence[Region]) -> DataTable:
    """Return what an error of the channel estimate costs each scheme and user, against the least error."""
    headers = [
        Header("scheme"),
        Header("images"),
        Header("k/n"),
        Header("scenarios"),
        Header("error", True, "variance of the error of the estimate"),
        Header("user", True),
        Header(
            "change of PSNR (dB)",
            True,
            "against the scenario of the least error, pair by pair; mean over shares",
        ),
        Header("95 % interval (dB)", True),
    ]
    body = []
    for (name, ratio), own in places_of(regions).items():
        for ladder in error_ladders(facts.scenarios):
            for scheme in facts.schemes:
                for at, changes in changes_along(ladder, own, scheme):
                    for user, change in zip(facts.users, changes, strict=True):
                        value, interval = with_interval(change)
                        body.append(
                            [
                                Cell(scheme),
                                Cell(name),
                                Cell(ratio_name(ratio), ratio),
                                Cell(ladder.title),
                                Cell(f"{at:g}", at),
                                count_cell(user),
                                Cell(value, change.value, "strong"),
                                interval_cell(change, interval),
                            ]
                        )
    return DataTable("errors", "What an error of the channel estimate costs", headers, body)


def latency_table(rows: Sequence[Latency], colours: Mapping[str, str]) -> DataTable:
    """Return the latency of an image by device, scheme, scenario, set and ratio."""
    headers = [Header("device"), Header("scheme"), Header("scenario"), Header("images"), Header("k/n")]
    headers += [Header(f"{title} (ms)", True) for title in PARTS.values()]
    headers += [
        Header("whole (ms)", True),
        Header("95 % interval (ms)", True, "over repeats"),
        Header("trials", True),
        Header("n", True, "images"),
        Header("left out", True, "images without one of the times"),
    ]
    body = []
    for row in rows:
        value, interval = with_interval(row.whole)
        body.append(
            [
                Cell(row.device, colour=colours.get(row.device, "")),
                Cell(row.scheme),
                Cell(row.scenario),
                Cell(row.set),
                Cell(ratio_name(row.ratio), row.ratio),
                *(ms_cell(row.parts[part].value) for part in PARTS),
                Cell(value, row.whole.value, "strong"),
                interval_cell(row.whole, interval),
                count_cell(row.whole.n),
                count_cell(row.images),
                Cell(str(row.unsplit), float(row.unsplit), "bad" if row.unsplit else ""),
            ]
        )
    return DataTable("latency-table", "Latency of an image", headers, body)


def sendings_table(rows: Sequence[Sending]) -> DataTable:
    """Return how the frames were sent."""
    headers = [
        Header("scheme"),
        Header("scenario"),
        Header("images"),
        Header("k/n"),
        Header("frames", True),
        Header("symbols", True, "complex symbols of a frame: counted once, however often it was sent"),
        Header("side bits", True, "what the receivers were told beside the symbols of a frame"),
        Header("bytes", True, "of a frame on the wire, all copies together"),
        Header("copies", title="1: once to all users by multicast; else one to each user"),
    ]
    body = [
        [
            Cell(row.scheme),
            Cell(row.scenario),
            Cell(row.set),
            Cell(ratio_name(row.ratio), row.ratio),
            count_cell(row.frames),
            count_cell(row.symbols),
            Cell(number(row.side_bits), row.side_bits),
            Cell(f"{row.frame_bytes:,.0f}" if math.isfinite(row.frame_bytes) else NO_VALUE, row.frame_bytes),
            Cell(" to ".join(dict.fromkeys(map(str, row.copies)))),
        ]
        for row in rows
    ]
    return DataTable("sendings", "How the frames were sent", headers, body)


def broadcast_trials_table(run: Run, facts: Facts) -> DataTable:
    """Return the trials in the order of running."""
    headers = [
        Header("trial"),
        Header("scheme"),
        Header("scenario"),
        Header("repeat", True),
        Header("state"),
        Header("start (s)", True),
        Header("took (s)", True),
        Header("frames", True),
        *(Header(f"PSNR {user} (dB)", True, f"user {user}, mean over its images") for user in facts.users),
        Header("played"),
        Header("links"),
        Header("error"),
    ]
    frames = facts.frames.groupby("trial").size()
    means = facts.images.groupby(["trial", "user"])["psnr_db"].mean()
    paper = facts.images.groupby("trial")["on_paper"].all()
    links, body = trial_links(run), []
    for row in run.trials.to_dict("records"):
        name, took = str(row["trial"]), float(row["t_end_s"] - row["t_start_s"])
        played = "" if name not in paper.index else "on paper" if paper[name] else "on air"
        if run.manifest.get("simulated"):
            played = "simulated" if played == "on air" else played
        body.append(
            [
                Cell(name),
                Cell(str(row["policy"])),
                Cell(str(row["scenario"])),
                Cell(str(row["repeat"]), float(row["repeat"])),
                Cell(str(row["state"]), style="" if row["state"] == "completed" else "bad"),
                Cell(f"{row['t_start_s']:.1f}", float(row["t_start_s"])),
                Cell(f"{took:.1f}", took),
                count_cell(int(frames.get(name, 0))),
                *(ms_cell(float(means.get((name, user), math.nan))) for user in facts.users),
                Cell(played),
                links_cell(links[name]),
                Cell("" if pd.isna(row["error"]) else str(row["error"]), style="bad"),
            ]
        )
    return DataTable("trials-table", "Trials in the order of running", headers, body)


def _panel_cell(standings: Sequence[Standing]) -> Cell:
    judged = [standing for standing in standings if standing.verdict != "past"]
    if not judged:
        return Cell(NO_VALUE, style="weak")
    outside = sum(standing.verdict == "outside" for standing in judged)
    inside = sum(standing.verdict == "inside" for standing in judged)
    margins = [standing.margin.value for standing in judged]
    least, greatest = min(margins), max(margins)
    style = "strong" if outside == len(judged) else "bad" if inside == len(judged) else ""
    past = len(standings) - len(judged)
    title = f"{outside} outside, {len(judged) - outside - inside} without a difference, {inside} inside, {past} past"
    text = f"{outside}/{len(judged)} · {margin_text(least, greatest)}"
    ends = f"{outside} of {len(judged)}; margins {least:.4g} to {greatest:.4g} dB"
    return Cell(text, least, style, title=title, csv=ends)


def _standing_row(region: Region, standing: Standing) -> list[Cell]:
    unit = region.measure.unit
    value, interval = with_interval(standing.margin, unit)
    text, style = _VERDICTS[standing.verdict]
    return [
        Cell(region.measure.title),
        Cell(region.panel.set),
        Cell(ratio_name(region.panel.ratio), region.panel.ratio),
        Cell(region.panel.scenario),
        Cell(standing.baseline),
        ms_cell(standing.share),
        Cell(value, standing.margin.value, "strong"),
        interval_cell(standing.margin, interval),
        Cell(text, style=style),
    ]


def _value_cells(point: Point | None, user: int, with_ends: bool) -> list[Cell]:
    if point is None:
        return [Cell(NO_VALUE, style="weak")] * (2 if with_ends else 1)
    value, ends = point.texts(user)
    cell = Cell(value, point.values[user].value, "strong" if with_ends else "")
    return [cell, interval_cell(point.values[user], ends)] if with_ends else [cell]
