"""A trial at the transmitter: every frame is encoded once, goes out to all users at once, and all of them report."""

from __future__ import annotations

import secrets
import time
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple, Union

import torch

from payloads.semcast.about import About, Air, about_json
from payloads.semcast.air import Sent
from payloads.semcast.messages import (
    FrameHead,
    Report,
    What,
    frame_request,
    pack_begin,
    pack_done,
    pieces_of,
    pieces_request,
    unpack_missing,
    unpack_report,
    what_is,
)
from payloads.semcast.multicast import KEY_BYTES, MulticastError, Sender, seconds_on_air
from payloads.semcast.play import conditions_of, gains_of, transmit
from payloads.semcast.receivers import FrameTraffic, Receivers
from payloads.semcast.reports import FrameReport
from payloads.semcast.shelf import Shelf
from payloads.semcast.spec import Frame, ImageSet, Spec, TrialSpec, channel_labels, frames_of
from payloads.station.specs import SpecError
from payloads.wire.client import Answer, DeviceError
from payloads.wire.frames import Buffer, FrameError

__all__ = ["Airing", "Rate"]

#: How long a receiver may take to begin a trial, in which it loads models, and to end it.
BEGIN_S = 60.0
#: Pieces that came over a connection are there; whoever still lacks some is not asked a third time.
_ROUNDS = 2
#: Frames for warming up have numbers from here downwards, which no other frame has.
_WARMUP_NUMBER = 0xFFFFFFFF

#: Called before each frame: takes over what is known of the links, and returns the frame rate in Mbit/s that
#: multicast has to keep to now; ``None`` for any.
Rate = Callable[[], Optional[float]]


class _Timed(NamedTuple):
    """What came of sending a frame.

    Attributes:
        reports: What each user's receiver told.
        sent_ns: When the frame was first given to the kernel, for each user.
        done_ns: When the last report was there.
        bytes: What it took on the wire in all.
    """

    reports: Tuple[Report, ...]
    sent_ns: Tuple[int, ...]
    done_ns: int
    bytes: int


