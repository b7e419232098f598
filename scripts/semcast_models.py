#!/usr/bin/env python3
"""Train all models of semantic broadcast: those that are shipped, other training seeds, ablations.

    python scripts/semcast_models.py                    everything that is not there yet
    python scripts/semcast_models.py --list             what there is to train, and how far it is
    python scripts/semcast_models.py semcast-fusion     only these

The shipped ones are written to ``payloads/models``, the others to the folder of built models in the user's cache. Each
training is a process of its own with one thread, ``--at-once`` of them run side by side; what each says stands in
``.cache/semcast/logs/NAME.log``. All of it can be stopped and started again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from testbed.config.folders import built_models_folder  # noqa: E402

SHIPPED: dict[str, tuple[str, ...]] = {
    "semcast-fusion": (),
    "semcast-time-division": ("--scheme", "time_division"),
    "semcast-superposition": ("--scheme", "superposition"),
    "semcast-fusion-no-csi": ("--no-csi",),
}
BUILT: dict[str, tuple[str, ...]] = {
    "semcast-joint-division": ("--scheme", "joint_division"),
    "semcast-fusion-s2": ("--seed", "2"),
    "semcast-joint-division-s2": ("--scheme", "joint_division", "--seed", "2"),
    "semcast-joint-division-s3": ("--scheme", "joint_division", "--seed", "3"),
    "semcast-time-division-s2": ("--scheme", "time_division", "--seed", "2"),
    "semcast-superposition-s2": ("--scheme", "superposition", "--seed", "2"),
    "semcast-fusion-s3": ("--seed", "3"),
    "semcast-time-division-s3": ("--scheme", "time_division", "--seed", "3"),
    "semcast-superposition-s3": ("--scheme", "superposition", "--seed", "3"),
    "semcast-fusion-no-similarity": ("--no-similarity",),
    "semcast-fusion-window": ("--backbone", "window"),
    "semcast-time-division-window": ("--scheme", "time_division", "--backbone", "window"),
}
#: All models and their options, in the order in which they are trained.
MODELS = {**SHIPPED, **BUILT}


def main() -> None:
    """Train what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="only these; all without")
    parser.add_argument("--list", action="store_true", help="say what there is, and train nothing")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="trainings side by side")
    options = parser.parse_args()
    for name in options.models:
        if name not in MODELS:
            parser.error(f"{name}: one of {', '.join(MODELS)} was expected")
    wanted = [name for name in MODELS if not options.models or name in options.models]
    if options.list:
        for name in wanted:
            print(f"{name:32} {state(name)}")
        return
    with ThreadPoolExecutor(options.at_once) as pool:
        failed = [name for name, code in zip(wanted, pool.map(train, wanted), strict=True) if code]
    if failed:
        raise SystemExit(f"not trained: {', '.join(failed)}; see their logs")


def folder_of(name: str) -> Path:
    """Return the folder of a model."""
    return (ROOT / "payloads" / "models" if name in SHIPPED else built_models_folder()) / name


def log_of(name: str) -> Path:
    """Return where a training says how far it is."""
    return ROOT / ".cache" / "semcast" / "logs" / f"{name}.log"


def state(name: str) -> str:
    """Return how far a training is."""
    if (folder_of(name) / "README.md").exists():
        return f"done: {folder_of(name)}"
    if not log_of(name).exists():
        return "not begun"
    steps = [
        line for line in log_of(name).read_text(encoding="utf-8").splitlines() if line.startswith("step ")
    ]
    return steps[-1] if steps else "begun"


def train(name: str) -> int:
    """Train a model that is not there yet; return the exit code."""
    if (folder_of(name) / "README.md").exists():
        return 0
    print(f"training {name}: {log_of(name)}", flush=True)
    log_of(name).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "scripts" / "train_semcast.py"), "--out", str(folder_of(name))]
    with log_of(name).open("a", encoding="utf-8") as log:
        code = subprocess.run(
            [*command, "--threads", "1", *MODELS[name]], cwd=ROOT, stdout=log, stderr=log, check=False
        ).returncode
    print(f"{name}: {state(name) if not code else f'failed with exit code {code}'}", flush=True)
    return code


if __name__ == "__main__":
    main()
