"""The receiver of a device: hears frames over its own noisy channel, decodes its user's image, and reports.

    python -m payloads.semcast.receiver --models ~/.testbed/models.json --folder ~/.testbed/runs/RUN \
        --listen 0.0.0.0:7070 --tls ~/.testbed/tls

Needs torch and the standard library. What a frame's symbols meet on the air, noise and gain, is drawn here from the
campaign's seed, so that a local play of the same frame gives the same image. Images stay here until they are fetched.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Optional, Sequence

import torch

from payloads.board.busy import BusyCounter
from payloads.board.options import add_board, board_of, expanded
from payloads.board.pace import Pace
from payloads.metrics import Metrics
from payloads.metrics_http import add_metrics, follow_server, show_metrics
from payloads.semcast.hearing import Listener, TrialError
from payloads.semcast.kept import KeepError
from payloads.semcast.messages import What, pack_done, what_is
from payloads.semcast.multicast import MulticastError
from payloads.semcast.shelf import Shelf, ShelfError
from payloads.services.ready import announce_ready
from payloads.wire.auth import AuthError
from payloads.wire.credentials import add_credentials, credentials_of
from payloads.wire.frames import Buffer, FrameError, Header, Kind, pack_error, pack_header
from payloads.wire.server import Server, listen, parse_listen

__all__ = ["Receiver", "main"]

NAME = "receiver"


class Receiver:
    """Answers frames.

    Attributes:
        description: What it says of itself, as JSON.
        metrics: What it counts.

    Args:
        shelf: The models.
        folder: The run's folder, where the images of each trial go.
        pace: How fast the board is that it stands for.
        busy: What counts the time spent busy, if anything.
        device: Where to compute.
    """

    def __init__(
        self,
        shelf: Shelf,
        folder: Path,
        pace: Pace,
        busy: Optional[BusyCounter] = None,
        device: Optional[torch.device] = None,
    ) -> None:
        self._listener = Listener(shelf, folder, pace, busy, device or torch.device("cpu"))
        self.description = json.dumps({"models": shelf.identities(), "pace": pace._asdict()}).encode()
        self.metrics = Metrics()
        counter, errors = self.metrics.counter, "Messages that were answered with an error."
        self._failed = counter("testbed_receiver_errors_total", errors).labels()
        self._trials = counter(
            "testbed_receiver_trials_total", "Trials that were heard to their end."
        ).labels()
        text = "From the last byte of a frame to its report, a pace included."
        self._frame = self.metrics.histogram("testbed_receiver_frame_seconds", text).labels()

    def handle(self, header: Header, payload: memoryview, received_ns: int) -> Sequence[Buffer]:
        """Answer one frame.

        Raises:
            FrameError: The frame breaks the format.
        """
        if header.kind == Kind.DESCRIBE:
            return [pack_header(Kind.DESCRIPTION, len(self.description), header.sequence), self.description]
        if header.kind != Kind.DISPATCH:
            raise FrameError(f"a frame of kind {header.kind} is not for a receiver")
        what = what_is(payload)
        try:
            answer = self._answer(what, payload, received_ns)
        except FrameError:
            raise
        except Exception as error:
            # The trial has failed as a whole, so what it has kept goes at once: a full disk has room again.
            self.close()
            self._failed.add()
            return [pack_error(_told(error), header.sequence)]
        return [pack_header(Kind.RESULT, len(answer), header.sequence), answer]

    def close(self) -> None:
        """Drop what is not kept."""
        self._listener.close()

    def _answer(self, what: int, payload: memoryview, received_ns: int) -> bytes:
        listener = self._listener
        if what == What.BEGIN:
            listener.begin(payload)
        elif what == What.END:
            listener.end()
            self._trials.add()
        elif what in (What.FRAME, What.PIECES):
            answer = listener.frame(payload, received_ns) if what == What.FRAME else listener.pieces(payload)
            if what_is(memoryview(answer)) == What.REPORT:  # and not what it lacks
                self._frame.observe((time.monotonic_ns() - received_ns) * 1e-9)
            return answer
        else:
            raise FrameError(f"message {what} is not for a receiver")
        return pack_done()


def _told(error: Exception) -> str:
    """Log why a message is refused; return what the transmitter is told of it."""
    if isinstance(error, (KeepError, MulticastError, ShelfError, TrialError)):
        print(f"{NAME}: {error}", file=sys.stderr, flush=True)
        return str(error)
    # Such as memory that ran out: logged in full, and no end of the service.
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a receiver until SIGTERM; return the exit status."""
    options = _parse(arguments)
    board = board_of(options, NAME)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        shelf = Shelf(options.models)
        credentials = credentials_of(options)
        receiver = Receiver(shelf, options.folder, *board)
        server = Server(listen(*options.listen), credentials, receiver.handle, NAME)
        follow_server(receiver.metrics, "testbed_receiver", server)
        shown = None if options.metrics is None else show_metrics(NAME, receiver.metrics, options.metrics)
        kept = shelf.kept()
    except (AuthError, OSError, ShelfError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    try:
        address, port = server.address
        names = ", ".join(shelf.identities()) or "no model"
        print(f"{NAME}: hears {names} at {address}:{port}", file=sys.stderr, flush=True)
        gc.collect()
        gc.freeze()
        announce_ready()
        server.serve()
    finally:
        kept.close()
        server.close()
        receiver.close()
        if shown is not None:
            shown.close()
    return 0


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=NAME, description="Hear broadcast images.")
    parser.add_argument("--models", type=expanded, required=True, help="the list of models")
    parser.add_argument("--folder", type=expanded, required=True, help="the run's folder; images go below it")
    parser.add_argument("--listen", type=parse_listen, required=True, metavar="ADDRESS:PORT")
    add_credentials(parser)
    add_board(parser)
    add_metrics(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
