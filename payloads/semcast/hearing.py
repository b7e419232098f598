"""What a receiver does in a trial: the channel that it draws, the image that it decodes, and what it keeps of both."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Dict, NamedTuple, Optional

import torch

from payloads.board.busy import BusyCounter, wait_until
from payloads.board.pace import Pace
from payloads.semcast.about import About, about_of
from payloads.semcast.air import Sent
from payloads.semcast.cost import counted
from payloads.semcast.kept import Keeper
from payloads.semcast.messages import (
    PIECE_BYTES,
    SYMBOL_BYTES,
    FrameHead,
    Report,
    pack_missing,
    pack_report,
    pieces_of,
    unpack_begin,
    unpack_frame,
    unpack_pieces,
)
from payloads.semcast.multicast import Collector
from payloads.semcast.network import Broadcast
from payloads.semcast.play import Heard, digest, gains_of, hear, pixel_bytes
from payloads.semcast.seeds import generator
from payloads.semcast.settings import Conditions
from payloads.semcast.shelf import Shelf
from payloads.semcast.spec import channel_labels
from payloads.wire.frames import Buffer, FrameError

__all__ = ["Listener", "TrialError"]

#: How much later than expected pieces may come by multicast before they are asked for again.
GRACE_S = 0.1


class TrialError(Exception):
    """A frame comes outside of a trial, or does not fit the one that has begun."""


class _Shape(NamedTuple):
    """What the cost of decoding a frame depends on."""

    model: str
    user: int
    slots: int
    high: int
    wide: int


class Listener:
    """Hears the frames of one trial after the other.

    Args:
        shelf: The models.
        folder: The run's folder.
        pace: How fast the board is that it stands for.
        busy: What counts the time spent busy, if anything.
        device: Where to compute.
    """

    def __init__(
        self, shelf: Shelf, folder: Path, pace: Pace, busy: Optional[BusyCounter], device: torch.device
    ) -> None:
        self._shelf = shelf
        self._folder = folder
        self._pace = pace
        self._busy = busy
        self._device = device
        self._about: Optional[About] = None
        self._keeper: Optional[Keeper] = None
        self._collector: Optional[Collector] = None
        self._coming: Optional[FrameHead] = None
        self._paced_s: Dict[_Shape, float] = {}

    def begin(self, payload: memoryview) -> None:
        """Begin a trial; what another one has left, and did not end, is dropped.

        Raises:
            FrameError: The message breaks the format.
            MulticastError: The frames' group cannot be heard.
            KeepError: Images cannot be kept.
            ShelfError: A model is not here.
        """
        about = about_of(unpack_begin(payload))
        self.close()
        for model in about.models:
            self._shelf.network(model).to(self._device)
        self._keeper = Keeper(self._folder / about.trial)
        if about.air is not None:
            self._collector = Collector(*about.air)
        self._about = about

    def end(self) -> None:
        """Let the trial's images appear.

        Raises:
            KeepError: There is no room for them.
            TrialError: No trial has begun.
        """
        if self._keeper is None:
            raise TrialError("no trial has begun here")
        self._keeper.keep()
        self.close()

    def close(self) -> None:
        """Drop what was not ended."""
        if self._collector is not None:
            self._collector.close()
        if self._keeper is not None:
            self._keeper.close()
        self._about = self._keeper = self._collector = self._coming = None

    def frame(self, payload: memoryview, received_ns: int) -> bytes:
        """Return the answer to a frame.

        Raises:
            FrameError: The message breaks the format.
            KeepError: There is no room for the image.
            TrialError: It does not fit the trial.
        """
        head, data = unpack_frame(payload)
        self._fits(head)
        if not head.pieces:
            return self._decode(head, data, received_ns)
        if self._collector is None:
            raise TrialError(
                "a frame is said to come by multicast, of which the trial's beginning knew nothing"
            )
        self._coming = head
        until_s = time.monotonic() + head.within_ms / 1e3 + GRACE_S
        lacking = self._collector.gather(head.number, head.data_bytes, until_s)
        return self._gathered(head, received_ns) if not lacking else pack_missing(head.number, lacking)

    def pieces(self, payload: memoryview) -> bytes:
        """Return the answer to pieces that came again.

        Raises:
            FrameError: The message breaks the format, or they are no pieces of the frame that is on its way.
            KeepError: There is no room for the image.
        """
        pieces, head, collector = unpack_pieces(payload), self._coming, self._collector
        if head is None or collector is None or pieces.number != head.number:
            raise TrialError(f"pieces of frame {pieces.number}, which is not on its way")
        for place, index in enumerate(pieces.indexes):
            one = pieces.data[PIECE_BYTES * place : PIECE_BYTES * (place + 1)]
            if index >= pieces_of(head.data_bytes) or not collector.add(index, one):
                raise FrameError(f"piece {index} is none of frame {head.number}")
        return self._gathered(head, 0)

    def _gathered(self, head: FrameHead, received_ns: int) -> bytes:
        """Return the answer to a frame whose pieces are there, if they are."""
        assert self._collector is not None
        data, lacking, last_ns = self._collector.taken()
        if lacking:
            return pack_missing(head.number, lacking)
        self._coming = None
        # The head may have come before the last piece, or after it.
        return self._decode(head, data, max(received_ns, last_ns))

    def _fits(self, head: FrameHead) -> None:
        about = self._about
        if about is None:
            raise TrialError("no trial has begun here")
        if len(head.shares) != len(about.scenario.snr_db):
            raise TrialError(
                f"a frame for {len(head.shares)} users in a trial for {len(about.scenario.snr_db)}"
            )
        if head.model >= len(about.models):
            raise TrialError(f"a frame of model {head.model}, and the trial has {len(about.models)}, from 0")

    def _decode(self, head: FrameHead, data: Buffer, received_ns: int) -> bytes:
        """Decode an image, keep it, and return the report."""
        about = self._about
        assert about is not None
        assert self._keeper is not None
        started_ns = time.monotonic_ns()
        shape = _Shape(about.models[head.model], about.user, head.slots, head.high, head.wide)
        network = self._shelf.network(shape.model)
        if shape in self._paced_s:
            heard = self._hear(network, about, head, data)
        else:
            with counted(network) as meter:
                heard = self._hear(network, about, head, data)
            self._paced_s[shape] = self._pace.seconds(*meter.cost)
        worked_ns, paced_ns = time.monotonic_ns() - started_ns, round(self._paced_s[shape] * 1e9)
        if self._busy is not None:
            self._busy.add(worked_ns)
        wait_until(started_ns + paced_ns, self._busy)
        decoded_ns = time.monotonic_ns()
        pixels = pixel_bytes(heard.pixels)
        if head.kept:
            self._keeper.add(pixels)
        report = Report(
            head.number,
            received_ns,
            started_ns,
            decoded_ns,
            time.monotonic_ns(),
            heard.measured_snr_db,
            heard.gain_db,
            heard.believed_db,
            0 < paced_ns < worked_ns,
            digest(heard.pixels),
        )
        return pack_report(report)

    def _hear(self, network: Broadcast, about: About, head: FrameHead, data: Buffer) -> Heard:
        """Return what this user makes of a frame; its gain and its noise follow from the campaign's seed."""
        _, fading, csi_error = about.scenario
        users, user = len(head.shares), about.user
        labels = channel_labels(about.repeat, head.pair)
        return hear(
            network,
            Sent(bytes(data), head.scales, head.data_bytes // SYMBOL_BYTES, 0),
            user - 1,
            Conditions(torch.tensor([head.snr_db]), torch.tensor([head.shares]), head.slots),
            (head.high, head.wide),
            about.scenario.snr_db[user - 1],
            gains_of(about.seed, labels, users, fading, csi_error)[user - 1],
            generator(about.seed, *labels, user, "noise"),
        )
