"""Trials of a broadcast campaign played on this machine: learned schemes as the rack plays them, the others on paper.

A learned frame goes through the same functions as on the rack, one at a time and on one thread, with the same noise:
its images are those that the rack's devices decode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from payloads.semcast.spec import (
    Block,
    Frame,
    Spec,
    TrialSpec,
    channel_labels,
    frames_of,
    noise_seed,
    spec_of,
)
from testbed.campaigns.trials import Trial
from testbed.config.broadcast import BroadcastCampaign, Scheme
from testbed.errors import InputError
from testbed.semcast.blocks import blocks_of, broadcast_spec, shown_blocks
from testbed.semcast.models import Model
from testbed.semcast.pairs import Pairs
from testbed.semcast.rows import Pixels, block_columns, image_columns
from testbed.semcast.threads import one_thread

if TYPE_CHECKING:
    from payloads.semcast.network import Broadcast

__all__ = ["PlayedTrial", "Stage", "play_trial", "stage_of"]


@dataclass(frozen=True, eq=False)
class Stage:
    """All that playing trials here needs: plain data, so that it can go to another process.

    Attributes:
        spec: What is sent.
        sets: The pairs of each set.
        schemes: The schemes by name.
        models: The folder of each model.
        shown: The blocks whose images are kept as pictures.
    """

    spec: Spec
    sets: Mapping[str, Pairs]
    schemes: Mapping[str, Scheme]
    models: Mapping[str, Path]
    shown: frozenset[int]


class PlayedTrial(NamedTuple):
    """What came of a trial.

    Attributes:
        frames: Its rows of the table ``frames``.
        images: Its rows of the table ``images``.
        pictures: The decoded images that are shown, by frame and user.
    """

    frames: list[dict[str, Any]]
    images: list[dict[str, Any]]
    pictures: dict[tuple[int, int], Pixels]


class _Decoded(NamedTuple):
    """What one user has of one frame, and what the channel was."""

    pixels: Pixels
    columns: dict[str, Any]


def stage_of(
    campaign: BroadcastCampaign, run: str, sets: Mapping[str, Pairs], models: Mapping[str, Model]
) -> Stage:
    """Return what playing a campaign's trials here needs.

    Args:
        campaign: The campaign.
        run: The run's name.
        sets: The pairs of each set.
        models: The models by name.
    """
    spec = spec_of(broadcast_spec(campaign, run, "~", (), sets), Path())
    return Stage(
        spec=spec,
        sets=sets,
        schemes={scheme.name: scheme for scheme in campaign.schemes},
        models={name: model.folder for name, model in models.items()},
        shown=frozenset(shown_blocks(blocks_of(campaign, sets))),
    )


def play_trial(stage: Stage, trial: Trial) -> PlayedTrial:
    """Return what comes of a trial.

    Args:
        stage: What it needs.
        trial: The trial.

    Raises:
        InputError: A model cannot be used, or a scheme needs a library that is not here.
    """
    played = PlayedTrial([], [], {})
    with one_thread():
        for frame, columns, users in _frames(stage, trial):
            block = frame.block
            place = {"trial": trial.name, "frame": frame.number}
            model = frame.model or None
            played.frames.append({**place, **block_columns(block, stage.sets), "model": model, **columns})
            for user, decoded in enumerate(users, 1):
                measured = image_columns(stage.spec, stage.sets, block, trial.scenario, user, decoded.pixels)
                seed = noise_seed(stage.spec.seed, trial.repeat, block.pair, user)
                played.images.append({**place, **measured, **decoded.columns, "noise_seed": seed})
                first_model = frame.number == frame.number_of_block
                if trial.repeat == 0 and first_model and frame.number_of_block in stage.shown:
                    played.pictures[frame.number, user] = decoded.pixels
    return played


def _frames(stage: Stage, trial: Trial) -> Iterator[tuple[Frame, dict[str, Any], list[_Decoded]]]:
    """Yield a trial's frames, what is recorded of each, and what every user has of it."""
    scheme = stage.schemes[trial.policy]
    if scheme.kind == "learned":
        asked = TrialSpec(trial.policy, trial.scenario, trial.repeat)
        for frame in frames_of(stage.spec, asked):
            yield (frame, *_learned(stage, trial, frame))
        return
    for number, block in enumerate(stage.spec.blocks):
        yield (Frame(number, number, block, ""), *_on_paper(stage, trial, scheme, block))


