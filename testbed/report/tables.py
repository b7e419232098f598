"""The tables of the page: cells that carry a text for people and a raw value for sorting and for CSV."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from testbed.records.run import Run
from testbed.report.checks import ClockError
from testbed.report.figures_power import TOKENS, EnergyRow, Item
from testbed.report.linkfacts import TrialLinks, trial_links
from testbed.report.metrics import METRICS, Row
from testbed.report.numbers import NO_VALUE, number, with_interval
from testbed.report.stats import Interval
from testbed.report.throughput import trial_throughput

__all__ = [
    "Cell",
    "DataTable",
    "Header",
    "clock_table",
    "count_cell",
    "energy_table",
    "fleet_table",
    "interval_cell",
    "links_cell",
    "models_table",
    "ms_cell",
    "serving_table",
    "trials_table",
]

# A percentile of fewer values than this says little more than the greatest of them.
LEAST_FOR_P95 = 20
LEAST_FOR_P99 = 100


@dataclass(frozen=True)
class Header:
    """One column's header.

    Attributes:
        text: Its name, with the unit.
        numeric: Whether its cells are numbers: set right, sorted as numbers.
        title: What it means.
    """

    text: str
    numeric: bool = False
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: What is shown.
        raw: What sorting and CSV use; the text where None.
        style: A class of report.css: bad, weak, interval.
        colour: A device's colour, for a swatch before the text.
        title: Shown on hovering.
        csv: What CSV has instead of the raw value.
    """

    text: str
    raw: float | str | None = None
    style: str = ""
    colour: str = ""
    title: str = ""
    csv: str | None = None

    @property
    def value(self) -> str:
        """Return the raw value as text; empty for a missing number."""
        if self.raw is None:
            return "" if self.text == NO_VALUE else self.text
        if isinstance(self.raw, float):
            return repr(self.raw) if math.isfinite(self.raw) else ""
        return str(self.raw)


@dataclass(frozen=True)
class DataTable:
    """One table.

    Attributes:
        name: Its id in the page, and the name of its CSV file.
        caption: What it shows.
        headers: The columns.
        rows: The cells.
        grouped: Whether rows that begin alike are set apart from the others.
        off: The places of the rows that are wrong: they stand in red.
        anchor: The id in the page of the first of them.
    """

    name: str
    caption: str
    headers: Sequence[Header]
    rows: Sequence[Sequence[Cell]]
    grouped: bool = False
    off: Collection[int] = ()
    anchor: str = ""


def serving_table(rows: Sequence[Row]) -> DataTable:
    """Return the serving metrics by metric, policy and scenario."""
    headers = [
        Header("metric"),
        Header("policy"),
        Header("scenario"),
        Header("n", True, "requests (tokens for itl) behind the percentiles"),
        Header("trials", True, "trials behind the mean: each counts once"),
        Header("mean (ms)", True),
        Header("95 % interval (ms)", True, "over trials"),
        Header("median (ms)", True),
        Header("p95 (ms)", True),
        Header("p99 (ms)", True),
    ]
    body = []
    for row in rows:
        value, interval = with_interval(row.mean)
        body.append(
            [
                Cell(row.metric, title=METRICS[row.metric]),
                Cell(row.policy),
                Cell(row.scenario),
                count_cell(row.n),
                count_cell(row.mean.n),
                Cell(value, row.mean.value, "strong"),
                interval_cell(row.mean, interval),
                ms_cell(row.median),
                _tail(row.p95, row.n, LEAST_FOR_P95),
                _tail(row.p99, row.n, LEAST_FOR_P99),
            ]
        )
    return DataTable("serving", "Latency by policy and scenario", headers, body, grouped=True)


