"""The transmitter at the base station: encodes the images of all users into frames, and conducts their receivers.

    python -m payloads.semcast.transmitter --models ~/.testbed/models.json --devices ~/.testbed/devices.json \
        --tls ~/.testbed/tls --control ~/.testbed/bs.sock --links ~/.testbed/linkd.sock

It is asked through the base station's control socket (``payloads.station.bsctl``). A receiver that is lost fails the
trial; the transmitter stays up, and the next trial connects again.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Type

import torch

from payloads.metrics import Metrics
from payloads.metrics_http import add_metrics, show_metrics
from payloads.semcast.multicast import Group, MulticastError, Sender, parse_group
from payloads.semcast.receivers import FrameTraffic, Receivers, devices_by_name
from payloads.semcast.reports import FrameReport, Reports
from payloads.semcast.sending import Airing
from payloads.semcast.shelf import Shelf, ShelfError
from payloads.semcast.spec import Spec, read_spec
from payloads.services.ready import announce_ready
from payloads.station.control import Control, ControlError, Job
from payloads.station.devices import DevicesError
from payloads.station.jobs import do_jobs
from payloads.station.link_feed import LinkControlError, LinkFeed
from payloads.station.pacing import LinkPacing
from payloads.station.records import failed_folder
from payloads.station.specs import SpecError
from payloads.wire.auth import AuthError
from payloads.wire.client import DeviceError, Exchange
from payloads.wire.clock import BSClock
from payloads.wire.credentials import Credentials, add_credentials, credentials_of
from payloads.wire.frames import FrameError

__all__ = ["Transmitter", "main", "serve"]

NAME = "transmitter"

#: What ends a job and is no mistake of ours.
_FAILURES = (
    DeviceError,
    DevicesError,
    FrameError,
    LinkControlError,
    MulticastError,
    OSError,
    ShelfError,
    SpecError,
)

Progress = Callable[[int, int, str], None]


class Transmitter:
    """Does trials.

    Attributes:
        clock: The base station's clock.
        metrics: What it counts.

    Args:
        shelf: The models.
        devices_file: The devices; read at each trial.
        credentials: What this end of the data plane proves itself with.
        links: linkd's socket, where it shapes the links.
        pacing: Whether the devices' sockets are to be kept at the rates that linkd tells.
        group: Where frames go by multicast; ``None`` where every user gets a copy of its own.
    """

    def __init__(
        self,
        shelf: Shelf,
        devices_file: Path,
        credentials: Credentials,
        links: Optional[Path] = None,
        pacing: bool = False,
        group: Optional[Group] = None,
    ) -> None:
        self.clock = BSClock()
        self._shelf = shelf
        self._devices_file = devices_file
        self._exchange = Exchange()
        self._receivers = Receivers(self._exchange, credentials)
        self._links, self._pacing = links, pacing
        self._group = group
        self.metrics = Metrics()
        counter, histogram = self.metrics.counter, self.metrics.histogram
        text = "Bytes of frames that all have heard, each copy and what was sent again included."
        self._bytes = counter("testbed_transmitter_frame_bytes_total", text).labels()
        text = "Trials that ended, by how."
        self._trials = counter("testbed_transmitter_trials_total", text, ("outcome",))
        text = "From a frame's first byte to the last report of it."
        self._frame = histogram("testbed_transmitter_frame_seconds", text).labels()
        self._encode = histogram("testbed_transmitter_encode_seconds", "Encoding of a frame.").labels()

    def _heard(self, frame: FrameReport) -> None:
        """Count a frame that all have heard."""
        self._bytes.add(frame.bytes)
        self._frame.observe((frame.done_ns - min(frame.sent_ns)) * 1e-9)
        self._encode.observe(frame.encode_ns * 1e-9)

    def close(self) -> None:
        """Close all connections."""
        self._exchange.close()

    def describe(self) -> Dict[str, Any]:
        """Return what there is to say about the transmitter itself."""
        return {"models": self._shelf.identities(), "now_s": self.clock.now_s()}

    def ping(self) -> Dict[str, Any]:
        """Connect all receivers, check them, and return their clock offsets."""
        self._receivers.meet(list(devices_by_name(self._devices_file).values()), {})
        return {
            "devices": {
                name: {
                    "offset_s": self.clock.unix_s(round(offset.offset_ns)),
                    "rtt_ms": offset.rtt_ns / 1e6,
                    "models": self._receivers.descriptions[name].get("models"),
                    "pace": self._receivers.descriptions[name].get("pace"),
                }
                for name, offset in self._receivers.offsets().items()
            }
        }

    def trial(self, spec: Spec, name: str, progress: Progress, check: Callable[[], None]) -> Dict[str, Any]:
        """Send all frames of a trial and write the records.

        Args:
            spec: The run's specification.
            name: The trial's name.
            progress: Told what is done.
            check: Called before every frame; raises to stop.

        Returns:
            What the controller wants to know at once: times, counts, and the bytes of what was said.

        Raises:
            DeviceError: A receiver is lost, late or refuses; what happened is written beside where records would be.
        """
        trial = spec.trial(name)
        folder = spec.folder / name
        failed = failed_folder(folder)
        if failed.exists():
            shutil.rmtree(failed)
        reports = Reports(name, self.clock)
        traffic = FrameTraffic(self._receivers)
        with ExitStack() as stack:
            stack.push(self._count)
            try:
                self._meet(spec, spec.schemes[trial.scheme])
                before = self._receivers.offsets()
                airing = self._airing(spec, name, traffic, stack)
                airing.begin()
                start_ns = time.monotonic_ns()
                frames = airing.frames(progress, check)
                end_ns = time.monotonic_ns()
                progress(len(frames), len(frames), "records")
                clocks = reports.add_both_clocks(before, self._receivers.offsets())
                airing.end()
            except DeviceError as error:
                reports.add_failure(error, time.monotonic_ns())
                reports.write_failed(folder)
                raise
        reports.add_frames(frames, spec, trial, clocks)
        reports.write(folder)
        return {
            "trial": name,
            "policy": trial.scheme,
            "records": str(folder),
            "t_start_s": self.clock.unix_s(start_ns),
            "t_end_s": self.clock.unix_s(end_ns),
            "rows": {table: len(rows) for table, rows in reports.tables.items()},
            **traffic.totals(),
            "multicast": airing.multicast(),
            "paced_late": {
                user: sum(frame.reports[place].late for frame in frames)
                for place, user in enumerate(spec.users)
            },
        }

    def _count(self, kind: Optional[Type[BaseException]], *_: object) -> None:
        """Count a trial at its end."""
        self._trials.labels("completed" if kind is None else "failed").add()

    def _meet(self, spec: Spec, models: Sequence[str]) -> None:
        """Connect the receivers of a run's users, who must hold the very models that are here."""
        devices = devices_by_name(self._devices_file)
        here = self._shelf.identities()
        for user in spec.users:
            if user not in devices:
                raise DevicesError(f"{self._devices_file}: there is no device {user}, which the run names")
        for model in models:
            if model not in here:
                raise ShelfError(f"there is no model {model!r} here; there are {', '.join(here) or 'none'}")
        self._receivers.meet([devices[user] for user in spec.users], {model: here[model] for model in models})

    def _airing(self, spec: Spec, name: str, traffic: FrameTraffic, stack: ExitStack) -> Airing:
        """Return what sends a trial's frames, the links followed and the group ready until the stack is left."""
        feed: Optional[LinkFeed] = None
        pacing: Optional[LinkPacing] = None
        if self._links is not None and (self._pacing or self._group is not None):
            feed = stack.enter_context(LinkFeed(self._links))
            if self._pacing:
                pacing = stack.enter_context(LinkPacing(feed, self._exchange, self._receivers.channels))

        def rate() -> Optional[float]:
            """What is sent once has to be heard by the slowest."""
            if feed is None:
                return None
            if pacing is None:
                feed.follow()
            else:
                pacing.follow()  # the feed, and lets the sockets follow too
            rates = [feed.rates.get(user, (None, None))[0] for user in spec.users]
            return min((one for one in rates if one is not None), default=None)

        sender = self._sender(stack)
        return Airing(spec, name, self._shelf, self._receivers, traffic, sender, rate, self._heard)

    def _sender(self, stack: ExitStack) -> Optional[Sender]:
        """Return what sends to the group until the stack is left; ``None`` where there is no group."""
        if self._group is None:
            return None
        local = {
            channel.connection.socket.getsockname()[0]
            for channel in self._receivers.channels.values()
            if channel.connection is not None
        }
        if len(local) != 1:
            raise MulticastError(
                f"multicast goes by one interface, and the devices are reached by {' and '.join(sorted(local))}"
            )
        sender = Sender(self._group, local.pop())
        stack.callback(sender.close)
        return sender


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the transmitter until SIGTERM; return the exit status."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        credentials = credentials_of(options)
        shelf = Shelf(options.models)
        given = options.links, options.pacing, options.multicast
        transmitter = Transmitter(shelf, options.devices, credentials, *given)
        control = Control(options.control, transmitter.describe)
        shown = None if options.metrics is None else show_metrics(NAME, transmitter.metrics, options.metrics)
        kept = shelf.kept()
    except (AuthError, ControlError, OSError, ShelfError) as error:
        _say(str(error))
        return 1
    try:
        names = ", ".join(shelf.identities()) or "no model"
        _say(f"ready with {names}, control at {options.control}")
        # What is there now stays; the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        announce_ready()
        serve(transmitter, control)
    finally:
        kept.close()
        control.close()
        transmitter.close()
        if shown is not None:
            shown.close()
    return 0


