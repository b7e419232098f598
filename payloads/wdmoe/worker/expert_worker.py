"""The worker of a device: holds experts, computes what the base station dispatches.

    python -m payloads.wdmoe.worker.expert_worker --wanted ~/.testbed/shards.json --listen 0.0.0.0:7070 \
        --tls ~/.testbed/tls

Needs torch and the standard library. A dispatch for experts that are not here is answered with an error;
a frame that breaks the format closes its connection; the worker goes on.
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
from typing import List, Optional, Sequence, Tuple

import torch

from payloads.artifacts.marks import Mark
from payloads.board.busy import BusyCounter, wait_until
from payloads.board.options import add_board, board_of, expanded
from payloads.board.pace import Pace
from payloads.metrics_http import MetricsServer, add_metrics, show_metrics
from payloads.services.ready import announce_ready
from payloads.wdmoe.worker.compute import ExpertBank, NotHeldError
from payloads.wdmoe.worker.metrics import WorkerMetrics
from payloads.wdmoe.worker.shards import ShardError, WantedList, describe, load_experts, read_wanted
from payloads.wire.auth import AuthError
from payloads.wire.credentials import add_credentials, credentials_of
from payloads.wire.frames import (
    Buffer,
    Dispatch,
    FrameError,
    Header,
    Kind,
    pack_error,
    pack_header,
    pack_result,
    unpack_dispatch,
)
from payloads.wire.server import Server, listen, parse_listen

__all__ = ["Worker", "main"]

NAME = "expert_worker"


class Worker:
    """Answers frames.

    Attributes:
        description: What it says of itself, as JSON.
    """

    def __init__(
        self,
        wanted: WantedList,
        objects: Path,
        pace: Pace,
        busy: Optional[BusyCounter] = None,
        device: Optional[torch.device] = None,
    ) -> None:
        device = device or torch.device("cpu")
        experts = load_experts(wanted, objects, device)
        self._bank = ExpertBank(
            experts, wanted.dtype, wanted.hidden_size, wanted.intermediate_size, wanted.activation, device
        )
        self._shape = wanted.shape()
        self._pace = pace
        self._busy = busy
        self._metrics: Optional[WorkerMetrics] = None
        self.description = json.dumps({**describe(wanted, experts), "pace": pace._asdict()}).encode()

    def count_in(self, metrics: WorkerMetrics) -> None:
        """Count dispatches in metrics from now on."""
        self._metrics = metrics

    def handle(self, header: Header, payload: memoryview, received_ns: int) -> Sequence[Buffer]:
        """Answer one frame.

        Raises:
            FrameError: The frame breaks the format.
        """
        if header.kind == Kind.DESCRIBE:
            return [pack_header(Kind.DESCRIPTION, len(self.description), header.sequence), self.description]
        if header.kind != Kind.DISPATCH:
            raise FrameError(f"a frame of kind {header.kind} is not for a worker")
        dispatch = unpack_dispatch(payload)
        try:
            return self._compute(dispatch, received_ns, header.sequence)
        except NotHeldError as error:
            print(f"{NAME}: layer {dispatch.layer}: {error}", file=sys.stderr, flush=True)
            if self._metrics is not None:
                self._metrics.not_held.add()
            return [pack_error(str(error), header.sequence)]
        except Exception as error:
            # Such as memory that ran out: logged in full, told to the base station, and no end of the service.
            traceback.print_exc()
            if self._metrics is not None:
                self._metrics.failed.add()
            return [pack_error(f"{type(error).__name__}: {error}", header.sequence)]

    def _compute(self, dispatch: Dispatch, received_ns: int, sequence: int) -> List[Buffer]:
        weights = self._bank.find(dispatch)
        started_ns = time.monotonic_ns()
        answer = self._bank.run(dispatch, weights)
        worked_ns = time.monotonic_ns() - started_ns
        if self._busy is not None:
            self._busy.add(worked_ns)
        paced_ns = round(self._shape.seconds(self._pace, dispatch.counts) * 1e9)
        wait_until(started_ns + paced_ns, self._busy)
        late = 0 < paced_ns < worked_ns
        computed_ns = time.monotonic_ns()
        head = pack_result(
            dispatch, received_ns, started_ns, computed_ns, time.monotonic_ns(), late, sequence
        )
        if self._metrics is not None:
            self._metrics.answered(time.monotonic_ns() - received_ns, worked_ns, sum(dispatch.counts))
        return [head, answer]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a worker until SIGTERM; return the exit status."""
    options = _parse(arguments)
    board = board_of(options, NAME)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        wanted = read_wanted(options.wanted)
        credentials = credentials_of(options)
        objects = options.objects or options.wanted.parent / "objects"
        mark = Mark("worker", [expert.object for expert in wanted.experts], objects)
        worker = Worker(wanted, objects, *board)
        server = Server(listen(*options.listen), credentials, worker.handle, NAME)
        shown = _show_metrics(worker, server, options.metrics)
    except (ShardError, AuthError, NotHeldError, OSError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    try:
        address, port = server.address
        print(
            f"{NAME}: serving {len(wanted.experts)} experts at {address}:{port}", file=sys.stderr, flush=True
        )
        # What is there now stays; the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        announce_ready()
        with torch.inference_mode():
            server.serve()
    finally:
        mark.close()
        server.close()
        if shown is not None:
            shown.close()
    return 0


def _show_metrics(
    worker: Worker, server: Server, address: Optional[Tuple[str, int]]
) -> Optional[MetricsServer]:
    """Serve a worker's metrics where an address is given."""
    if address is None:
        return None
    metrics = WorkerMetrics(json.loads(worker.description))
    metrics.follow(server)
    worker.count_in(metrics)
    return show_metrics(NAME, metrics.metrics, address)


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=NAME, description="Serve experts to the base station.")
    parser.add_argument("--wanted", type=expanded, required=True, help="the wanted list")
    parser.add_argument(
        "--objects", type=expanded, help="the objects' folder; default: beside the wanted list"
    )
    parser.add_argument("--listen", type=parse_listen, required=True, metavar="ADDRESS:PORT")
    add_credentials(parser)
    add_board(parser)
    add_metrics(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
