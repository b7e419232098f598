"""The base station: the model without its experts, and the conductor of the devices.

    python -m payloads.wdmoe.bs.base_station --manifest ~/.testbed/manifest.json \
        --devices ~/.testbed/devices.json --key-file ~/.testbed/key --control ~/.testbed/bs.sock \
        --links ~/.testbed/linkd.sock

It stays up when a device is lost: that trial fails, and the next one connects again.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

# Nothing may be looked up on a network; read by transformers when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

from payloads.services.ready import announce_ready
from payloads.wdmoe.bs.control import Control, ControlError, Job
from payloads.wdmoe.bs.fleet import FleetError
from payloads.wdmoe.bs.generate import AbandonedError
from payloads.wdmoe.bs.links import LinkControlError
from payloads.wdmoe.bs.spec import SpecError, read_spec
from payloads.wdmoe.bs.station import Station, StationError, lay_out_model
from payloads.wdmoe.user_policy import UserPolicyError
from payloads.wire.auth import AuthError, read_key
from payloads.wire.client import DeviceError
from payloads.wire.frames import DTYPE_BYTES, FrameError

__all__ = ["main", "serve"]

NAME = "base_station"

#: What ends a job and is no mistake of ours.
_FAILURES = (
    DeviceError,
    FleetError,
    FrameError,
    LinkControlError,
    OSError,
    SpecError,
    StationError,
    UserPolicyError,
)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the base station until SIGTERM; return the exit status."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        read_key(options.key_file)
        folder = lay_out_model(options.manifest)
        _say(f"loading {folder.manifest['model']} in {options.dtype}")
        station = Station(
            folder, options.devices, options.key_file, options.dtype, options.links, options.pacing
        )
        control = Control(options.control, lambda: station.describe())
    except (AuthError, StationError, ControlError) as error:
        _say(str(error))
        return 1
    try:
        _say(f"ready with {station.describe()['parameters']} parameters, control at {options.control}")
        # What is there now stays; the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        announce_ready()
        serve(station, control)
    finally:
        control.close()
        station.close()
    return 0


def serve(station: Station, control: Control) -> None:
    """Do one job after the other, for ever."""
    while True:
        job = control.next_job()
        try:
            answer = _answer(station, job)
        finally:
            control.done()
        job.end(answer)


def _answer(station: Station, job: Job) -> Dict[str, Any]:
    """Do a job; return its last line."""
    try:
        return {"result": _do(station, job)}
    except AbandonedError as error:
        _say(f"{job.title}: abandoned: {error}")
        return {"error": "abandoned"}
    except _FAILURES as error:
        _say(f"{job.title}: {error}")
        return {"error": str(error)}
    except Exception as error:
        # A mistake of ours must not take the service down; it is told to the client and logged in full.
        traceback.print_exc()
        return {"error": f"the base station failed: {type(error).__name__}: {error}"}


def _do(station: Station, job: Job) -> Dict[str, Any]:
    request = job.request
    if request.get("do") == "ping":
        return station.ping()
    if request.get("do") not in ("trial", "quality"):
        raise SpecError(f"unknown request: {request.get('do')!r}")
    spec = read_spec(Path(str(request.get("spec"))).expanduser())
    if request["do"] == "trial":
        return station.trial(spec, str(request.get("trial")), job.progress, job.check)
    scenario = request.get("scenario")
    return station.quality(
        spec,
        str(request.get("policy")),
        None if scenario is None else str(scenario),
        job.progress,
        job.check,
    )


def _say(text: str) -> None:
    print(f"{NAME}: {text}", file=sys.stderr, flush=True)


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=NAME, description="Serve a model whose experts are on devices.")
    parser.add_argument("--manifest", type=_path, required=True, help="the model's manifest")
    parser.add_argument(
        "--devices", type=_path, required=True, help="devices and placement; read at each trial"
    )
    parser.add_argument("--key-file", type=_path, required=True, help="the data plane's key")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPE_BYTES), default="bfloat16", help="element type of the run"
    )
    parser.add_argument("--control", type=_path, required=True, help="path of the control socket")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--links", type=_path, help="linkd's socket, for policies that allocate bandwidth")
    parser.add_argument(
        "--pacing", action="store_true", help="keep the devices' sockets at the rates that linkd tells"
    )
    options = parser.parse_args(arguments)
    if options.pacing and options.links is None:
        parser.error("--pacing follows linkd, so it needs --links SOCKET")
    return options


def _path(text: str) -> Path:
    return Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())
