#!/usr/bin/env python3
"""How long it takes to find that nothing has to change on a rack, and to change everything: beside Ansible and pyinfra.

    python scripts/bench/provision.py [--boards 16 32] [--rounds 3] [--only ours ansible pyinfra] [--json]

Needs root. Everything runs on the same emulated boards in one run, in turns, each round in another order, so that only
ratios are to be trusted: the boards' processors are this machine's. Each contender is a program that is started, logs
in anew on all boards and does its steps (scripts/bench/provision_peers.py lists them):

- ``ours``: `testbed provision`;
- ``ansible``: ansible-playbook with 32 forks, pipelining, and one SSH connection a host that its tasks share;
- ``pyinfra``: all hosts at once.

The peers are installed by pip into an environment of their own (``--environment``) when it is missing. First runs start
from boards that were brought up for them; in a no-change run, each contender must say itself that nothing was changed.

Exit status 1: a contender failed or changed something, or in the median of no-change runs ours is less than 15 times
as fast as Ansible or less than 6 times as fast as pyinfra.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from provision_lab import inside, rack_up, write_inventory
from provision_peers import PEERS, Peer, Rack, make_environment

ROOT = Path(__file__).resolve().parents[2]
#: How many times as long each peer must take in a no-change run.
FLOORS = {"ansible": 15.0, "pyinfra": 6.0}
RUN_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Run:
    """One run of one contender.

    Attributes:
        seconds: From its start to its end.
        changes: How many changes it says that it made.
    """

    seconds: float
    changes: int


Contender = Callable[[], Run]


def main() -> int:
    """Measure all sizes, print a table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rounds", type=int, default=3, help="no-change runs of each contender")
    parser.add_argument(
        "--only", nargs="+", choices=["ours", *PEERS], default=["ours", *PEERS], metavar="NAME"
    )
    parser.add_argument("--environment", type=Path, default=ROOT / ".cache/bench-provision")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("emulated boards need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lab is ended
    programs = make_environment(options.environment) if set(options.only) & set(PEERS) else Path()
    # The slowest last: its first run leaves the boards on which the no-change runs begin.
    names = [name for name in ("ours", *PEERS) if name in options.only]
    rows = [measure(boards, names, options.rounds, programs) for boards in options.boards]
    failed = [line for row in rows for line in failures(row)]
    if options.json:
        print(json.dumps({"cpus": os.cpu_count(), "seconds": rows, "failed": failed}, indent=1))
    else:
        print_table(rows)
        for line in failed:
            print(f"FAILED: {line}")
    return 1 if failed else 0


def measure(boards: int, names: list[str], rounds: int, programs: Path) -> dict[str, object]:
    """Measure all contenders on racks of one size.

    Returns:
        The size, and the seconds of each contender's first run and of its no-change runs.
    """
    first: dict[str, float] = {}
    again: dict[str, list[float]] = {name: [] for name in names}
    with TemporaryDirectory(prefix="bench-provision-") as made:
        folder = Path(made)
        inventory = write_inventory(folder, boards)
        for name in names[:-1]:
            with rack_up(inventory, folder) as rack:
                first[name] = contenders(inventory, rack, folder, programs, [name])[name]().seconds
        with rack_up(inventory, folder) as rack:
            runs = contenders(inventory, rack, folder, programs, names)
            first[names[-1]] = runs[names[-1]]().seconds
            for name in names[:-1]:  # each in its own words, until none has anything to say
                runs[name]()
            order = random.Random(boards)
            for _ in range(rounds):
                names_in_turn = order.sample(names, len(names))
                for name in names_in_turn:
                    run = runs[name]()
                    if run.changes:
                        raise SystemExit(f"{name}: {run.changes} changes in a run that should change nothing")
                    again[name].append(run.seconds)
    return {"boards": boards, "first": first, "no_change": again}


def contenders(
    inventory: Path, rack: Rack, folder: Path, programs: Path, names: list[str]
) -> dict[str, Contender]:
    """Return what each contender's run is."""
    found: dict[str, Contender] = {}
    for name in names:
        if name == "ours":
            found[name] = partial(ours, inventory, list(rack.addresses), folder)
            continue
        place = folder / name
        place.mkdir(exist_ok=True)
        found[name] = partial(peers, name, PEERS[name](rack, place, programs), inventory)
    return found


def ours(inventory: Path, boards: list[str], folder: Path) -> Run:
    """Run `testbed provision`."""
    program = [sys.executable, "-c", "from testbed.cli.main import run; run()"]
    limits = [f"--limit={board}" for board in boards]  # the peers leave the base station alone, too
    argv = [*program, "provision", "--json", "--inventory", str(inventory), *limits]
    environ = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    seconds, output = timed("ours", inside(inventory, argv), ROOT, environ)
    results = json.loads(output)
    bad = [result["host"] for result in results if not result["ok"]]
    if bad:
        raise SystemExit(f"ours: failed on {', '.join(bad)}")
    return Run(seconds, sum(len(result["changes"]) for result in results if result["changed"]))


def peers(name: str, peer: Peer, inventory: Path) -> Run:
    """Run Ansible or pyinfra; its connections of an earlier run are gone."""
    shutil.rmtree(peer.folder / "home", ignore_errors=True)
    seconds, output = timed(name, inside(inventory, list(peer.argv)), peer.folder, peer.environ)
    return Run(seconds, peer.changes(output))


def timed(name: str, argv: list[str], folder: Path, environ: Mapping[str, str]) -> tuple[float, str]:
    """Run a program; return the seconds it took and what it printed."""
    begun = time.perf_counter()
    done = subprocess.run(
        argv, cwd=folder, env=os.environ | environ, capture_output=True, text=True, timeout=RUN_TIMEOUT_S
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{name}: exit status {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return seconds, done.stdout if name == "ours" else done.stdout + done.stderr


def failures(row: dict[str, object]) -> list[str]:
    """Return which floors do not hold, one line each."""
    again = row["no_change"]
    assert isinstance(again, dict)
    if not again.get("ours"):
        return []
    ours_s = statistics.median(again["ours"])
    failed = []
    for name, floor in FLOORS.items():
        if again.get(name) and (ratio := statistics.median(again[name]) / ours_s) < floor:
            failed.append(f"{row['boards']} boards: {ratio:.1f} times as fast as {name}, below {floor:g}")
    return failed


def print_table(rows: list[dict[str, object]]) -> None:
    """Print seconds, and their ratios to ours."""
    print(f"{'boards':>6} {'run':<10} {'contender':<10} {'median s':>9} {'min s':>7} {'times ours':>11}")
    for row in rows:
        first, again = row["first"], row["no_change"]
        assert isinstance(first, dict)
        assert isinstance(again, dict)
        for kind, times in (
            ("first", {name: [value] for name, value in first.items()}),
            ("no change", again),
        ):
            base = statistics.median(times["ours"]) if times.get("ours") else None
            for name, values in times.items():
                if not values:
                    continue
                median = statistics.median(values)
                ratio = f"{median / base:11.1f}" if base else ""
                print(f"{row['boards']:6} {kind:<10} {name:<10} {median:9.2f} {min(values):7.2f} {ratio}")


if __name__ == "__main__":
    sys.exit(main())