def energy_table(
    rows: Sequence[EnergyRow], colours: Mapping[str, str], *, item: Item = TOKENS, compared: str = "policy"
) -> DataTable:
    """Return the energy per item; what is wrong stands in red in place of a number.

    Args:
        rows: What :func:`testbed.report.figures_power.energy_rows` gave.
        colours: The devices' colours.
        item: What the energy is for.
        compared: What is compared: the title of that column.
    """
    meant = "joules of the board over tokens generated, reading the prompts included"
    headers = [
        Header("device"),
        Header(compared),
        Header("scenario"),
        Header(
            f"J per {item.name}", True, meant if item == TOKENS else f"joules of the board per {item.long}"
        ),
        Header("95 % interval (J)", True, "over trials"),
        Header("idle part (J)", True, "what the board would have taken idling for as long"),
        Header("above idle (J)", True),
        Header("trials", True, "trials behind the mean"),
        Header("problem"),
    ]
    body = []
    for row in rows:
        value, interval = with_interval(row.joules_per_item)
        above = row.joules_per_item.value - row.idle_joules_per_item
        missing = row.joules_per_item.n == 0
        body.append(
            [
                Cell(row.device, colour=colours.get(row.device, "")),
                Cell(row.policy),
                Cell(row.scenario),
                Cell("missing", math.nan, "bad")
                if missing
                else Cell(value, row.joules_per_item.value, "strong"),
                interval_cell(row.joules_per_item, interval),
                ms_cell(row.idle_joules_per_item),
                ms_cell(above),
                Cell(f"{row.joules_per_item.n} of {row.trials}", float(row.joules_per_item.n)),
                Cell(row.problem, style="bad") if row.problem else Cell("none", style="weak"),
            ]
        )
    return DataTable("energy-table", f"Energy per {item.name}", headers, body)


def clock_table(errors: Sequence[ClockError], colours: Mapping[str, str]) -> DataTable:
    """Return the clock error of each device."""
    headers = [
        Header("device"),
        Header(
            "error at most (ms)",
            True,
            "half of an estimate's round trip, less what the link takes one way; the largest",
        ),
        Header("drift (ppm)", True, "against the base station, from the first to the last estimate"),
        Header("estimates", True),
    ]
    body = [
        [
            Cell(error.device, colour=colours.get(error.device, "")),
            Cell(number(error.bound_ms, 2), error.bound_ms),
            Cell(number(error.drift_ppm, 2), error.drift_ppm),
            count_cell(error.estimates),
        ]
        for error in errors
    ]
    return DataTable("clocks-table", "Clocks", headers, body)


def trials_table(run: Run, means: pd.DataFrame) -> DataTable:
    """Return the trials in the order of running.

    Args:
        run: The run.
        means: What :func:`testbed.report.metrics.trial_means` gave.
    """
    at_once = bool((run.trials["concurrency"].fillna(1) > 1).any())
    headers = [
        Header("trial"),
        Header("policy"),
        Header("scenario"),
        Header("repeat", True),
        *([Header("at once", True, "requests that were answered at once, at most")] if at_once else []),
        Header("state"),
        Header("start (s)", True),
        Header("took (s)", True),
        Header("mean ttft (ms)", True),
        Header("mean itl (ms)", True),
        Header("tokens/s", True),
        Header("links"),
        Header("error"),
    ]
    by_trial, links = means.set_index("trial"), trial_links(run)
    rates = trial_throughput(run).set_index("trial")["tokens_per_s"]
    body = []
    for row in run.trials.to_dict("records"):
        name, completed = str(row["trial"]), row["state"] == "completed"
        ttft = float(by_trial["ttft_ms"].get(name, math.nan))
        itl = float(by_trial["itl_ms"].get(name, math.nan))
        sound = links[name]
        body.append(
            [
                Cell(name),
                Cell(str(row["policy"])),
                Cell(str(row["scenario"])),
                Cell(str(row["repeat"]), float(row["repeat"])),
                *([_at_once(row["concurrency"])] if at_once else []),
                Cell(str(row["state"]), style="" if completed else "bad"),
                Cell(f"{row['t_start_s']:.1f}", float(row["t_start_s"])),
                Cell(f"{row['t_end_s'] - row['t_start_s']:.1f}", float(row["t_end_s"] - row["t_start_s"])),
                ms_cell(ttft),
                ms_cell(itl),
                ms_cell(float(rates.get(name, math.nan))),
                links_cell(sound),
                Cell("" if pd.isna(row["error"]) else str(row["error"]), style="bad"),
            ]
        )
    return DataTable("trials-table", "Trials in the order of running", headers, body)


def _at_once(concurrency: object) -> Cell:
    return Cell(NO_VALUE, style="weak") if pd.isna(concurrency) else count_cell(int(str(concurrency)))


