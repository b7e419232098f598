#!/usr/bin/env python3
"""What a trained model of semantic broadcast reaches on the held-out sets, and its folder with the card.

    python scripts/semcast_card.py payloads/models/semcast-fusion

Every training ends with it; this measures a finished model again and writes its card anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from semcast_data import read_sets

from payloads.semcast.channels import draw_gains, receive
from payloads.semcast.model_folder import load_network
from payloads.semcast.network import Broadcast
from payloads.semcast.seeds import generator
from payloads.semcast.settings import Conditions, NetworkSettings
from testbed.semcast.pairs import image_of

__all__ = ["evaluated", "write_card", "write_model"]

SNR_PAIRS = ((10.0, 1.0), (15.0, 5.0), (10.0, 10.0))
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)
TRAINED_SLOTS = (64, 32)
KINDS = {"log": "log square", "square": "square"}
PLAYS = {
    "fusion": "learned fusion of all users' features",
    "joint_division": "the rival: power and slots shared out as for the fusion, each user alone in its slots",
    "time_division": "the rival: time division, each user alone in its part of the slots",
    "superposition": "the rival: superposition, a share of the power each, the weaker users' pictures cancelled",
}


def main() -> None:
    """Measure finished models again, and write their cards anew; weights stay what they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="FOLDER", help="folders of finished models")
    parser.add_argument("--held-out", type=Path, default=Path("payloads/images"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    held_out = read_sets(options.held_out)
    for folder in options.models:
        network = load_network(folder)
        training = json.loads((folder / "config.json").read_text(encoding="utf-8"))["training"]
        write_card(folder, network, training, held_out)
        print(f"{folder / 'README.md'}", flush=True)


@torch.inference_mode()
def psnr_db(
    network: Broadcast,
    pictures: torch.Tensor,
    snr_db: tuple[float, ...],
    shares: tuple[float, ...],
    slots: int,
) -> list[float]:
    """Return each user's mean PSNR over 8-bit pixels, each picture (N, 3, H, W) once in every user's place."""
    count, users = len(pictures), network.settings.users
    total = [0.0] * users
    # Small batches, so that little memory is needed.
    for rows in torch.arange(count).split(24 if pictures.shape[-1] <= 64 else 6):
        order = torch.tensor(
            [[image_of(row, user, users, count) for user in range(users)] for row in rows.tolist()]
        )
        images = pictures[order]
        size = len(rows)
        conditions = Conditions(
            torch.tensor([snr_db]).repeat(size, 1), torch.tensor([shares]).repeat(size, 1), slots
        )
        frame = network.encode(images, conditions)
        for user in range(users):
            draw = generator(0, "held-out", int(rows[0]), user)
            gains = draw_gains(size, "none", 0.0, draw)
            symbols = receive(frame.symbols, conditions.snr_db[:, user], gains, draw).symbols
            grid = (images.shape[3] // 8, images.shape[4] // 8)
            decoded = network.decode(symbols, frame.scale, user, conditions, grid)
            levels = (decoded.clamp(0, 1) * 255).round() / 255
            error = (levels - images[:, user]).square().mean(dim=(1, 2, 3)).clamp_min(1e-10)
            total[user] += float((-10 * error.log10()).sum())
    return [round(value / count, 2) for value in total]


def evaluated(
    network: Broadcast, held_out: dict[str, torch.Tensor], *, briefly: bool = False
) -> dict[str, Any]:
    """Return the mean PSNR of each user by set, slots, SNR pair and share of user 1."""
    answer: dict[str, Any] = {}
    for name, pictures in held_out.items():
        for slots in TRAINED_SLOTS[:1] if briefly else TRAINED_SLOTS:
            for pair in SNR_PAIRS[:2] if briefly else SNR_PAIRS:
                # Users between the first and the last share what these leave, and have SNRs in between.
                users = network.settings.users
                snr_db = tuple(pair[0] + (pair[1] - pair[0]) * user / (users - 1) for user in range(users))
                for share in (0.5,) if briefly else SHARES:
                    shares = (share, *([(1 - share) / (users - 1)] * (users - 1)))
                    key = f"{name} {slots} {pair[0]:g}/{pair[1]:g} {share:g}"
                    answer[key] = psnr_db(network, pictures, snr_db, shares, slots)
    return answer


def write_model(
    out: Path,
    network: Broadcast,
    training: dict[str, Any],
    held_out: dict[str, torch.Tensor],
) -> None:
    """Write a model's folder: ``model.safetensors``, ``config.json`` and the card ``README.md``."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, out / "model.safetensors")
    (out / "model.safetensors").chmod(0o644)
    facts = {**training, "processor": processor(), "torch": torch.__version__.split("+")[0]}
    write_card(out, network, facts, held_out)


def write_card(
    out: Path, network: Broadcast, training: dict[str, Any], held_out: dict[str, torch.Tensor]
) -> None:
    """Write ``config.json`` and the card of a model, with what it reaches on the held-out sets.

    Args:
        out: The model's folder.
        network: The model.
        training: How it was trained.
        held_out: The sets.
    """
    figures = evaluated(network, held_out)
    config = {
        "model_type": "semcast",
        **network.settings._asdict(),
        "trained_slots": list(TRAINED_SLOTS),
        "training": {**training, "psnr_db": figures},
    }
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    counts = {name: len(pictures) for name, pictures in held_out.items()}
    (out / "README.md").write_text(card(out.name, network, training, figures, counts), encoding="utf-8")


def processor() -> str:
    """Return the model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    wide = any("avx512_bf16" in line for line in lines)
    return (names[0] if names else platform.processor() or platform.machine()) + (
        " with avx512_bf16" if wide else ""
    )


def card(
    name: str, network: Broadcast, training: dict[str, Any], figures: dict[str, Any], counts: dict[str, int]
) -> str:
    """Return the card.

    Args:
        name: The model's.
        network: The model.
        training: How it was trained.
        figures: What :func:`evaluated` measured.
        counts: How many pictures each held-out set has.
    """
    settings = network.settings
    weights = sum(weight.numel() for weight in network.parameters())
    ablated = "".join(f" It is an ablation, {text}." for text in _left_out(settings))
    about = (
        f"Semantic image broadcast to {settings.users} users, {PLAYS[settings.scheme]}. {weights / 1e6:.2f} M weights,"
        f" backbone {settings.backbone}, width {settings.width}, {settings.blocks} blocks.{ablated} One model serves"
        " bandwidth ratios of 1/6 and 1/12, SNRs from -4 to 20 dB and every ratio between the users. A reconstruction"
        " after arXiv 2406.10556, which published no code."
    )
    how = (
        f"Trained for {training['steps']} steps, in each 32 pairs of 32 x 32 pixels and 4 pairs of 128 x 128 or about"
        f" as many pixels in pairs of 64 x 64 or 96 x 96, seed {training['seed']}, in {training['seconds'] / 60:.1f}"
        f" minutes with {training['threads']} thread(s) on {training['device']} ({training['processor']}, torch"
        f" {training['torch']}). Of the processor's time that was {training['processor_seconds'] / 60:.1f} minutes: it"
        f" had other work as well. Loss: the users' {KINDS[training['loss']]} errors, weighted by the ratio. Data:"
        f" {training['pictures']} photographs of the Debian packages lomiri-wallpapers-16.04, lomiri-wallpapers-20.04"
        " (CC BY, CC BY-SA, CC0) and mate-backgrounds (GPL-2+). Again with:"
    )
    tables = "\n".join(
        _table(set_name, count, slots, figures)
        for set_name, count in counts.items()
        for slots in TRAINED_SLOTS
    )
    return f"""---
license: apache-2.0
pipeline_tag: image-to-image
---
# {name}

{textwrap.fill(about, 120)}

{textwrap.fill(how, 120)}

```console
python scripts/semcast_images.py photographs --out .cache/semcast/photographs
{_command(name, settings, training)}
```

PSNR in dB of user 1 / user 2 over held-out pictures that were not trained on, the two of a pair cut out of different
ones, AWGN, symbols in full precision:

{tables}"""


def _left_out(settings: NetworkSettings) -> list[str]:
    """Return what an ablation goes without."""
    what = []
    if not settings.sees_csi:
        what.append("without CSI: the SNRs do not enter the networks")
    if not settings.by_similarity:
        what.append("without similarity: the fusion is not told how alike the features are")
    return what


def _command(name: str, settings: NetworkSettings, training: dict[str, Any]) -> str:
    """Return the command that trains a model again."""
    command = f"python scripts/train_semcast.py --out payloads/models/{name}"
    for option, value, usual in (
        ("--scheme", settings.scheme, "fusion"),
        ("--backbone", settings.backbone, "convolution"),
        ("--users", settings.users, 2),
        ("--width", settings.width, 96),
        ("--blocks", settings.blocks, 3),
        ("--steps", training["steps"], 4000),
        ("--seed", training["seed"], 1),
        ("--loss", training["loss"], "log"),
        ("--learning-rate", training["peak_learning_rate"], 2e-3),
    ):
        command += "" if value == usual else f" {option} {value}"
    command += "" if settings.sees_csi else " --no-csi"
    command += "" if settings.by_similarity else " --no-similarity"
    return f"{command} --threads {training['threads']}"


def _table(set_name: str, count: int, slots: int, figures: dict[str, Any]) -> str:
    """Return what is reached on one set at one bandwidth ratio, as a table with its title."""
    header = " | ".join(f"{first:g} / {last:g} dB" for first, last in SNR_PAIRS)
    lines = [
        f"`{set_name}` ({count} pictures), bandwidth ratio 1/{384 // slots}:",
        "",
        f"| share of user 1 | {header} |",
        "| --- |" + " --- |" * len(SNR_PAIRS),
    ]
    for share in SHARES:
        cells = (figures[f"{set_name} {slots} {first:g}/{last:g} {share:g}"] for first, last in SNR_PAIRS)
        lines.append(
            f"| {share:g} | " + " | ".join(" / ".join(f"{v:.2f}" for v in cell) for cell in cells) + " |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
