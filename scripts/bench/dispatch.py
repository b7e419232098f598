#!/usr/bin/env python3
"""What one dispatch costs in software: fan-out to four echo workers and gather, ours beside what others use.

    python scripts/bench/dispatch.py [--sets 3] [--rounds 200] [--only NAME ...] [--json]

Everything is timed in turn, in one run on one machine, each round in another order, so that only ratios are to be
trusted. Where the kernel puts the processes moves a time by a third: they are started anew for every set, and what is
told is the median of the sets' medians. Every worker gets the rows of all tokens and answers with as many; nobody
computes anything.

- ``blocking``: the least that a program can do: send to each worker, then receive from each, no checks;
- ``plain``, ``tls``: the project's data plane: epoll, checked frames, stamps; with a shared key, and over TLS 1.3;
- ``layer``: a whole layer at the base station, plain: sorting, packing, asking, weighing and summing in torch;
- ``pyzmq``, ``grpc``, ``rpc`` (torch.distributed.rpc), ``ray``: left out by name where they are not installed.

Exit status 1: at 1 to 8 tokens ``plain`` takes more than 1.3 times as long as ``blocking``, or at any size a peer is
faster than ``plain``, each in the median.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import random
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dispatch_ours
import dispatch_peers

#: What is timed: how it is set up, and the module that it needs beside the project's own.
CONTENDERS = {
    "blocking": (dispatch_ours.blocking, None),
    "plain": (dispatch_ours.plain, None),
    "tls": (dispatch_ours.tls, "cryptography"),
    "layer": (dispatch_ours.layer, "torch"),
    "pyzmq": (dispatch_peers.pyzmq, "zmq"),
    "grpc": (dispatch_peers.grpc_streams, "grpc"),
    "rpc": (dispatch_peers.torch_rpc, "torch"),
    "ray": (dispatch_peers.ray_actors, "ray"),
}
PEERS = ("pyzmq", "grpc", "rpc", "ray")
#: The most that ours may take of what blocking sockets take, and up to how many tokens.
FLOOR, FLOOR_TOKENS = 1.3, 8
WARMUP_ROUNDS = 10


def main() -> int:
    """Start all workers, time everything in turn, print a table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="rounds at one token; fewer for more")
    parser.add_argument("--sets", type=int, default=3, help="how often all processes are started anew")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 64, 512])
    parser.add_argument("--hidden", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    missing = [
        name
        for name in options.only
        if (needs := CONTENDERS[name][1]) and not importlib.util.find_spec(needs)
    ]
    names = [name for name in options.only if name not in missing]
    sizes = [(tokens, hidden) for hidden in options.hidden for tokens in options.tokens]
    sets = [measure_set(names, sizes, options.rounds) for _ in range(options.sets)]
    rows = [
        {key: statistics.median(row[key] for row in of_size) for key in of_size[0]}
        for of_size in zip(*sets, strict=True)
    ]
    failed = failures(rows)
    if options.json:
        result = {
            "cpus": os.cpu_count(),
            "missing": missing,
            "median_us": rows,
            "sets": sets,
            "failed": failed,
        }
        print(json.dumps(result))
    else:
        print_table(rows)
        for name in missing:
            print(f"left out: {name} (not installed)")
        for line in failed:
            print(f"FAILED: {line}")
    return 1 if failed else 0


def measure_set(names: list[str], sizes: list[tuple[int, int]], rounds: int) -> list[dict[str, float]]:
    """Start the workers of all contenders and time every size; return its rows."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        contenders = {name: CONTENDERS[name][0](stack, folder) for name in names}
        return [measure(contenders, tokens, hidden, rounds) for tokens, hidden in sizes]


def measure(
    contenders: dict[str, dispatch_ours.Rounds], tokens: int, hidden: int, rounds: int
) -> dict[str, float]:
    """Time one size.

    Returns:
        The size, and each contender's median in microseconds.
    """
    count = max(20, int(rounds / tokens**0.5))
    runs = [(name, make(tokens, hidden)) for name, make in contenders.items()]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = random.Random(tokens * hidden)
    gc.collect()
    gc.freeze()  # as the base station does
    for number in range(count + WARMUP_ROUNDS):
        order.shuffle(runs)
        for name, run in runs:
            begun = time.perf_counter()
            run()
            if number >= WARMUP_ROUNDS:
                times[name].append((time.perf_counter() - begun) * 1e6)
    return {"hidden": hidden, "tokens": tokens, **{name: statistics.median(times[name]) for name in times}}


def failures(rows: list[dict[str, float]]) -> list[str]:
    """Return which floors do not hold, one line each."""
    failed = []
    for row in rows:
        if "plain" not in row:
            continue
        ours, size = row["plain"], f"hidden {row['hidden']}, {row['tokens']} tokens"
        if row["tokens"] <= FLOOR_TOKENS and "blocking" in row and ours > FLOOR * row["blocking"]:
            failed.append(f"{size}: {ours / row['blocking']:.2f} times blocking sockets, above {FLOOR}")
        failed += [
            f"{size}: {name} is faster, {row[name]:.0f} us against {ours:.0f}"
            for name in PEERS
            if name in row and row[name] < ours
        ]
    return failed


def print_table(rows: list[dict[str, float]]) -> None:
    """Print medians and their ratios to the first contender's."""
    names = [name for name in rows[0] if name not in ("hidden", "tokens")]
    print(f"median us (ratio to {names[0]}), {dispatch_ours.WORKERS} workers, rows of 2-byte elements")
    print(f"{'hidden':>6} {'tokens':>6}  " + "  ".join(f"{name:>15}" for name in names))
    for row in rows:
        cells = [f"{row[name]:8.0f} ({row[name] / row[names[0]]:4.2f})" for name in names]
        print(f"{row['hidden']:6} {row['tokens']:6}  " + "  ".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
