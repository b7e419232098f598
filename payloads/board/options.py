"""The options of a service that computes on a board, and what follows from them."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from payloads.board.busy import BusyCounter
from payloads.board.pace import Pace

if TYPE_CHECKING:
    import torch

__all__ = ["Board", "add_board", "board_of", "expanded"]


class Board(NamedTuple):
    """Where a service computes.

    Attributes:
        pace: How fast the board is that it stands for; a real one is as fast as it is.
        busy: What counts the time spent busy, if anything.
        device: What computes.
    """

    pace: Pace
    busy: Optional[BusyCounter]
    device: torch.device


def add_board(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`board_of` reads."""
    parser.add_argument("--pace-ops-per-s", type=_positive, help="compute no faster than this")
    parser.add_argument("--pace-bytes-per-s", type=_positive, help="read memory no faster than this")
    parser.add_argument("--busy-file", type=expanded, help="counter of the nanoseconds spent busy")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")


def board_of(options: argparse.Namespace, service: str) -> Board:
    """Make this process one that computes on a board: one thread, and no pushing aside of who hands over the work.

    Where a base station shares the processor, as in the emulated lab, it would stand still in the middle of asking the
    devices, until the first of them has computed.

    Args:
        options: Of :func:`add_board`.
        service: The service's name, for what it says.
    """
    import torch

    torch.set_num_threads(1)
    # For speed only: a container may forbid it.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    pace = Pace(options.pace_ops_per_s, options.pace_bytes_per_s)
    return Board(pace, _busy_counter(options.busy_file, service), torch.device(name))


def expanded(text: str) -> Path:
    """Return a path, the home folder's sign replaced."""
    return Path(text).expanduser()


def _busy_counter(path: Optional[Path], service: str) -> Optional[BusyCounter]:
    if path is None:
        return None
    try:
        return BusyCounter(path)
    except OSError as error:
        # The counter tells others how busy this board is; the work is done without it as well.
        print(f"{service}: no busy counter: {path}: {error.strerror}", file=sys.stderr, flush=True)
        return None


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value
