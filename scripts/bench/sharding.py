#!/usr/bin/env python3
"""How long a large checkpoint takes to split, beside `cp` of the same files, and how much memory.

    python scripts/bench/sharding.py [--gb 20] [--rounds 2] [--scratch FOLDER] [--experts int8] [--json]

A synthetic Mixtral in bfloat16 is written to a scratch folder (in the published layout, in files of 4 GB with an
index), and removed at the end. In each round its files are copied with `cp -r` and split with `testbed shard`, one
after the other and in turn first; before each the files leave the page cache, and each counts until its bytes are on
the disk (`sync -f`). Then a split is killed with SIGKILL at a random moment and run again: the digests must be the
same, no other file may be left, and what was done is not made again.

The exit status is 1 when a floor is missed: at most 1.5 times the time of `cp` in the median, and less than 1 GB
resident.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from payloads.tensors import encode_header

MOST_RATIO = 1.5
MOST_RESIDENT_BYTES = 1_000_000_000
HIDDEN, WIDE, EXPERTS, VOCABULARY, KV = 4096, 14336, 8, 32000, 1024
FILE_BYTES = 4_000_000_000
BLOCK_BYTES = 32 << 20
LAYER_BYTES = 2 * (3 * EXPERTS * HIDDEN * WIDE + 2 * HIDDEN * HIDDEN + 2 * KV * HIDDEN + EXPERTS * HIDDEN)
DEADLINE_S = 3600.0


def main() -> int:
    """Write the checkpoint, measure, print, and say what floor was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=20.0, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--experts", choices=["int8"], help="as `testbed shard --experts`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sharding-", dir=options.scratch) as scratch:
        found = measure(Path(scratch), options)
    missed = list(missed_floors(found))
    if options.json:
        print(json.dumps({**found, "missed": missed}))
    else:
        show(found)
        for line in missed:
            print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def measure(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return times, ratios, memory, and what a killed split left behind."""
    model = scratch / "model"
    layers = max(1, round(options.gb * 1e9 / LAYER_BYTES))
    size = write_checkpoint(model, layers, options.seed)
    extra = ["--experts", options.experts] if options.experts else []
    copied_s, split_s, resident, digest = [], [], 0, ""
    for number in range(options.rounds):
        for what in ("cp", "split") if number % 2 == 0 else ("split", "cp"):
            forget(model)
            target = scratch / what
            if what == "cp":
                copied_s.append(timed(["cp", "-r", str(model), str(target)], target)[0])
            else:
                seconds, peak, out = timed(split_command(model, target, extra), target)
                split_s.append(seconds)
                resident, digest = max(resident, peak), json.loads(out)["digest"]
            shutil.rmtree(target)
    forget(model)
    killed = kill_and_go_on(model, scratch / "killed", extra, size, options.seed)
    return {
        "bytes": size,
        "experts": options.experts,
        "cp_s": copied_s,
        "split_s": split_s,
        "ratio": statistics.median(split_s) / statistics.median(copied_s),
        "resident_bytes": resident,
        "same_after_kill": killed.pop("digest") == digest,
        "killed": killed,
    }


def split_command(model: Path, out: Path, extra: Sequence[str]) -> list[str]:
    """Return the command that splits a model."""
    code = "import sys; from testbed.cli.main import run; sys.argv[0] = 'testbed'; run()"
    return [sys.executable, "-c", code, "shard", str(model), "--out", str(out), "--json", *extra]


def timed(command: Sequence[str], target: Path) -> tuple[float, int, str]:
    """Return the seconds that a command took until its files were on the disk, its peak of memory, and its output."""
    began = time.monotonic()
    child = start(command)
    peak = 0
    while child.poll() is None and time.monotonic() - began < DEADLINE_S:
        # Not the kernel's own sum of a child that ended: in that, the memory of this process counts as well.
        peak = max(peak, resident_bytes(child.pid))
        time.sleep(0.02)
    if child.poll() is None:
        child.kill()
    out = child.communicate()[0]
    if child.returncode:
        raise SystemExit(f"{command[0]} ended with status {child.returncode}")
    subprocess.run(["sync", "-f", str(target)], check=True, timeout=DEADLINE_S)
    return time.monotonic() - began, peak, out


def resident_bytes(pid: int) -> int:
    """Return the most memory that a process had resident so far; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command in this repository."""
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )


def kill_and_go_on(model: Path, target: Path, extra: Sequence[str], size: int, seed: int) -> dict[str, Any]:
    """Kill a split somewhere in its middle and run it again; return what came of it.

    The middle is told by the bytes: how long a split takes is not the same twice.
    """
    wanted = (
        size * random.Random(seed).uniform(0.2, 0.8) * (0.5 if extra else 1)
    )  # 8 bits are half of bfloat16
    began = time.monotonic()
    child = start(split_command(model, target, extra))
    while child.poll() is None and bytes_in(target / "objects") < wanted:
        time.sleep(0.02)
        if time.monotonic() - began > DEADLINE_S:
            break
    child.kill()
    child.communicate()
    at_s = time.monotonic() - began
    began = time.monotonic()
    facts = json.loads(
        subprocess.run(
            split_command(model, target, extra),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=DEADLINE_S,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        ).stdout
    )
    went_on_s = time.monotonic() - began
    manifest = json.loads((target / "manifest.json").read_text())
    named = {entry["object"] for part in ("experts", "base_station") for entry in manifest[part]}
    strays = sorted(path.name for path in (target / "objects").iterdir() if path.name not in named)
    shutil.rmtree(target)
    return {
        "digest": facts["digest"],
        "at_s": at_s,
        "went_on_s": went_on_s,
        "kept": facts["kept"],
        "written": facts["written"],
        "strays": strays,
    }


def bytes_in(folder: Path) -> int:
    """Return the bytes of the files in a folder that others write to."""
    total = 0
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def write_checkpoint(folder: Path, layers: int, seed: int) -> int:
    """Write a Mixtral of random weights, each tensor other than all others; return its bytes."""
    folder.mkdir()
    config = {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_attention_heads": 32,
        "num_key_value_heads": KV // 128,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_local_experts": EXPERTS,
        "vocab_size": VOCABULARY,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    files: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in tensors(layers):
        bytes_ = 2 * int(np.prod(shape))
        if size + bytes_ > FILE_BYTES and files[-1]:
            files.append({})
            size = 0
        files[-1][name] = shape
        size += bytes_
    weights = np.random.default_rng(seed).standard_normal(BLOCK_BYTES // 2, dtype=np.float32)
    block = (weights * np.float32(0.02)).view(np.uint32) >> 16
    weight_map, number = {}, 0
    for index, part in enumerate(files, 1):
        name = f"model-{index:05}-of-{len(files):05}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(
                encode_header({text: ("BF16", shape) for text, shape in part.items()}, {"format": "pt"})
            )
            for text, shape in part.items():
                weight_map[text] = name
                number += 1
                write_tensor(file, np.roll(block, 977 * number).astype(np.uint16), 2 * int(np.prod(shape)))
            file.flush()
            os.fsync(file.fileno())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(path.stat().st_size for path in folder.iterdir())


def tensors(layers: int) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of a Mixtral's tensors, in the published layout."""
    result: list[tuple[str, tuple[int, ...]]] = [
        ("model.embed_tokens.weight", (VOCABULARY, HIDDEN)),
        ("model.norm.weight", (HIDDEN,)),
        ("lm_head.weight", (VOCABULARY, HIDDEN)),
    ]
    for layer in range(layers):
        start = f"model.layers.{layer}."
        moe = f"{start}block_sparse_moe."
        result += [(f"{start}{norm}_layernorm.weight", (HIDDEN,)) for norm in ("input", "post_attention")]
        result += [(f"{start}self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)) for name in "qo"]
        result += [(f"{start}self_attn.{name}_proj.weight", (KV, HIDDEN)) for name in "kv"]
        result.append((f"{moe}gate.weight", (EXPERTS, HIDDEN)))
        for expert in range(EXPERTS):
            result += [
                (f"{moe}experts.{expert}.{part}.weight", (HIDDEN, WIDE) if part == "w2" else (WIDE, HIDDEN))
                for part in ("w1", "w2", "w3")
            ]
    return result


def write_tensor(file: Any, block: Any, size: int) -> None:
    """Write a tensor's bytes: a block again and again."""
    data = memoryview(block).cast("B")
    while size:
        count = min(size, len(data))
        file.write(data[:count])
        size -= count


def forget(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def missed_floors(found: dict[str, Any]) -> list[str]:
    """Return a line for each floor that was missed."""
    missed = []
    if found["ratio"] > MOST_RATIO:
        missed.append(f"{found['ratio']:.2f} times the time of cp, at most {MOST_RATIO} are allowed")
    if found["resident_bytes"] >= MOST_RESIDENT_BYTES:
        missed.append(f"{found['resident_bytes'] / 1e6:.0f} MB resident, less than 1000 are allowed")
    if not found["same_after_kill"]:
        missed.append("the digests of a split that was killed and went on are others")
    if not found["killed"]["written"]:
        missed.append("the split was done before it could be killed")
    if found["killed"]["strays"]:
        missed.append(f"files left behind: {', '.join(found['killed']['strays'])}")
    return missed


def show(found: dict[str, Any]) -> None:
    """Print what was found."""
    times = {name: ", ".join(f"{seconds:.1f}" for seconds in found[name]) for name in ("cp_s", "split_s")}
    killed = found["killed"]
    print(f"checkpoint: {found['bytes'] / 1e9:.2f} GB, experts {found['experts'] or 'as they are'}")
    print(f"cp:         {times['cp_s']} s")
    print(f"split:      {times['split_s']} s; {found['ratio']:.2f} times cp in the median")
    print(f"resident:   {found['resident_bytes'] / 1e6:.0f} MB at most")
    print(
        f"killed:     after {killed['at_s']:.1f} s, went on in {killed['went_on_s']:.1f} s: {killed['kept']} objects "
        f"were there, {killed['written']} were written, digests {'the same' if found['same_after_kill'] else 'DIFFER'}"
    )


if __name__ == "__main__":
    sys.exit(main())
