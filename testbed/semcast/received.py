"""What the transmitter and the receivers left of a trial, as the tables of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from payloads.semcast.spec import Frame, Spec, frames_of
from testbed.errors import InputError
from testbed.records.columns import Table, count, flag, number, text
from testbed.records.payload import read_payload_records, read_rows
from testbed.semcast.pairs import Pairs
from testbed.semcast.rows import Pixels, block_columns, digest, image_columns
from testbed.semcast.threads import one_thread

__all__ = ["PIXELS", "pixel_folder", "received_tables"]

PIXELS = "pixels.bin"
"""The file in which a receiver keeps what it decoded in a trial, one image after the other."""

_TRIAL, _FRAME = text("trial", "the trial"), count("frame", "the frame")

#: What the transmitter says of a frame.
_FRAMES = Table(
    "frames",
    "one frame",
    (
        _TRIAL,
        _FRAME,
        count("symbols", "complex symbols"),
        count("side_bits", "side information"),
        count("bytes", "bytes on the network"),
        count("copies", "how often it was sent"),
        number("encode_ms", "the transmitter's work"),
        number("t_send_s", "the first byte"),
        number("t_done_s", "the last answer"),
    ),
)
#: What a receiver says of a frame.
_RECEIVED = Table(
    "received",
    "one user's image of one frame",
    (
        _TRIAL,
        _FRAME,
        count("user", "the user, from 1"),
        text("device", "its device"),
        number("gain_db", "the gain"),
        number("believed_db", "the gain that is believed"),
        number("measured_snr_db", "the SNR"),
        flag("received", "whether there is an image"),
        number("air_ms", "the time on the network"),
        number("decode_ms", "the receiver's work"),
        text("noise_seed", "what noise and gain follow from"),
        text("digest", "of the pixels"),
        count("offset", "where the pixels begin"),
    ),
)


def pixel_folder(fetched: Path, device: str) -> Path:
    """Return the folder of what a receiver kept of a trial, beside that of the transmitter's records.

    Args:
        fetched: The folder of the transmitter's records.
        device: The receiver's device.
    """
    return fetched.with_name(f"{fetched.name}-{device}")


def received_tables(
    fetched: Path, run: str, trial: str, started_unix: float, *, spec: Spec, sets: Mapping[str, Pairs]
) -> tuple[dict[str, list[dict[str, Any]]], dict[tuple[int, int], Pixels]]:
    """Return the tables of a trial, and every decoded image by frame and user.

    Args:
        fetched: The folder of the transmitter's records.
        run: The run's name.
        trial: The trial's name.
        started_unix: The run's start in unix seconds on the base station's clock.
        spec: The run's specification.
        sets: The pairs of each set.

    Raises:
        InputError: A record does not fit, a frame or an image is missing, or pixels are not those that the receiver
            told of.
    """
    tables = read_payload_records(fetched, run, trial, started_unix, only=("events", "clocks"))
    sent = read_rows(fetched / "frames.jsonl", _FRAMES, run, trial, started_unix)
    heard = read_rows(fetched / "received.jsonl", _RECEIVED, run, trial, started_unix)
    asked = spec.trial(trial)
    frames = {frame.number: frame for frame in frames_of(spec, asked)}
    if [row["frame"] for row in sent] != list(frames):
        raise InputError(f"{fetched / 'frames.jsonl'}: {len(frames)} frames in order were expected")
    wanted = [(frame, user) for frame in frames for user in range(1, len(spec.users) + 1)]
    if sorted((row["frame"], row["user"]) for row in heard) != wanted:
        text = f"one row for each of {len(frames)} frames and {len(spec.users)} users was expected"
        raise InputError(f"{fetched / 'received.jsonl'}: {text}")
    if strange := [row["device"] for row in heard if row["device"] != spec.users[row["user"] - 1]]:
        raise InputError(
            f"{fetched / 'received.jsonl'}: {strange[0]} is not the device of the user that it stands by"
        )
    tables["frames"] = [
        {**row, **block_columns(frames[row["frame"]].block, sets), "model": frames[row["frame"]].model}
        for row in sent
    ]
    kept = {device: _pixels(pixel_folder(fetched, device) / PIXELS) for device in spec.users}
    pictures: dict[tuple[int, int], Pixels] = {}
    tables["images"] = []
    with one_thread():
        for row in heard:
            pixels = _image(row, frames[row["frame"]], kept[row["device"]], sets)
            pictures[row["frame"], row["user"]] = pixels
            offset_free = {key: value for key, value in row.items() if key != "offset"}
            measured = image_columns(
                spec, sets, frames[row["frame"]].block, asked.scenario, row["user"], pixels
            )
            tables["images"].append({**offset_free, **measured, "on_paper": False})
    return tables, pictures


def _pixels(path: Path) -> Pixels:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path}: the decoded images cannot be read: {error.strerror}") from None


def _image(row: Mapping[str, Any], frame: Frame, kept: Pixels, sets: Mapping[str, Pairs]) -> Pixels:
    shape: Sequence[int] = sets[frame.block.set].pixels.shape[2:]
    start, size = int(row["offset"]), int(np.prod(shape))
    if start < 0 or start + size > len(kept):
        raise InputError(
            f"{row['device']}: frame {row['frame']}: its image is not among those that were kept"
        )
    pixels = kept[start : start + size].reshape(tuple(shape))
    if digest(pixels) != row["digest"]:
        raise InputError(f"{row['device']}: frame {row['frame']}: its image is not the one that was decoded")
    return pixels
