#!/usr/bin/env python3
"""How good and how fast the bandwidth allocation is, beside a general convex solver on the same problems.

    python scripts/bench/allocation.py [--problems 1000] [--seed 0] [--json]

- ``beside SLSQP``: random layers of 2 to 64 devices, both rules with a convex form, one share for both directions and
  separate ones, with and without a floor. SLSQP (scipy) is given the epigraph form with exact derivatives, and is
  timed from equal shares; then it is started again from our shares, in case there is anything left to gain. The gap
  is to the better of both, and the times' ratio is of all problems together. A proven bound stands beside it: the
  duality gap of the interior point method on the same problem;
- ``for one layer``: what the base station waits for, for each rule, with and without limits that rates meet, few
  devices and many. The gap is to the best one share for both directions as arrays find it;
- ``for many layers``: one allocation for 32 layers, as good as can be and in a hurry, and a batch solved at once.

The exit status is 1 when a floor is missed, which is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one thread's time is what is measured

import numpy as np

from payloads.wdmoe.allocation.bandwidth import kept_share
from payloads.wdmoe.allocation.epigraph import epigraph
from payloads.wdmoe.allocation.interior import Epigraph, solve
from payloads.wdmoe.allocation.minmax import minmax, minmax_batch
from tests.wdmoe.allocation import (
    TIGHT,
    WIDE,
    demand_of,
    latency_s,
    links_of,
    rule_of,
    slsqp,
    street_of,
    total_s,
)

DIRECTIONS = ("same", "separate")
MOST_GAP = 1e-6
MOST_QUICK_GAP = 1e-5
LEAST_RATIO = 100.0
#: For 4 and 8 devices: the median and the 95th percentile. A share of each band asks for more, under a table most.
MOST_US = {"same": (150.0, 300.0), "separate": (500.0, 1000.0)}
MOST_US_TABLE = {"same": (200.0, 300.0), "separate": (1000.0, 2000.0)}


def _links(kind: str, limits: Any = WIDE) -> Callable[[np.random.Generator, int], Any]:
    return lambda generator, devices: links_of(generator, devices, rule_of(kind, limits))


LINKS = {
    "linear": _links("linear"),
    "linear, limits": _links("linear", TIGHT),
    "shannon": _links("shannon"),
    "shannon, limits": _links("shannon", TIGHT),
    "street": street_of,
    "table": _links("table"),
    "table, limits": _links("table", TIGHT),
}


def main() -> int:
    """Solve everything, print the tables, and say what floor was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=1000, help="random problems beside SLSQP")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = {
        "beside_slsqp": beside_slsqp(options.problems, options.seed),
        "one_layer": one_layer(),
        "many_layers": many_layers(),
    }
    missed = list(missed_floors(found))
    if options.json:
        print(json.dumps({**found, "missed": missed}))
    else:
        show(found)
        print(*(f"missed: {line}" for line in missed), sep="\n", file=sys.stderr)
    return 1 if missed else 0


