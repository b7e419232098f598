#!/usr/bin/env python3
"""How fast a split model writes beside the same model in one process, on this machine's cores, and where the rest goes.

    sudo python scripts/bench/end_to_end.py [--model smollm2-moe] [--rounds 2] [--json]

The split model runs in the emulated lab of ``inventory/emulated.yaml``, with links that nothing shapes and boards
without a pace, over TLS and in the plain mode, and with one, two, four and eight requests at once. The local one is
transformers' own model with its default experts. Both decode the same prompts greedily, in turn, round after round.

Exit status 1: in the better of the two modes the split model writes fewer than 0.6 times the local one's tokens a
second, or two, four or eight requests do not raise the throughput of one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from testbed.config.folders import built_models_folder  # noqa: E402

PROMPTS = (
    "The history of the railway in the north of England begins with coal,",
    "A good soup starts with an onion that is cooked slowly until",
    "The moon has no air, and so its sky is black even",
    "When the harvest was over, the whole village came together to",
    "Steel is harder than iron because the carbon that it holds",
    "She opened the letter, read it twice, and then she",
    "In winter the river freezes from its banks, and the children",
    "A map is a picture of the land as seen from above, drawn",
)
TOKENS = 48
FLOOR = 0.6
CONCURRENT = (1, 2, 4, 8)
TESTBED = [sys.executable, "-c", "from testbed.cli.main import run; run()"]


def main() -> int:
    """Measure both, print the ratio and the parts of a token's time; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-moe", help="name or folder of the model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--concurrent", type=int, nargs="+", default=list(CONCURRENT))
    parser.add_argument("--security", nargs="+", choices=["tls", "plain"], default=["plain", "tls"])
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.rounds < 1 or options.concurrent[0] != 1:
        parser.error(
            "expected --rounds above 0, and --concurrent to begin with 1: the others are compared with it"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no lab stays behind
    if Path(options.model).is_dir():
        options.model = str(Path(options.model).resolve())
    local: list[float] = []
    split: dict[str, list[dict[str, Any]]] = {security: [] for security in options.security}
    with TemporaryDirectory(prefix="end-to-end-") as name:
        for number in range(options.rounds):
            local += local_rates(options.model)
            for security in options.security:
                folder = Path(name) / f"{security}-{number}"
                folder.mkdir()
                split[security].append(lab_rates(folder, options.model, security, options.concurrent))
    result = summary(local, split)
    failed = failures(result)
    if options.json:
        print(json.dumps({**result, "cpus": os.cpu_count(), "failed": failed}))
    else:
        print_result(result)
        for line in failed:
            print(f"FAILED: {line}")
    return 1 if failed else 0


def local_rates(model: str) -> list[float]:
    """Return the tokens a second that one local process writes, one figure a prompt."""
    command = [sys.executable, __file__, "--local", model]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(line) for line in answer.split()]


def run_local(model: str) -> None:
    """Write with the whole model in this process; print each prompt's tokens a second."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from payloads.wdmoe.families import moefied

    moefied.register()
    folder = Path(model) if Path(model).is_dir() else built_models_folder() / model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    for number, prompt in enumerate((PROMPTS[0], *PROMPTS)):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        begun = time.perf_counter()
        with torch.inference_mode():
            whole.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
            )
        if number:  # the first is a warm-up
            print(TOKENS / (time.perf_counter() - begun))


def lab_rates(folder: Path, model: str, security: str, concurrent: Sequence[int]) -> dict[str, Any]:
    """Run the split model in the emulated lab.

    Args:
        folder: Where the campaign, its inventory and its results go.
        model: The model.
        security: What protects the data plane: ``tls`` or ``plain``.
        concurrent: How many requests are answered at once, one scenario each.

    Returns:
        ``tokens_per_s`` by the number of requests, and ``parts_ms``, the mean parts of a decoded token's time with one.
    """
    from testbed.records.listing import find_run
    from testbed.records.run import load_run
    from testbed.report.breakdown import PARTS, mean_parts, token_parts
    from testbed.report.throughput import trial_throughput

    inventory = write_inventory(folder, security)
    campaign = write_campaign(folder, inventory, model, concurrent)
    with lab_up(inventory):
        testbed("run", str(campaign), "--results", str(folder / "results"))
    run = load_run(find_run(folder / "results", "latest"))
    rates = trial_throughput(run)
    means = mean_parts(token_parts(run), first=False)
    alone = means[means["scenario"] == f"at-once-{concurrent[0]}"].iloc[0]
    return {
        "tokens_per_s": {
            str(row.concurrency): float(row.tokens_per_s)
            for row in rates.sort_values("concurrency").itertuples()
        },
        "parts_ms": {name: float(alone[name]) for name in PARTS},
    }


def write_inventory(folder: Path, security: str) -> Path:
    """Write the emulated lab's inventory without links, without paces, and under a name of its own."""
    inventory = yaml.safe_load((ROOT / "inventory" / "emulated.yaml").read_text())
    text = json.dumps(inventory).replace(f"/labs/{inventory['lab']}/", "/labs/end-to-end/")
    inventory = json.loads(text.replace("10.83.0.", "10.87.0."))
    inventory["lab"] = "end-to-end"
    inventory["network"] = {"shaping": "none", "security": security, "wifi_interface": None}
    for host in inventory["hosts"].values():
        host.pop("pace", None)
    path = folder / "inventory.yaml"
    path.write_text(yaml.safe_dump(inventory))
    return path