class Airing:
    """Sends the frames of one trial.

    Attributes:
        traffic: What was counted.
        again: Pieces that had to be sent again, and their bytes.

    Args:
        spec: The run's specification.
        name: The trial's name.
        shelf: The models.
        receivers: The connections, all of them made.
        traffic: What counts the trial's bytes.
        sender: What sends by multicast; ``None`` where every user gets a copy over its connection.
        rate: Follows the links, and says how fast that is to be.
        heard: Told of each frame that all have heard, warm-ups included.
    """

    def __init__(
        self,
        spec: Spec,
        name: str,
        shelf: Shelf,
        receivers: Receivers,
        traffic: FrameTraffic,
        sender: Optional[Sender] = None,
        rate: Rate = lambda: None,
        heard: Callable[[FrameReport], None] = lambda report: None,
    ) -> None:
        self.traffic = traffic
        self.again = {"pieces": 0, "bytes": 0}
        self._spec, self._name = spec, name
        self._trial: TrialSpec = spec.trial(name)
        self._models = spec.schemes[self._trial.scheme]
        self._shelf = shelf
        self._receivers = receivers
        self._sender, self._rate, self._all_heard = sender, rate, heard
        self._key, self._session = secrets.token_bytes(KEY_BYTES), secrets.randbits(32)

    def begin(self) -> None:
        """Tell all receivers what the trial is about, and load its models.

        Raises:
            DeviceError: One cannot take part.
            ShelfError: A model is not here.
            SpecError: A model is not for this trial.
        """
        for model in self._models:
            settings = self._shelf.network(model).settings
            if settings.users != len(self._spec.users):
                raise SpecError(f"model {model} is for {settings.users} users, not {len(self._spec.users)}")
            most = max(block.slots for block in self._spec.blocks)
            if settings.slots < most:
                raise SpecError(f"model {model} has {settings.slots} slots, and {most} are asked for")
        messages: Dict[str, List[Buffer]] = {
            name: [pack_begin(about_json(self._about(name, place)))]
            for place, name in enumerate(self._spec.users)
        }
        self._done(messages)

    def frames(
        self, progress: Callable[[int, int, str], None], check: Callable[[], None]
    ) -> List[FrameReport]:
        """Send all frames, one after the other.

        Args:
            progress: Told what is done.
            check: Called before every frame; raises to stop.

        Raises:
            DeviceError: A receiver is lost, late or refuses.
            LinkControlError: Nobody tells of the links any more.
            MulticastError: The network does not take a frame, or not in time.
            OSError: An image set cannot be read.
        """
        frames = list(frames_of(self._spec, self._trial))
        result: List[FrameReport] = []
        warm: Set[Tuple[str, str, int]] = set()
        number = _WARMUP_NUMBER
        for frame in frames:
            kind = (frame.model, frame.block.set, frame.block.slots)
            for _ in range(0 if kind in warm else self._spec.warmup):
                check()
                self._send(frame._replace(number=number), kept=False)
                number -= 1
            warm.add(kind)
            check()
            progress(len(result), len(frames), f"frame {frame.number}")
            result.append(self._send(frame, kept=True))
        return result

    def end(self) -> None:
        """Let the receivers keep the images.

        Raises:
            DeviceError: One does not.
        """
        self._done({name: [pack_done(What.END)] for name in self._spec.users})

    def multicast(self) -> Optional[Dict[str, int]]:
        """Return what went by multicast in this trial, and what of it had to be sent again."""
        if self._sender is None:
            return None
        return {
            "bytes": self._sender.bytes,
            "datagrams": self._sender.datagrams,
            "again": self.again["pieces"],
            "again_bytes": self.again["bytes"],
        }

    def _about(self, device: str, place: int) -> About:
        air = None
        if self._sender is not None:
            connection = self._receivers.channels[device].connection
            assert connection is not None
            # The receiver's own address, as it is reached by: that of the interface that it hears the group by.
            interface = connection.socket.getpeername()[0]
            air = Air(self._sender.group, interface, self._key, self._session)
        trial = self._trial
        scenario = self._spec.scenarios[trial.scenario]
        return About(self._name, self._spec.seed, scenario, trial.repeat, place + 1, self._models, air)

    def _done(self, messages: Mapping[str, List[Buffer]]) -> None:
        """Send messages that are answered by a bare word."""
        for name, answer in self._receivers.ask(messages, BEGIN_S).items():
            self._expect(name, answer, What.DONE)

    def _send(self, frame: Frame, *, kept: bool) -> FrameReport:
        """Encode a frame, send it, and return what was told of it."""
        block, trial, spec = frame.block, self._trial, self._spec
        of = spec.sets[block.set]
        scenario = spec.scenarios[trial.scenario]
        images = _images(of, block.pair, len(spec.users))
        network = self._shelf.network(frame.model)
        begun_ns = time.monotonic_ns()
        labels = channel_labels(trial.repeat, block.pair)
        gains = gains_of(spec.seed, labels, len(spec.users), scenario.fading, scenario.csi_error)
        conditions = conditions_of(scenario.snr_db, block.shares, block.slots, gains)
        sent = transmit(network, images, conditions)
        encoded_ns = time.monotonic_ns()
        head = FrameHead(
            frame.number,
            block.pair,
            block.slots,
            *of.grid,
            self._models.index(frame.model),
            kept,
            0 if self._sender is None else pieces_of(len(sent.data)),
            0,
            block.shares,
            tuple(conditions.snr_db[0].tolist()),
            sent.scale_codes,
        )
        timed = self._heard(head, sent, counts=kept)
        report = FrameReport(
            frame.number,
            block.pair,
            sent.symbols,
            sent.side_bits,
            of.image_bytes,
            timed.bytes,
            len(spec.users) if self._sender is None else 1,
            encoded_ns - begun_ns,
            timed.sent_ns,
            timed.done_ns,
            timed.reports,
        )
        self._all_heard(report)
        return report

    def _heard(self, head: FrameHead, sent: Sent, *, counts: bool) -> _Timed:
        """Send a frame, and again what was lost of it, until all have reported."""
        users = self._spec.users
        sender = self._sender
        cast_bytes: List[int] = []
        messages = dict.fromkeys(users, frame_request(head, sent.data))
        meanwhile: Optional[Callable[[], None]] = None
        rate_mbit = self._rate()
        if sender is not None:
            air_s = seconds_on_air(len(sent.data), rate_mbit)
            if air_s > self._spec.deadline_s:
                # Otherwise both ends would be at it for so long, and hear nobody meanwhile.
                raise MulticastError(
                    f"frame {head.number} takes {air_s:.3g} s by multicast at {rate_mbit:g} Mbit/s, "
                    f"and may take {self._spec.deadline_s:g} s"
                )
            messages = dict.fromkeys(users, frame_request(head._replace(within_ms=round(1e3 * air_s))))

            def broadcast() -> None:
                cast_bytes.append(sender.send(self._key, self._session, head.number, sent.data, rate_mbit))

            meanwhile = broadcast
        copies_bytes = 0
        first_ns: Dict[str, int] = {}
        reports: Dict[str, Report] = {}
        done_ns = 0
        for _ in range(_ROUNDS):
            answers = self._receivers.ask(messages, self._spec.deadline_s, meanwhile)
            messages, meanwhile = {}, None
            for name, answer in answers.items():
                first_ns.setdefault(name, answer.sent_ns)
                done_ns = max(done_ns, answer.done_ns)
                copies_bytes += answer.bytes_out
                if counts:
                    self.traffic.add(name, answer)
                told = self._told(name, answer, head)
                if isinstance(told, Report):
                    reports[name] = told
                else:
                    messages[name] = pieces_request(head.number, told, sent.data)
                    self.again["pieces"] += len(told)
                    self.again["bytes"] += sum(map(len, messages[name]))
            if not messages:
                break
        else:
            name = next(iter(messages))
            raise DeviceError(
                name, "lacks pieces", f"device {name} still lacks pieces of frame {head.number}"
            )
        return _Timed(
            tuple(reports[name] for name in users),
            tuple(first_ns[name] for name in users),
            done_ns,
            copies_bytes + sum(cast_bytes),
        )

    def _told(self, name: str, answer: Answer, head: FrameHead) -> Union[Report, Sequence[int]]:
        """Return what a receiver told of a frame: its report, or the pieces that it lacks."""
        payload = answer.payload
        try:
            if what_is(payload) == What.MISSING:
                number, lacking = unpack_missing(payload)
                told: Union[Report, Sequence[int]] = lacking
                if lacking[-1] >= head.pieces:
                    raise FrameError(f"it lacks piece {lacking[-1]} of {head.pieces}")
            else:
                told = unpack_report(payload)
                number = told.number
            if number != head.number:
                raise FrameError(f"it answered for frame {number}, and frame {head.number} was sent")
        except FrameError as error:
            raise self._receivers.misread(name, error) from error
        return told

    def _expect(self, name: str, answer: Answer, what: int) -> None:
        try:
            if what_is(answer.payload) != what:
                raise FrameError(f"it answered {what_is(answer.payload)}, and {what} was expected")
        except FrameError as error:
            raise self._receivers.misread(name, error) from error


def _images(of: ImageSet, pair: int, users: int) -> torch.Tensor:
    """Return the images (U, H, W, 3) of a pair.

    Raises:
        OSError: The set's file cannot be read.
        SpecError: It is not as long as the specification says.
    """
    size = users * of.image_bytes
    with of.file.open("rb") as file:
        if file.seek(0, 2) != of.pairs * size:
            raise SpecError(f"{of.file}: {of.pairs * size} bytes were expected, not {file.tell()}")
        file.seek(pair * size)
        data = bytearray(file.read(size))
    return torch.frombuffer(data, dtype=torch.uint8).view(users, of.height, of.width, 3)
