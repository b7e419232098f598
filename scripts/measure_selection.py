#!/usr/bin/env python3
"""What dropping and replacing experts costs in quality, measured on a real model: the tables of docs/policies.md.

    python scripts/measure_selection.py [--windows 40] [--json]

The model runs here with all of its experts. In every layer the router's choice goes through the selection code that the
base station runs, each token a batch of its own, and the logits are compared with those of the untouched model on
held-out text: KL divergence in nats a token, perplexity, and how often the most likely token stays the same. Random
choices follow from a seed. Latencies are those of the latency model on four unequal links that fade (seeded too); they
say how policies compare on them and nothing about any hardware.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from selection_bench import SEED, Bench, Change, Clock, Row

from payloads.wdmoe.gating import finish, mass_of
from payloads.wdmoe.routing import Routing, Selection

MODEL = Path(__file__).resolve().parents[1] / "payloads/models/tiny-mixtral"


def dropped(what: Callable[[int, Routing], Any], how: Any = "sum") -> Change:
    """Return a change that drops where ``what`` says so; ``how`` is ``renormalise``."""
    return lambda layer, routing: finish(routing, ~what(layer, routing), {"renormalise": how})


def replaced(what: Callable[[int, Routing], Any], how: Any = "sum") -> Change:
    """Return a change that puts the best expert not chosen in the place of a token's last pair."""

    def change(layer: int, routing: Routing) -> Selection:
        rows = what(layer, routing)[:, -1].nonzero()[0]
        index = routing.index.copy()
        index[rows, -1] = third(routing)[0][rows]
        return finish(routing, np.ones(index.shape, bool), {"renormalise": how}, index)

    return change


def third(routing: Routing) -> tuple[Any, Any]:
    """Return the best expert that was not chosen, and its score over that of the last one chosen."""
    scores = routing.scores.copy()
    np.put_along_axis(scores, routing.index, -1.0, axis=1)
    best = scores.argmax(axis=1)
    rows = np.arange(len(best))
    return best, scores[rows, best] / routing.scores[rows, routing.index[:, -1]]


def only(column: int, rows: Any, routing: Routing) -> Any:
    """Return (N, k) where one column is true in some rows."""
    chosen = np.zeros(routing.index.shape, bool)
    chosen[:, column] = rows
    return chosen


def what_dropping_costs(bench: Bench) -> list[Row]:
    """Measure ways of losing about as much mass, and what is done with the weights."""
    random = np.random.default_rng(SEED)
    share = random.random

    def least(limit: float) -> Callable[[int, Routing], Any]:
        return lambda layer, routing: only(-1, mass_of(routing)[:, -1] < limit, routing)

    def near(ratio: float) -> Callable[[int, Routing], Any]:
        return lambda layer, routing: only(-1, third(routing)[1] > ratio, routing)

    def device(layer: int, routing: Routing) -> Any:
        return routing.index % 4 == layer % 4

    rows = []
    for how in ("sum", 0.5, "none"):
        said = f", renormalise {how}"
        rows += [
            bench.measure("the smaller of two, mass below 0.2" + said, dropped(least(0.2), how)),
            bench.measure("the smaller of two, mass below 0.3" + said, dropped(least(0.3), how)),
            bench.measure("the smaller of two, always" + said, dropped(least(1.0), how)),
            bench.measure(
                "the smaller of two, 1 in 4 at random" + said,
                dropped(lambda _, routing: only(-1, share(len(routing.index)) < 0.25, routing), how),
            ),
            bench.measure(
                "the larger of two, 1 in 20 at random" + said,
                dropped(lambda _, routing: only(0, share(len(routing.index)) < 0.05, routing), how),
            ),
            bench.measure(
                "any pair, 1 in 20 at random" + said,
                dropped(lambda _, routing: share(routing.index.shape) < 0.05, how),
            ),
            bench.measure(
                "one device of four, where mass is below 0.3" + said,
                dropped(lambda layer, routing: device(layer, routing) & (mass_of(routing) < 0.3), how),
            ),
            bench.measure("one device of four, whole" + said, dropped(device, how)),
        ]
    for ratio in (0.9, 0.8, 0.5, 0.0):
        rows += [
            bench.measure(
                f"third / second score above {ratio}: second dropped, 0.5", dropped(near(ratio), 0.5)
            ),
            bench.measure(
                f"third / second score above {ratio}: second replaced by third", replaced(near(ratio))
            ),
        ]
    return rows


def what_mass_costs(bench: Bench, how: Any) -> tuple[list[Row], dict[str, Any]]:
    """Measure drops of a token's mass by how much it is, and fit loss = scale * odds ** power."""
    edges = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6]
    rows, points = [], []
    for low, high in itertools.pairwise(edges):
        band = lambda _, routing, low=low, high=high: (mass_of(routing) >= low) & (mass_of(routing) < high)  # noqa: E731
        row = bench.measure(f"mass from {low:.2f} to {high:.2f}", dropped(band, how))
        mass = row.lost / (row.pairs * bench.chosen)
        touched = row.pairs * bench.chosen * bench.layers
        points.append((mass / (1 - mass), row.kl / touched, math.log1p(row.perplexity / 100) / touched))
        rows.append(row)
    table = np.log(np.array([point for point in points if point[2] > 0]))
    fit = {}
    for column, name in ((1, "kl"), (2, "nll")):
        power, scale = np.polyfit(table[:, 0], table[:, column], 1)
        error = np.abs(np.polyval((power, scale), table[:, 0]) - table[:, column])
        fit[name] = {
            "power": float(power),
            "scale": float(np.exp(scale)),
            "median_error": float(np.expm1(np.median(error))),
        }
    return rows, fit


