"""The figures of the policies' decisions: what was dropped, by device and by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from testbed.report.blocks import Axis, Grid, Pane, Pick
from testbed.report.decisions import MEASURES, STAGES, idle_policies
from testbed.report.style import Device, Figure, heat_figure, pair_name

__all__ = ["by_device", "by_layer"]


def by_device(
    shares: pd.DataFrame, policies: Sequence[str], scenarios: Sequence[str], devices: Mapping[str, Device]
) -> Grid | Pick:
    """Return which devices each policy spares: a heat map of policies and devices for each scenario.

    Args:
        shares: What :func:`testbed.report.decisions.dropped_shares` gave.
        policies: The policies in order.
        scenarios: The scenarios in order.
        devices: The look of each device.
    """
    own = shares[shares["stage"] == "decode"]
    own = own if len(own) else shares
    summed = own.groupby(["scenario", "policy", "device"], sort=False)[["mass_dropped", "mass_wanted"]].sum()
    percent = 100 * summed["mass_dropped"] / summed["mass_wanted"].where(summed["mass_wanted"] > 0)
    most = _most(percent)
    figures = []
    for place, scenario in enumerate(scenarios):
        if scenario not in percent.index:
            continue
        grid = percent.loc[scenario].unstack()
        names = [name for name in devices if name in grid.columns]
        rows = [policy for policy in policies if policy in grid.index]
        grid = grid.reindex(index=rows, columns=names)
        figures.append(
            heat_figure(
                f"dropped-devices-{place}",
                scenario,
                grid,
                most=most,
                labels=[devices[name].label for name in names],
                rows="",
                hover="%{x}<br>%{y}: %{z:.1f} % dropped",
                alt=f"Heat map: share of the gate mass that each policy dropped at each device, {scenario}.",
            )
        )
    stage = "while it generated (the prompts apart)" if len(own) < len(shares) else "in all"
    note = (
        f"Share of the gate mass wanted of a device that a policy did not send it, {stage}. Each token’s experts share "
        "a mass of 1, by the router’s scores."
    )
    return Grid("Dropped, by device", note, figures, scale=f"{most:.0f}")


def by_layer(
    shares: pd.DataFrame, policies: Sequence[str], scenarios: Sequence[str], devices: Mapping[str, Device]
) -> Pick | None:
    """Return what was dropped by layer and device, by scenario, stage and measure; None where nothing was.

    Args:
        shares: What :func:`testbed.report.decisions.dropped_shares` gave.
        policies: The policies in order; those that dropped nothing have no map.
        scenarios: The scenarios in order.
        devices: The look of each device.
    """
    idle = set(idle_policies(shares))
    droppers = [policy for policy in policies if policy in set(shares["policy"]) - idle]
    if not droppers:
        return None
    stages = [stage for stage in STAGES if stage in set(shares["stage"])]
    seen = [scenario for scenario in scenarios if scenario in set(shares["scenario"])]
    panes = []
    for first, scenario in enumerate(seen):
        for second, stage in enumerate(stages):
            own = shares[(shares["scenario"] == scenario) & (shares["stage"] == stage)]
            for third, measure in enumerate(MEASURES):
                key, most = (first, second, third), _most(100 * own[measure])
                figures = [
                    _layers(
                        own[own["policy"] == policy], policy, scenario, devices, (*key, number), measure, most
                    )
                    for number, policy in enumerate(droppers)
                    if (own["policy"] == policy).any()
                ]
                none = "" if figures else "No policy dropped anything here."
                panes.append(Pane(key, figures, none, scale=f"{most:.0f}"))
    note = (
        "Share of what the router wanted of a device in a layer that the policy did not send it, in percent."
    )
    nothing = [policy for policy in policies if policy in idle]
    if nothing:
        note += f" Nothing was dropped by: {', '.join(nothing)}."
    axes = [
        Axis("scenario", seen),
        Axis("stage", [STAGES[stage] for stage in stages]),
        Axis("share of", list(MEASURES.values())),
    ]
    title = "Dropped, by layer and device"
    return Pick("dropped-layers", title, note, axes, panes, columns=3)


def _layers(
    own: pd.DataFrame,
    policy: str,
    scenario: str,
    devices: Mapping[str, Device],
    key: tuple[int, ...],
    measure: str,
    most: float,
) -> Figure:
    grid = 100 * own.pivot_table(
        index="layer", columns="device", values=measure, aggfunc="first", dropna=False
    )
    names = [name for name in devices if name in set(own["device"])]
    grid = grid.reindex(columns=names).sort_index()
    whole = own[f"{measure}_dropped"].sum() / max(
        1e-12, own["wanted" if measure == "pairs" else "mass_wanted"].sum()
    )
    return heat_figure(
        f"dropped-{'-'.join(map(str, key))}",
        policy,
        grid,
        most=most,
        labels=[devices[name].label for name in names],
        rows="MoE layer",
        hover="%{x}<br>layer %{y}: %{z:.1f} % dropped",
        alt=f"Heat map: share of {MEASURES[measure]} dropped in each layer, {pair_name(policy, scenario)}.",
        note=f"{100 * whole:.1f} % in all",
    )


def _most(percent: pd.Series) -> float:
    """Return the end of a scale that holds all of these, in whole tens."""
    highest = float(percent.max())
    return 10.0 * math.ceil(highest / 10) if math.isfinite(highest) and highest > 0 else 10.0