def write_campaign(folder: Path, inventory: Path, model: str, concurrent: Sequence[int]) -> Path:
    """Write the campaign and its prompts."""
    prompts = [{"id": f"p{number}", "text": text} for number, text in enumerate(PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)) + "\n")
    campaign = {
        "campaign": "end-to-end",
        "inventory": str(inventory),
        "model": model,
        "dtype": "bfloat16",
        "seed": 1,
        "repeats": 1,
        "prompts": {"file": "prompts.jsonl", "count": len(PROMPTS), "max_new_tokens": TOKENS, "warmup": 1},
        # Speed is asked, not energy: the boards' own logs share the cores with what is measured.
        "telemetry": {"power_hz": 1.0, "jtop_hz": 0.1},
        # All that the router asks for.
        "policies": [{"name": "all", "selection": {"kind": "top_k", "k": experts_per_token(model)}}],
        "scenarios": [{"name": f"at-once-{n}", "links": {}, "concurrency": n} for n in concurrent],
    }
    path = folder / "end-to-end.yaml"
    path.write_text(yaml.safe_dump(campaign))
    return path


def experts_per_token(model: str) -> int:
    """Return how many experts the router of a model chooses for each token."""
    folder = Path(model) if Path(model).is_dir() else built_models_folder() / model
    return int(json.loads((folder / "config.json").read_text())["num_experts_per_tok"])


@contextmanager
def lab_up(inventory: Path) -> Iterator[None]:
    """Bring the lab up, and take it down at the end."""
    testbed("emulate", "up", "--inventory", str(inventory))
    try:
        yield
    finally:
        testbed("emulate", "down", "--inventory", str(inventory))


def testbed(*arguments: str) -> None:
    """Run a command of testbed.

    Raises:
        SystemExit: It failed; what it said is printed.
    """
    done = subprocess.run([*TESTBED, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise SystemExit(f"testbed {' '.join(arguments)} failed with status {done.returncode}")


def summary(local: Sequence[float], split: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return medians over the rounds."""

    def over(runs: Sequence[Mapping[str, Any]], what: str) -> dict[str, float]:
        return {name: statistics.median(run[what][name] for run in runs) for name in runs[0][what]}

    return {
        "local_tokens_per_s": statistics.median(local),
        "split": {
            security: {what: over(runs, what) for what in ("tokens_per_s", "parts_ms")}
            for security, runs in split.items()
        },
    }


def failures(result: Mapping[str, Any]) -> list[str]:
    """Return which floors do not hold, one line each."""
    failed = []
    best = max(next(iter(one["tokens_per_s"].values())) for one in result["split"].values())
    if best < FLOOR * result["local_tokens_per_s"]:
        failed.append(f"{best / result['local_tokens_per_s']:.2f} of the local process, below {FLOOR}")
    for security, one in result["split"].items():
        alone, *more = one["tokens_per_s"].items()
        failed += [
            f"{security}: {number} requests at once write {rate:.1f} tokens/s, one alone {alone[1]:.1f}"
            for number, rate in more
            if rate <= alone[1]
        ]
    return failed


def print_result(result: Mapping[str, Any]) -> None:
    """Print the rates and the parts of a token's time."""
    local = result["local_tokens_per_s"]
    print(f"one local process: {local:.1f} tokens/s")
    for security, one in result["split"].items():
        rates = [
            f"{number} at once {rate:.1f} ({rate / local:.2f})"
            for number, rate in one["tokens_per_s"].items()
        ]
        print(f"{security}: tokens/s (of the local one): {', '.join(rates)}")
        parts = [f"{name.removesuffix('_ms')} {ms:.1f}" for name, ms in one["parts_ms"].items() if ms > 0]
        print(f"{' ' * len(security)}  ms of a token: {', '.join(parts)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--local"]:
        run_local(sys.argv[2])
    else:
        sys.exit(main())