def links_cell(links: TrialLinks) -> Cell:
    """Return what is known of a trial's links."""
    texts = {"ok": "ok", "off": f"off: {links.reason}", "unverified": "not verified", "untouched": "not set"}
    style = "bad" if links.state in ("off", "unverified") else "weak" if links.state == "untouched" else ""
    return Cell(texts[links.state], style=style, title=links.reason)


def fleet_table(manifest: Mapping[str, Any], colours: Mapping[str, str]) -> DataTable:
    """Return the hosts with what was found on them; what is not known is a dash, what was assumed is marked."""
    facts = manifest.get("facts") or {}
    hosts = (manifest.get("inventory") or {}).get("hosts") or {}
    rules = manifest.get("power_total") or {}
    measured = not manifest.get("simulated")  # a simulated run has no power, so that no rule is missing
    shown = {
        "board": "board_model",
        "JetPack": "jetpack",
        "L4T": "l4t",
        "Python": "python",
        "torch": "torch",
        "CUDA": "cuda",
        "power mode": "power_mode",
    }
    headers = [Header("host"), Header("role"), *(Header(title) for title in shown)]
    headers += [
        Header("power total", title="the rails that make a board's total"),
        Header("memory (GiB)", True),
    ]
    body = []
    for name in [*hosts, *(host for host in facts if host not in hosts)]:
        host, found = hosts.get(name) or {}, facts.get(name) or {}
        memory = found.get("memory_bytes")
        cells = [Cell(name, colour=colours.get(name, "")), _fact(str(host.get("role", "")).replace("_", " "))]
        for key in shown.values():
            value = found.get(key) or (host.get("board") if key == "board_model" else None)
            cells.append(_fact(value, "wrap" if key == "board_model" else ""))
        missing = measured and name not in rules and host.get("role") == "device"
        cells.append(Cell("no rule", style="bad") if missing else _fact(rules.get(name), "wrap"))
        cells.append(Cell(f"{memory / 2**30:.1f}", float(memory)) if memory else Cell(NO_VALUE))
        body.append(cells)
    return DataTable("fleet-table", "Fleet", headers, body)


def models_table(models: Mapping[str, Any]) -> DataTable:
    """Return the models that a broadcast was played with: a row each, a column for whatever is told of any of them."""
    told = {str(name): facts for name, facts in models.items() if isinstance(facts, Mapping)}
    keys = list(dict.fromkeys(str(key) for facts in told.values() for key in facts))
    body = []
    for name, facts in told.items():
        cells = [Cell(name)]
        for key in keys:
            value = facts.get(key)
            text = ("yes" if value else "no") if isinstance(value, bool) else value
            if key == "weights":
                cells.append(Cell(str(value)[:12], title=f"sha256 {value}", csv=str(value)))
            else:
                cells.append(count_cell(text) if isinstance(text, int) else _fact(text))
        body.append(cells)
    numbers = {key for key in keys if any(type(facts.get(key)) is int for facts in told.values())}
    headers = [
        Header("model"),
        *(Header(key.replace("_", " ").replace("csi", "CSI"), key in numbers) for key in keys),
    ]
    return DataTable("models-table", "Models", headers, body)


def _fact(value: object, style: str = "") -> Cell:
    return Cell(str(value), style=style) if value not in (None, "", []) else Cell(NO_VALUE, style="weak")


def count_cell(value: int) -> Cell:
    """Return a count, with thousands set apart."""
    return Cell(f"{value:,}", float(value))


def ms_cell(value: float) -> Cell:
    """Return a measured number without an interval, with three digits."""
    return Cell(number(value), value)


def _tail(value: float, n: int, least: int) -> Cell:
    if n < least:
        return Cell(
            number(value), value, "weak", title=f"of {n} values only: little more than the greatest of them"
        )
    return ms_cell(value)


def interval_cell(interval: Interval, text: str) -> Cell:
    """Return an interval's text, with its half width for sorting and its ends for CSV."""
    if not text:
        return Cell(NO_VALUE, style="interval", title="a single repeat gives no interval")
    return Cell(text, interval.half_width, "interval", csv=f"{interval.low:.6g} to {interval.high:.6g}")