def beside_slsqp(problems: int, seed: int) -> list[dict[str, Any]]:
    """Return a row for each rule and kind of shares: the gap to SLSQP, and how much faster we are."""
    generator = np.random.default_rng(seed)
    cells: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for number in range(problems):
        kind, directions = ("linear", "shannon")[number % 2], DIRECTIONS[number // 2 % 2]
        floor = (0.0, 0.01)[number // 4 % 2]
        devices = int(generator.integers(2, 65))
        links = links_of(generator, devices, rule_of(kind))
        demand = demand_of(generator, devices)
        ours, ours_s = timed(partial(minmax, demand, links, directions=directions, floor=floor))
        theirs, theirs_s = timed(partial(slsqp, [demand], links, floor, directions))
        again = slsqp([demand], links, floor, directions, start=np.maximum(ours, 1e-9))
        times = [latency_s(demand, links, shares) for shares in (ours, theirs, again)]
        gaps = times[0] / min(times[1:]) - 1, times[1] / min(times) - 1
        cells.setdefault((kind, directions), []).append(
            (*gaps, bound_gap(demand, links, floor, directions, ours), ours_s, theirs_s)
        )
    rows = []
    for (kind, directions), each in cells.items():
        gaps, theirs, bounds, ours_s, theirs_s = zip(*each, strict=True)
        rows.append(
            {
                "rule": kind,
                "directions": directions,
                "problems": len(each),
                "largest_gap": max(gaps),
                "largest_bound_gap": max(bounds),
                "slsqp_largest_gap": max(theirs),
                "ours_us": 1e6 * statistics.mean(ours_s),
                "slsqp_us": 1e6 * statistics.mean(theirs_s),
                "ratio": sum(theirs_s) / sum(ours_s),
                "median_ratio": statistics.median(b / a for a, b in zip(ours_s, theirs_s, strict=True)),
            }
        )
    return rows


def bound_gap(demand: Any, links: Any, floor: float, directions: str, shares: Any) -> float:
    """Return by how much of it a latency is above what the dual problem proves to be unbeatable, at most."""
    devices = len(demand.loaded)
    mbit = np.array([[demand.downlink_bits], [demand.uplink_bits]]) * 1e-6
    sigma, pace = None, links.states
    if links.rule.kind == "shannon":
        width = links.rule.bandwidth_mhz
        sigma, pace = links.states / width, np.full((2, devices), width * links.rule.scale / np.log(2))
    problem = Epigraph(
        fixed_s=demand.fixed_s[None],
        work=mbit / pace[:, None],
        sigma=sigma,
        loaded=demand.loaded[None],
        low=np.full((2, devices), kept_share(floor, devices)),
        same=directions == "same",
    )
    solved = solve(problem)
    least = latency_s(demand, links, solved.shares) * (1 - solved.gap)
    return latency_s(demand, links, shares) / least - 1


def one_layer() -> list[dict[str, Any]]:
    """Return the time of one allocation: the median of many problems, and for few devices the 95th percentile too.

    ``limits`` are links of which many are at a limit of their rate; a ``street`` is Shannon's rule under Rayleigh
    fading, with limits too. The gap is to the solver for many problems at once, which is as exact with one share.
    """
    rows = []
    for name, make in LINKS.items():
        for directions in DIRECTIONS:
            row: dict[str, Any] = {"rule": name, "directions": directions, "largest_gap": 0.0}
            for devices in (4, 8, 16, 64, 1024):
                generator = np.random.default_rng(devices)
                problems = [
                    (demand_of(generator, devices), make(generator, devices))
                    for _ in range(300 if devices < 16 else 50 if devices < 64 else 10)
                ]
                for demand, links in problems[:10]:
                    minmax(demand, links, directions=directions)
                found = [timed(partial(minmax, d, n, directions=directions)) for d, n in problems]
                times = [1e6 * seconds for _, seconds in found]
                row[f"us_{devices}"] = statistics.median(times)
                if devices <= 8:
                    row[f"p95_us_{devices}"] = statistics.quantiles(times, n=20)[-1]
                    for (demand, links), (shares, _) in zip(problems, found, strict=True):
                        row["largest_gap"] = max(
                            row["largest_gap"], gap_to_arrays(demand, links, directions, shares)
                        )
            rows.append(row)
    return rows


def gap_to_arrays(demand: Any, links: Any, directions: str, shares: Any) -> float:
    """Return by how much of it a latency is above that of the best one share for both directions, in arrays.

    With separate bands that is no bound, but what must not be missed.
    """
    bits = np.array([demand.downlink_bits, demand.uplink_bits])
    other = minmax_batch(demand.fixed_s, bits, demand.loaded, links.rule, links.states)
    return latency_s(demand, links, shares) / latency_s(demand, links, other) - 1


def many_layers() -> list[dict[str, Any]]:
    """Return the time of one allocation for 32 layers, as good as can be and in a hurry, and of problems in a batch."""
    rows = []
    for name, make in LINKS.items():
        for directions in DIRECTIONS:
            generator = np.random.default_rng(1)
            full, quick, worse = [], [], []
            for _ in range(10):
                links, demands = make(generator, 8), [demand_of(generator, 8) for _ in range(32)]
                best, seconds = timed(partial(epigraph, demands, links, directions=directions))
                full.append(1e3 * seconds)
                some, seconds = timed(partial(epigraph, demands, links, directions=directions, quick=True))
                quick.append(1e3 * seconds)
                worse.append(total_s(demands, links, some) / total_s(demands, links, best) - 1)
            many = [demand_of(generator, 8) for _ in range(1000)]
            bits = np.array([[demand.downlink_bits, demand.uplink_bits] for demand in many])
            fixed_s = np.array([demand.fixed_s for demand in many])
            loaded = np.array([demand.loaded for demand in many])
            whole = partial(
                minmax_batch, fixed_s, bits, loaded, links.rule, links.states, directions=directions
            )
            batch = [timed(whole)[1] for _ in range(3)]
            rows.append(
                {
                    "rule": name,
                    "directions": directions,
                    "epigraph_32x8_ms": statistics.median(full),
                    "quick_32x8_ms": statistics.median(quick),
                    "quick_worst_ms": max(quick),
                    "quick_worse": statistics.mean(worse),
                    "batch_us_each": 1e6 * min(batch) / len(many),
                }
            )
    return rows


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what work gives, and how long it computed in seconds: this thread's own time, whoever else computes."""
    begun = time.thread_time()
    result = work()
    return result, time.thread_time() - begun


def missed_floors(found: dict[str, list[dict[str, Any]]]) -> Any:
    """Yield a line for each floor that was missed."""
    for row in found["beside_slsqp"]:
        name = f"{row['rule']}, {row['directions']}"
        if not max(row["largest_gap"], row["largest_bound_gap"]) <= MOST_GAP:
            yield f"{name}: a gap of at most {MOST_GAP:g} is asked for"
    if not ratio_of_all(found["beside_slsqp"]) >= LEAST_RATIO:
        yield f"all problems: at least {LEAST_RATIO:g} times the speed of SLSQP is asked for"
    for row in found["one_layer"]:
        name, directions = f"{row['rule']}, {row['directions']}", row["directions"]
        most = (MOST_US_TABLE if row["rule"].startswith("table") else MOST_US)[directions]
        for devices in (4, 8):
            if not (row[f"us_{devices}"] <= most[0] and row[f"p95_us_{devices}"] <= most[1]):
                yield f"{name}: at most {most[0]:g} us, and 95 % in {most[1]:g}, are asked for with {devices} devices"
        if not row["largest_gap"] <= MOST_GAP:
            yield f"{name}: no more than one share for both directions in arrays, but for {MOST_GAP:g}, is asked for"
    for row in found["many_layers"]:
        name = f"{row['rule']}, {row['directions']}, many layers"
        if row["rule"] in ("linear", "shannon") and not row["quick_worse"] <= MOST_QUICK_GAP:
            yield f"{name}: in a hurry a gap of at most {MOST_QUICK_GAP:g} is asked for"


def ratio_of_all(rows: list[dict[str, Any]]) -> float:
    """Return how many times SLSQP's time is ours, for all problems together."""
    theirs, ours = (sum(row["problems"] * row[name] for row in rows) for name in ("slsqp_us", "ours_us"))
    return float(theirs / ours)


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print the tables."""
    print("beside SLSQP, 2 to 64 devices")
    heads = ("n", 5), ("gap", 11), ("to bound", 11), ("us", 9), ("SLSQP gap", 11), ("SLSQP us", 10)
    heads += ("ratio", 8), ("median", 8)
    print(f"{'rule':<9}{'shares':<10}" + "".join(f"{head:>{width}}" for head, width in heads))
    for row in found["beside_slsqp"]:
        print(
            f"{row['rule']:<9}{row['directions']:<10}{row['problems']:>5}{row['largest_gap']:>11.1e}"
            f"{row['largest_bound_gap']:>11.1e}{row['ours_us']:>9.0f}{row['slsqp_largest_gap']:>11.1e}{row['slsqp_us']:>10.0f}"
            f"{row['ratio']:>8.0f}{row['median_ratio']:>8.0f}"
        )
    print(f"all: {ratio_of_all(found['beside_slsqp']):.0f} times the speed of SLSQP")
    print("\nfor one layer, us by devices: the median, and in brackets what 95 % are below")
    sizes = [name for name in found["one_layer"][0] if name.startswith("us_")]
    print(f"{'rule':<17}{'shares':<10}" + "".join(f"{name[3:]:>14}" for name in sizes) + f"{'gap':>9}")
    for row in found["one_layer"]:
        cells = [
            f"{row[name]:.0f}" + (f" ({row['p95_' + name]:.0f})" if "p95_" + name in row else "")
            for name in sizes
        ]
        print(
            f"{row['rule']:<17}{row['directions']:<10}"
            + "".join(f"{cell:>14}" for cell in cells)
            + f"{row['largest_gap']:>9.0e}"
        )
    print(
        "\nfor 32 layers and 8 devices, ms; in a hurry: the median, the longest, and how much worse; a batch of 1,000"
    )
    print(f"{'rule':<17}{'shares':<10}{'ms':>8}{'hurry':>8}{'longest':>9}{'worse':>9}{'us each':>9}")
    for row in found["many_layers"]:
        print(
            f"{row['rule']:<17}{row['directions']:<10}{row['epigraph_32x8_ms']:>8.1f}{row['quick_32x8_ms']:>8.1f}"
            f"{row['quick_worst_ms']:>9.1f}{row['quick_worse']:>9.0e}{row['batch_us_each']:>9.1f}"
        )


if __name__ == "__main__":
    sys.exit(main())
