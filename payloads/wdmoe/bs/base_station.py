"""The base station: the model without its experts, and the conductor of the devices.

    python -m payloads.wdmoe.bs.base_station --manifest ~/.testbed/manifest.json \
        --devices ~/.testbed/devices.json --tls ~/.testbed/tls --control ~/.testbed/bs.sock \
        --links ~/.testbed/linkd.sock

It stays up when a device is lost: what becomes of the trial is the policy's matter, and the next one connects again.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

# Nothing may be looked up on a network; read by transformers when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Torch's helping threads, which the output layer has, are not to wait by spinning: devices may share the processor.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from payloads.artifacts.marks import Mark
from payloads.metrics_http import MetricsServer
from payloads.services.ready import announce_ready
from payloads.station.control import AbandonedError, Control, ControlError, Job
from payloads.station.devices import DevicesError
from payloads.station.jobs import do_jobs
from payloads.station.specs import SpecError, check_name
from payloads.wdmoe.bs.links import LinkControlError
from payloads.wdmoe.bs.recording import RequestFailedError
from payloads.wdmoe.bs.spec import Spec, read_spec
from payloads.wdmoe.bs.station import Station, StationError, lay_out_model
from payloads.wdmoe.serve.access import (
    LEAST_CONTEXT_TOKENS,
    MOST_AT_ONCE,
    AccessError,
    parse_address,
    read_token,
)
from payloads.wdmoe.serve.api import Api
from payloads.wdmoe.serve.http import HttpServer
from payloads.wdmoe.user_policy import UserPolicyError
from payloads.wire.auth import AuthError
from payloads.wire.client import DeviceError
from payloads.wire.credentials import add_credentials, credentials_of
from payloads.wire.frames import DTYPE_BYTES, FrameError

__all__ = ["main", "serve"]

NAME = "base_station"
DEFAULT_HTTP = ("127.0.0.1", 8000)

#: What ends a job and is no mistake of ours.
_FAILURES = (
    DeviceError,
    DevicesError,
    FrameError,
    LinkControlError,
    OSError,
    RequestFailedError,
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
        credentials = credentials_of(options)
        folder = lay_out_model(options.manifest)
        _say(f"loading {folder.manifest['model']} in {options.dtype}")
        station = Station(folder, options.devices, credentials, options.dtype, options.links, options.pacing)
        service = None if options.http is None else Service(station, options.http, options.http_token_file)
        control = Control(options.control, lambda: station.describe())
        shown = None if options.metrics is None else MetricsServer(station.metrics.metrics, options.metrics)
    except OSError as error:
        _say(f"no metrics at {options.metrics}: {error.strerror}")
        return 1
    except (AccessError, AuthError, StationError, ControlError) as error:
        _say(str(error))
        return 1
    own = [str(entry["object"]) for entry in folder.manifest["base_station"]]
    mark = Mark("base-station", own, options.manifest.resolve().parent / "objects")
    try:
        _say(f"ready with {station.describe()['parameters']} parameters, control at {options.control}")
        # What is there now stays; the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        announce_ready()
        serve(station, control, service)
    finally:
        mark.close()
        control.close()
        if service is not None:
            service.server.close()
        if shown is not None:
            shown.close()
        station.close()
    return 0


class Service:
    """The API and its server.

    Attributes:
        api: The API.
        server: Its server.

    Args:
        station: Whose model is served.
        address: Where.
        token_file: The file of the token that clients must show.

    Raises:
        AccessError: It cannot be offered there.
    """

    def __init__(self, station: Station, address: Tuple[str, int], token_file: Optional[Path]) -> None:
        token = None if token_file is None else read_token(token_file)
        self.api = Api(station.language(), station.metrics.text)
        self.server = HttpServer(self.api, address, token)
        _say(f"the API is at {self.server.url}")


def serve(station: Station, control: Control, service: Optional[Service] = None) -> None:
    """Do one job after the other, for ever."""
    do_jobs(control, lambda job: _do(station, job, service), _FAILURES, NAME)


def _do(station: Station, job: Job, service: Optional[Service]) -> Dict[str, Any]:
    request = job.request
    if request.get("do") == "ping":
        return station.ping()
    if request.get("do") not in ("trial", "quality", "serve"):
        raise SpecError(f"unknown request: {request.get('do')!r}")
    spec = read_spec(Path(str(request.get("spec"))).expanduser())
    if request["do"] == "trial":
        return station.trial(spec, str(request.get("trial")), job.progress, job.check)
    if request["do"] == "serve":
        if service is None:
            raise SpecError("this base station was started without --http: it can serve nobody")
        return _serve(station, spec, job, service)
    scenario = request.get("scenario")
    return station.quality(
        spec,
        str(request.get("policy")),
        None if scenario is None else str(scenario),
        job.progress,
        job.check,
    )


def _serve(station: Station, spec: Spec, job: Job, service: Service) -> Dict[str, Any]:
    """Answer requests of the API until the job is over."""
    concurrency = job.request.get("concurrency", 1)
    if not isinstance(concurrency, int) or not 0 < concurrency <= MOST_AT_ONCE:
        raise SpecError(f"concurrency: expected 1 to {MOST_AT_ONCE}, got {concurrency!r}")
    context, most = job.request.get("context_tokens"), station.language().context_tokens
    if context is not None and (type(context) is not int or not LEAST_CONTEXT_TOKENS <= context <= most):
        text = f"expected {LEAST_CONTEXT_TOKENS} to {most} tokens, which the model reads, got {context!r}"
        raise SpecError(f"context: {text}")

    def tell(taken: int) -> None:
        with suppress(AbandonedError):  # a client that has gone ends the job soon enough
            job.progress(taken, 0, f"serving at {service.server.url}")

    names = str(job.request.get("policy")), check_name(job.request.get("trial"))
    return station.serve(spec, *names, concurrency, service.api, lambda: job.over, tell, context)


def _say(text: str) -> None:
    print(f"{NAME}: {text}", file=sys.stderr, flush=True)


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=NAME, description="Serve a model whose experts are on devices.")
    parser.add_argument("--manifest", type=_path, required=True, help="the model's manifest")
    parser.add_argument(
        "--devices", type=_path, required=True, help="devices and placement; read at each trial"
    )
    add_credentials(parser)
    parser.add_argument(
        "--dtype", choices=sorted(DTYPE_BYTES), default="bfloat16", help="element type of the run"
    )
    parser.add_argument("--control", type=_path, required=True, help="path of the control socket")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--links", type=_path, help="linkd's socket, for policies that allocate bandwidth")
    parser.add_argument(
        "--http",
        type=_address,
        nargs="?",
        const=DEFAULT_HTTP,
        metavar="ADDRESS:PORT",
        help=f"offer the OpenAI-compatible API there; {DEFAULT_HTTP[0]}:{DEFAULT_HTTP[1]} where none is named",
    )
    parser.add_argument(
        "--http-token-file", type=_path, help="the token that clients of the API must show, in a file"
    )
    parser.add_argument(
        "--metrics",
        type=_address,
        metavar="ADDRESS:PORT",
        help="serve Prometheus metrics there too, to whoever asks; off by default",
    )
    parser.add_argument(
        "--pacing", action="store_true", help="keep the devices' sockets at the rates that linkd tells"
    )
    options = parser.parse_args(arguments)
    if options.pacing and options.links is None:
        parser.error("--pacing follows linkd, so it needs --links SOCKET")
    return options


def _address(text: str) -> Tuple[str, int]:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _path(text: str) -> Path:
    return Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())