def _learned(stage: Stage, trial: Trial, frame: Frame) -> tuple[dict[str, Any], list[_Decoded]]:
    import torch

    from payloads.semcast.play import play_frame

    scenario, block = stage.spec.scenarios[trial.scenario], frame.block
    played = play_frame(
        _network(stage.models[frame.model]),
        torch.from_numpy(stage.sets[block.set].pixels[block.pair]),
        scenario.snr_db,
        block.shares,
        block.slots,
        fading=scenario.fading,
        csi_error=scenario.csi_error,
        seed=stage.spec.seed,
        labels=channel_labels(trial.repeat, block.pair),
    )
    users = [
        _Decoded(
            one.pixels.numpy(),
            {
                "gain_db": one.gain_db,
                "believed_db": one.believed_db,
                "measured_snr_db": one.measured_snr_db,
                "received": True,
                "on_paper": False,
            },
        )
        for one in played.users
    ]
    return {"symbols": played.symbols, "side_bits": played.side_bits}, users


def _on_paper(
    stage: Stage, trial: Trial, scheme: Scheme, block: Block
) -> tuple[dict[str, Any], list[_Decoded]]:
    from payloads.semcast.play import gains_of
    from payloads.semcast.seeds import generator
    from testbed.semcast.codecs import grey
    from testbed.semcast.paper import Gain, play_on_paper

    spec, scenario = stage.spec, stage.spec.scenarios[trial.scenario]
    labels = channel_labels(trial.repeat, block.pair)
    images = stage.sets[block.set].pixels[block.pair]
    high, wide = images.shape[1:3]
    drawn = gains_of(spec.seed, labels, len(images), scenario.fading, scenario.csi_error)
    gains = [Gain(complex(*one.true[0].tolist()), complex(*one.believed[0].tolist())) for one in drawn]
    symbols = block.slots // 2 * (high // 8) * (wide // 8) + _side_symbols(len(images), scenario.snr_db)
    answers = play_on_paper(
        scheme,
        images,
        scenario.snr_db,
        block.shares,
        symbols,
        gains,
        generator(spec.seed, *labels, 0, "paper"),
        fading=scenario.fading,
        csi_error=scenario.csi_error,
    )
    users = [
        _Decoded(
            grey(high, wide) if answer.pixels is None else answer.pixels,
            {
                "gain_db": _db(gain.true),
                "believed_db": _db(gain.believed),
                "measured_snr_db": None,
                "received": answer.pixels is not None,
                "file_bits": answer.bits,
                "on_paper": True,
            },
        )
        for answer, gain in zip(answers, gains, strict=True)
    ]
    return {"symbols": symbols, "side_bits": 0}, users


def _side_symbols(users: int, snr_db: tuple[float, ...]) -> int:
    """Return how many symbols more a rival has: those in which a learned scheme's scales would reach all users."""
    from payloads.semcast.air import SCALE_BITS

    weakest = math.log2(1 + 10 ** (min(snr_db) / 10))
    return math.ceil(SCALE_BITS * users / weakest)


def _db(gain: complex) -> float:
    return 20 * math.log10(max(abs(gain), 1e-2))


@lru_cache(maxsize=8)
def _network(folder: Path) -> Broadcast:
    from payloads.semcast.model_folder import ModelError, load_network

    try:
        return load_network(folder)
    except ModelError as error:
        raise InputError(str(error)) from None
