#!/usr/bin/env python3
"""Train tiny-mixtral, the small Mixtral-type model that the project ships.

    python scripts/train_tiny_moe.py --out payloads/models/tiny-mixtral

About 16 M tokens of public-domain text (see corpus.py), 45 minutes on two free cores. The run can be
stopped and started again: it goes on from the last checkpoint in ``--work``. At the end it writes a
Hugging Face checkpoint (safetensors, fp16), the tokenizer, a model card with the measured held-out
perplexities, and the held-out text that campaigns measure quality on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from corpus import Source, load_corpus
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
SEQUENCE = 256
BATCH = 16
PEAK_LEARNING_RATE = 3e-3
WARM_UP_STEPS = 100
END_OF_TEXT = "<|endoftext|>"


def main() -> None:
    """Parse the command line, train, evaluate and write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=Path(".cache/tiny-moe"), help="text and checkpoints")
    parser.add_argument("--tokens", type=float, default=16e6, help="training tokens in all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=20240)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    sources = load_corpus(options.work / "text")
    tokenizer = load_tokenizer(sources, options.work / "tokenizer.json")
    model = MixtralForCausalLM(model_config())
    steps = math.ceil(options.tokens / (BATCH * SEQUENCE))
    seconds = train(model, encode_all(tokenizer, [source.train for source in sources]), steps, options)
    perplexities = {
        experts: {s.name: perplexity(model, tokenizer.encode(s.held_out).ids, experts) for s in sources}
        for experts in (1, 2, 3)
    }
    write_model(options, model, tokenizer, sources, perplexities, steps, seconds)


def model_config() -> MixtralConfig:
    """Return the shape of tiny-mixtral: 7.87 M parameters, 8 experts in each of 4 layers, top-2."""
    return MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        router_aux_loss_coef=0.02,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def load_tokenizer(sources: list[Source], path: Path) -> Tokenizer:
    """Train a byte-level BPE on the training text, or read the one of an earlier start."""
    if path.exists():
        return Tokenizer.from_file(str(path))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((source.train for source in sources), trainer)
    tokenizer.save(str(path))
    return tokenizer


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Encode the texts one after the other into a vector of token ids."""
    ids = [token for text in texts for token in [*tokenizer.encode(text).ids, 0]]
    return torch.tensor(ids, dtype=torch.long)


def train(model: MixtralForCausalLM, data: torch.Tensor, steps: int, options: argparse.Namespace) -> float:
    """Train to ``steps`` steps, going on from a checkpoint where there is one; return the seconds."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK_LEARNING_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    checkpoint = options.work / "checkpoint.safetensors"
    done, seconds = restore(checkpoint, model, optimizer)
    model.train()
    began = last = time.monotonic()
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        generator = torch.Generator().manual_seed(options.seed + step)
        starts = torch.randint(len(data) - SEQUENCE, (BATCH, 1), generator=generator)
        batch = data[starts + torch.arange(SEQUENCE)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(input_ids=batch, labels=batch, output_router_logits=True)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            now = time.monotonic()
            rate = 50 * BATCH * SEQUENCE / (now - last)
            last = now
            loss = float(output.loss) - 0.02 * float(output.aux_loss)
            left = (steps - step - 1) * BATCH * SEQUENCE / rate / 60
            print(
                f"step {step + 1}/{steps}  loss {loss:.3f}  {rate:.0f} tokens/s  {left:.0f} min left",
                flush=True,
            )
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save(checkpoint, model, optimizer, step + 1, seconds + time.monotonic() - began)
    return seconds + time.monotonic() - began


def learning_rate(step: int, steps: int) -> float:
    """Warm up linearly, then fall as a cosine to 2 % of the peak."""
    if step < WARM_UP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return PEAK_LEARNING_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def save(
    path: Path, model: MixtralForCausalLM, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Write weights and optimizer state to one safetensors file, whole or not at all."""
    tensors = {f"model/{name}": value.detach() for name, value in model.named_parameters()}
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            tensors[f"{key}/{name}"] = optimizer.state[parameter][key]
    partial = path.with_suffix(".part")
    save_file(tensors, str(partial), metadata={"step": str(step), "seconds": str(seconds)})
    partial.replace(path)


def restore(path: Path, model: MixtralForCausalLM, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Read a checkpoint back; return the steps done and the seconds they took."""
    if not path.exists():
        return 0, 0.0
    from safetensors import safe_open

    with safe_open(str(path), "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(str(path))
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"model/{name}"])
        optimizer.state[parameter] = {
            key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    print(f"going on from step {metadata['step']}", flush=True)
    return int(metadata["step"]), float(metadata["seconds"])


@torch.no_grad()
def perplexity(model: MixtralForCausalLM, ids: list[int], experts: int) -> float:
    """Return the perplexity over windows of 256 tokens with ``experts`` experts a token, in fp32."""
    model.eval()
    for layer in model.model.layers:
        layer.mlp.gate.top_k = experts
    windows = torch.tensor(ids[: len(ids) // SEQUENCE * SEQUENCE]).view(-1, SEQUENCE)
    total = count = 0.0
    for batch in windows.split(16):
        logits = model(input_ids=batch).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
        )
        total += float(loss)
        count += batch[:, 1:].numel()
    for layer in model.model.layers:
        layer.mlp.gate.top_k = model.config.num_experts_per_tok
    return math.exp(total / count)


def write_model(
    options: argparse.Namespace,
    model: MixtralForCausalLM,
    tokenizer: Tokenizer,
    sources: list[Source],
    perplexities: dict[int, dict[str, float]],
    steps: int,
    seconds: float,
) -> None:
    """Write the checkpoint, the tokenizer, the card and the held-out text."""
    options.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(options.out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(options.out)
    facts = {
        "training_tokens": steps * BATCH * SEQUENCE,
        "training_minutes": round(seconds / 60, 1),
        "seed": options.seed,
        "held_out_perplexity": {
            str(k): {n: round(v, 2) for n, v in p.items()} for k, p in perplexities.items()
        },
    }
    (options.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    (options.out / "README.md").write_text(card(facts))
    for source in sources:
        (options.out / f"held-out-{source.name}.txt").write_text(source.held_out)
    print(json.dumps(facts, indent=2))


def card(facts: dict) -> str:
    """Return the model card."""
    table = facts["held_out_perplexity"]
    names = list(table["2"])
    rows = "\n".join(
        f"| {experts} | " + " | ".join(f"{table[experts][name]:.2f}" for name in names) + " |"
        for experts in table
    )
    header = " | ".join(names)
    return f"""---
license: cc0-1.0
language: en
pipeline_tag: text-generation
---
# tiny-mixtral

A Mixtral-type mixture of experts of 7.87 M parameters (hidden 192, 4 layers, 8 experts a layer, top-2,
byte-level BPE of 2048 tokens), small enough to ship and trained enough that dropping an expert costs
something. It writes in the voice of its sources; it knows nothing.

- **Text**: six novels of Jane Austen (Debian package `r-cran-janeaustenr`) and the World English Bible
  (`sword-text-web`), both in the public domain. Every 20th block of about 20,000 characters is held out.
- **Training**: {facts["training_tokens"] / 1e6:.1f} M tokens in {facts["training_minutes"]:.0f} minutes on two
  shared cores, AdamW with peak rate 3e-3 and a cosine, batches of 16 x 256, bf16 autocast,
  seed {facts["seed"]}. `scripts/train_tiny_moe.py` builds it again.
- **Held-out perplexity**, measured in fp32 before rounding to fp16, windows of 256 tokens:

| experts a token | {header} |
| --- |{" --- |" * len(names)}
{rows}
"""


if __name__ == "__main__":
    main()
