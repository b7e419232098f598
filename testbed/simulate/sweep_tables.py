"""A sweep's table in a few figures: each point, scenario and policy with its interval over repeats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from testbed.report.numbers import number, with_interval
from testbed.report.stats import Interval, bootstrap_mean
from testbed.simulate.sweep import SweepRun

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["summary_of", "summary_rows"]

_KEYS = ["scenario", "policy"]


def summary_of(run: SweepRun, table: pd.DataFrame) -> pd.DataFrame:
    """Return one row a point, scenario and policy.

    Returns:
        The axes' values, ``scenario``, ``policy``, ``n`` (repeats), ``ms`` with ``low`` and ``high`` (mean token
        latency and its 95 % interval; time to the first token where there is no later one), ``metric``,
        ``mass_kept``, ``dropped_share`` and ``bound_ms``; in the order of the points and of the campaign file.
    """
    import pandas as pd

    axes = list(run.sweep.vary)
    for key, listed in (("scenario", "scenarios"), ("policy", "policies")):
        names = [entry["name"] for entry in run.campaign.data[listed]]
        table = table.assign(**{key: pd.Categorical(table[key], names)})
    metric = "itl_ms" if table["itl_ms"].notna().any() else "ttft_ms"
    rows: list[dict[str, Any]] = []
    for _, group in table.groupby(["point", *_KEYS], observed=True):
        first = group.iloc[0]
        mean = bootstrap_mean(group[metric])
        rows.append(
            {
                **{name: first[name] for name in (*axes, *_KEYS)},
                "n": mean.n,
                "metric": metric,
                "ms": mean.value,
                "low": mean.low,
                "high": mean.high,
                "mass_kept": group["mass_kept"].mean(),
                "dropped_share": group["dropped_share"].mean(),
                "bound_ms": group["bound_ms"].astype("float64").mean(),
            }
        )
    return pd.DataFrame(rows)


def summary_rows(run: SweepRun, table: pd.DataFrame) -> list[list[str]]:
    """Return the summary as rows of text for a terminal; the first row is the heading."""
    axes = list(run.sweep.vary)
    summary = summary_of(run, table)
    metric = "token latency" if summary["metric"].iloc[0] == "itl_ms" else "first token"
    rows = [[*axes, "scenario", "policy", "n", f"{metric} (ms)", "95 % interval", "mass kept", "bound (ms)"]]
    for row in summary.to_dict("records"):
        value, interval = with_interval(Interval(row["ms"], row["low"], row["high"], row["n"]))
        kept, bound = row["mass_kept"], row["bound_ms"]
        rows.append(
            [
                *(str(row[name]) for name in axes),
                row["scenario"],
                row["policy"],
                str(row["n"]),
                value,
                interval,
                f"{kept:.1%}" if kept == kept else "",
                number(bound) if bound == bound else "",
            ]
        )
    return rows
