"""A broadcast trial that was played here, and the images that are shown, on disk as those of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from payloads.semcast.spec import Block
from testbed.campaigns.trials import Trial
from testbed.semcast.models import Model
from testbed.semcast.pairs import Pairs
from testbed.semcast.rows import Pixels

if TYPE_CHECKING:
    from testbed.records import RecordWriter
    from testbed.semcast.play import PlayedTrial

__all__ = ["PICTURES", "described", "write_picture", "write_sources", "write_trial"]

PICTURES = "pictures"
"""The folder of a run's example images."""


def write_trial(
    trial: Trial, played: PlayedTrial, records: RecordWriter, t_start_s: float, t_end_s: float
) -> None:
    """Write a trial that was played here, whole or not at all.

    Args:
        trial: The trial.
        played: What came of it.
        records: The run's tables.
        t_start_s: When it began, in seconds since the run's start.
        t_end_s: When it ended.
    """
    for (frame, user), pixels in played.pictures.items():
        write_picture(records.folder / PICTURES, f"{trial.name}-{frame}-{user}", pixels)
    row = {
        "trial": trial.name,
        "order": trial.order,
        "policy": trial.policy,
        "scenario": trial.scenario,
        "repeat": trial.repeat,
        "state": "completed",
        "t_start_s": t_start_s,
        "t_end_s": t_end_s,
    }
    records.write_trial(row, {"frames": played.frames, "images": played.images})


def described(models: Mapping[str, Model], sets: Mapping[str, Pairs]) -> dict[str, Any]:
    """Return what a manifest says of models and images.

    Args:
        models: The models by name.
        sets: The pairs of each set.
    """
    return {
        "models": {name: model.described() for name, model in models.items()},
        "images": {
            name: {"pairs": len(one.names), "shape": list(one.pixels.shape), "sha256": one.digest}
            for name, one in sets.items()
        },
    }


def write_picture(folder: Path, name: str, pixels: Pixels) -> None:
    """Write one image as PNG.

    Args:
        folder: The run's folder of pictures.
        name: The picture's name, without an ending.
        pixels: (H, W, 3).
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png", format="PNG")


def write_sources(
    folder: Path, sets: Mapping[str, Pairs], blocks: Sequence[Block], shown: Iterable[int]
) -> None:
    """Write what was sent in the blocks that are shown: ``source-SET-PAIR-USER``."""
    for place in sorted({(blocks[number].set, blocks[number].pair) for number in shown}):
        for user, pixels in enumerate(sets[place[0]].pixels[place[1]], 1):
            write_picture(folder, f"source-{place[0]}-{place[1]}-{user}", pixels)
