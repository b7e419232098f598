"""The records of a broadcast trial: collected in memory, written at its end, whole or not at all."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

from payloads.semcast.messages import Report
from payloads.semcast.spec import Spec, TrialSpec, noise_seed
from payloads.station.records import TrialRecords
from payloads.wire.channel import DeviceError
from payloads.wire.client import DeviceLateError, DeviceLostError
from payloads.wire.clock import BSClock, Offset, OffsetTrack

__all__ = ["TABLES", "FrameReport", "Reports"]

#: The files of a trial's folder; each is there, if empty.
TABLES = ("frames", "received", "clocks", "events")


class FrameReport(NamedTuple):
    """A frame that all have heard.

    Attributes:
        number: Its number in the trial.
        pair: The number of its pair of images.
        symbols: Its complex symbols.
        side_bits: What all receivers were told beside them, in bits.
        image_bytes: The bytes of an image.
        bytes: What it took on the wire in all.
        copies: How often it was sent.
        encode_ns: How long the encoding took.
        sent_ns: When it was given to the kernel, for each user, on the transmitter's monotonic clock.
        done_ns: When the last report was there.
        reports: What each user's receiver told.
    """

    number: int
    pair: int
    symbols: int
    side_bits: int
    image_bytes: int
    bytes: int
    copies: int
    encode_ns: int
    sent_ns: Tuple[int, ...]
    done_ns: int
    reports: Tuple[Report, ...]


class Reports(TrialRecords):
    """The rows of one trial; times are unix seconds on the base station's clock."""

    def __init__(self, name: str, clock: BSClock) -> None:
        super().__init__(name, clock, TABLES)

    def add_frames(
        self,
        frames: List[FrameReport],
        spec: Spec,
        trial: TrialSpec,
        clocks: Mapping[str, OffsetTrack],
    ) -> None:
        """Add all frames, the devices' stamps moved to the base station's clock."""
        offset = 0
        for frame in frames:
            self.tables["frames"].append(self._frame(frame))
            for place, report in enumerate(frame.reports):
                row = self._received(frame, place, report, spec, trial, clocks[spec.users[place]])
                self.tables["received"].append({**row, "offset": offset})
            # Every receiver keeps one image of each frame.
            offset += frame.image_bytes

    def add_failure(self, error: DeviceError, at_ns: int) -> None:
        """Add what made the trial fail."""
        kinds = ((DeviceLateError, "deadline"), (DeviceLostError, "lost"))
        event = next((name for kind, name in kinds if isinstance(error, kind)), "refused")
        self.add_event(at_ns, error.device, event, error.reason)

    def add_both_clocks(
        self, before: Mapping[str, Offset], after: Mapping[str, Offset]
    ) -> Dict[str, OffsetTrack]:
        """Add the clock offsets at the beginning and at the end; return how each device's clock went in between."""
        self.add_clocks(before)
        self.add_clocks(after)
        return {name: OffsetTrack(offset, after[name]) for name, offset in before.items()}

    def _frame(self, frame: FrameReport) -> Dict[str, Any]:
        return {
            "trial": self.trial,
            "frame": frame.number,
            "symbols": frame.symbols,
            "side_bits": frame.side_bits,
            "bytes": frame.bytes,
            "copies": frame.copies,
            "encode_ms": frame.encode_ns / 1e6,
            "t_send_s": self._clock.unix_s(min(frame.sent_ns)),
            "t_done_s": self._clock.unix_s(frame.done_ns),
        }

    def _received(
        self,
        frame: FrameReport,
        place: int,
        report: Report,
        spec: Spec,
        trial: TrialSpec,
        clock: OffsetTrack,
    ) -> Dict[str, Any]:
        return {
            "trial": self.trial,
            "frame": frame.number,
            "user": place + 1,
            "device": spec.users[place],
            "gain_db": report.gain_db,
            "believed_db": report.believed_db,
            "measured_snr_db": report.measured_snr_db,
            "received": True,
            "air_ms": (clock.to_bs_ns(report.received_ns) - frame.sent_ns[place]) / 1e6,
            "decode_ms": (report.decoded_ns - report.started_ns) / 1e6,
            "noise_seed": noise_seed(spec.seed, trial.repeat, frame.pair, place + 1),
            "digest": report.digest,
        }