def serve(transmitter: Transmitter, control: Control) -> None:
    """Do one job after the other, for ever."""
    do_jobs(control, lambda job: _do(transmitter, job), _FAILURES, NAME)


def _do(transmitter: Transmitter, job: Job) -> Dict[str, Any]:
    request = job.request
    if request.get("do") == "ping":
        return transmitter.ping()
    if request.get("do") != "trial":
        raise SpecError(f"a transmitter does trials, not {request.get('do')!r}")
    spec = read_spec(Path(str(request.get("spec"))).expanduser())
    return transmitter.trial(spec, str(request.get("trial")), job.progress, job.check)


def _say(text: str) -> None:
    print(f"{NAME}: {text}", file=sys.stderr, flush=True)


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=NAME, description="Broadcast images to several devices at once.")
    parser.add_argument("--models", type=_path, required=True, help="the list of models")
    parser.add_argument("--devices", type=_path, required=True, help="the devices; read at each trial")
    add_credentials(parser)
    parser.add_argument("--control", type=_path, required=True, help="path of the control socket")
    parser.add_argument("--links", type=_path, help="linkd's socket, which tells the rates of the links")
    parser.add_argument(
        "--pacing", action="store_true", help="keep the devices' sockets at the rates that linkd tells"
    )
    parser.add_argument(
        "--multicast",
        type=_group,
        metavar="ADDRESS:PORT",
        help="send every frame once, to this group; otherwise every device gets a copy",
    )
    add_metrics(parser)
    options = parser.parse_args(arguments)
    if options.pacing and options.links is None:
        parser.error("--pacing follows linkd, so it needs --links SOCKET")
    return options


def _group(text: str) -> Group:
    try:
        return parse_group(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _path(text: str) -> Path:
    return Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())