def what_layers_cost(bench: Bench, how: Any, power: float) -> tuple[list[Row], list[float]]:
    """Measure dropping in one layer alone; return also each layer's cost for a unit of loss, 1 on average."""
    rows, costs = [], []
    for alone in range(bench.layers):
        loss = [0.0]

        def band(layer: int, routing: Routing, alone: int = alone, loss: list[float] = loss) -> Any:
            mass = mass_of(routing)
            chosen = only(-1, (mass[:, -1] < 0.5) & (layer == alone), routing)
            odds = mass[chosen] / (1 - mass[chosen])
            loss[0] += float((odds**power).sum())
            return chosen

        row = bench.measure(f"the smaller of two in layer {alone}", dropped(band, how))
        costs.append(row.kl / loss[0])
        rows.append(row)
    return rows, [cost * len(costs) / sum(costs) for cost in costs]


def what_policies_do(bench: Bench, layer_cost: list[float]) -> list[Row]:
    """Measure every kind on links that fade."""
    experts = int(bench.model.config.num_local_experts)
    clock = Clock(bench.layers, experts, sum(batch.numel() for batch in bench.batches))
    rounded = [round(cost, 2) for cost in layer_cost]
    half = {"renormalise": 0.5}
    settings: list[dict[str, Any]] = [{"kind": "top_k", "k": 2}, {"kind": "top_k", "k": 1}]
    settings += [{"kind": "top_k", "k": 1, **half}]
    settings += [{"kind": "wlr"}, {"kind": "wlr", "direction": "high"}]
    settings += [{"kind": "bottleneck", "threshold": threshold} for threshold in (0.1, 0.2, 0.3, 0.4, 0.5)]
    settings += [{"kind": "bottleneck", "threshold": threshold, **half} for threshold in (0.2, 0.3, 0.5)]
    settings += [
        {"kind": "similar", "tolerance": t, "skip": s} for t, s in ((0.1, 0.1), (0.2, 0.1), (0.5, 0.3))
    ]
    settings += [{"kind": "greedy", "balance": balance} for balance in (0.25, 0.5, 1.0)]
    settings += [{"kind": "budget", "tau": tau, "scope": "block"} for tau in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)]
    settings += [{"kind": "budget", "tau": tau} for tau in (0.99, 0.98, 0.97, 0.96, 0.95, 0.93, 0.91, 0.88)]
    settings += [{"kind": "budget", "tau": tau, "renormalise": "sum"} for tau in (0.97, 0.95)]
    settings += [{"kind": "budget", "tau": tau, "replace": True} for tau in (0.99, 0.98, 0.97, 0.95)]
    settings += [{"kind": "budget", "tau": tau, "layer_cost": rounded} for tau in (0.98, 0.97, 0.95, 0.91)]
    settings += [{"kind": "budget", "tau": tau, "most": 1.0} for tau in (0.95, 0.9)]
    settings += [{"kind": "budget", "tau": tau, "power": 1.0} for tau in (0.98, 0.95)]
    return [bench.measure(_named(each), clock.policy(each), clock) for each in settings]


def _named(settings: dict[str, Any]) -> str:
    return " ".join(str(v) if k == "kind" else f"{k}={v}" for k, v in settings.items())


def _print(title: str, rows: Sequence[Row]) -> None:
    latency = any(row.latency_ms is not None for row in rows)
    print(f"\n{title}\n")
    print(
        f"| what | {'latency, ms | ' if latency else ''}pairs | mass | KL, nats | perplexity | same token |"
    )
    print("| --- |" + " --- |" * (6 if latency else 5))
    for row in rows:
        spent = f"{row.latency_ms:.2f} | " if latency else ""
        print(
            f"| {row.what} | {spent}{100 * row.pairs:.1f} % | {row.lost:.4f} | {row.kl:.5f} | "
            f"{row.perplexity:+.2f} % | {100 * row.agree:.1f} % |",
            flush=True,
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="a folder with a Mixtral-type model and held-out-*.txt"
    )
    parser.add_argument("--windows", type=int, default=40, help="windows of 256 tokens of each text")
    parser.add_argument("--part", choices=("all", "drops", "mass", "layers", "policies"), default="all")
    parser.add_argument("--renormalise", default=0.5, help="for the parts mass and layers")
    parser.add_argument(
        "--power", type=float, default=1.5, help="loss = odds ** power, for the layers' costs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.model, options.windows)
    found: dict[str, Any] = {
        "perplexity": math.exp(bench.nll),
        "tokens": sum(b.numel() for b in bench.batches),
    }
    wanted = lambda part: options.part in ("all", part)  # noqa: E731
    how = options.renormalise if options.renormalise in ("sum", "none") else float(options.renormalise)
    layer_cost = [1.0] * bench.layers
    if wanted("drops"):
        found["drops"] = what_dropping_costs(bench)
    if wanted("mass"):
        found["mass"], found["fit"] = what_mass_costs(bench, how)
    if wanted("layers") or wanted("policies"):
        found["layers"], layer_cost = what_layers_cost(bench, how, options.power)
        found["layer_cost"] = layer_cost
    if wanted("policies"):
        found["policies"] = what_policies_do(bench, layer_cost)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"perplexity {found['perplexity']:.3f} on {found['tokens']} tokens, untouched")
    for part in ("drops", "mass", "layers", "policies"):
        if part in found:
            _print(part, found[part])
    for part in ("fit", "layer_cost"):
        if part in found:
            print(f"\n{part}: {json.dumps(found[part])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
