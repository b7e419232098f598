"""A synthetic run of semantic broadcast: made up by a small model of rates, written through the real writer.

Nothing of it was measured.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from testbed.records import RecordWriter, write_manifest

DEVICES = {
    "orin-nx": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
    "orin-nano": "NVIDIA Jetson Orin Nano Developer Kit",
}
SCHEMES: tuple[Mapping[str, Any], ...] = (
    {"name": "fusion", "kind": "learned", "plays": "fusion", "better": 0.6},
    {"name": "time division", "kind": "learned", "plays": "time_division", "better": 0.0},
    {"name": "superposition", "kind": "learned", "plays": "superposition", "better": -0.3},
    {"name": "no CSI", "kind": "learned", "plays": "fusion", "ablates": "fusion", "better": 0.2},
    {"name": "jpeg2000 (superposition)", "kind": "digital", "plays": "superposition", "codec": "jpeg2000"},
    {"name": "webp + LDPC", "kind": "practical", "plays": "time_division", "codec": "webp"},
)
SCENARIOS: tuple[Mapping[str, Any], ...] = (
    {"name": "10-1", "snr_db": [10, 1]},
    {"name": "10-10", "snr_db": [10, 10]},
)
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)
STARTED = 1_760_000_000.0


def png(width: int, height: int, shade: int) -> bytes:
    """Return a picture of one shade as a PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    shades = bytes(range(256)) * (3 * width // 256 + 2)
    rows = b"".join(b"\0" + shades[(shade + y) % 256 :][: 3 * width] for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


class SyntheticBroadcast:
    """Makes one run.

    Args:
        folder: The run's folder.
        rack: Whether there were devices; else it is a simulation.
        repeats: Repeats of each scheme and scenario.
        pairs: Pairs of images of each set.
        seeds: Training seeds of the whole learned schemes.
        sets: The sets of images, with the side of an image.
        ratios: The bandwidth ratios.
        schemes: What is compared.
        scenarios: Where.
        better: How many dB the fusion is above time division, in place of what the scheme says.
        pictures: Whether to keep example pictures.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rack: bool = True,
        repeats: int = 3,
        pairs: int = 4,
        seeds: int = 1,
        sets: Mapping[str, int] | None = None,
        ratios: Sequence[float] = (1 / 6,),
        shares: Sequence[float] = SHARES,
        schemes: Sequence[Mapping[str, Any]] = SCHEMES,
        scenarios: Sequence[Mapping[str, Any]] = SCENARIOS,
        better: float | None = None,
        noise: float = 0.05,
        pictures: bool = False,
    ) -> None:
        self.folder, self.rack, self.repeats, self.pairs, self.seeds = folder, rack, repeats, pairs, seeds
        self.sets, self.ratios, self.shares = dict(sets or {"natural-128": 128}), ratios, shares
        self.schemes, self.scenarios, self.noise, self.pictures = schemes, scenarios, noise, pictures
        self.better = better
        self.random = random.Random(11)
        self.writer = RecordWriter(folder)
        self.now = 12.0 if rack else 0.0
        self.busy: dict[str, list[tuple[float, float]]] = {name: [] for name in DEVICES}

    def make(
        self, *, fail: int | None = None, state: str = "completed", stop_after: int | None = None
    ) -> Path:
        rows = []
        for scheme in self.schemes:
            base = {key: scheme.get(key) for key in ("kind", "plays", "codec", "ablates")}
            for model in self.models(scheme):
                seed = int(model[-1]) if model and model[-1].isdigit() else 1
                rows.append(
                    {
                        "scheme": scheme["name"],
                        **base,
                        "model": model,
                        "training_seed": seed if model else None,
                    }
                )
        self.writer.write("schemes", "schemes", rows)
        trials = [
            (scheme, scenario, repeat)
            for repeat in range(self.repeats)
            for scheme in self.schemes
            for scenario in self.scenarios
        ]
        for number, trial in enumerate(trials[:stop_after], start=1):
            self.trial(f"t{number:03d}", number, *trial, failed=number == fail)
        if self.rack:
            self.power()
        write_manifest(self.folder, self.manifest(state))
        return self.folder

    def models(self, scheme: Mapping[str, Any]) -> list[str | None]:
        if scheme["kind"] != "learned":
            return [None]
        name = "semcast-" + str(scheme["name"]).replace(" ", "-").lower()
        extra = [f"{name}-s{seed}" for seed in range(2, self.seeds + 1)] if not scheme.get("ablates") else []
        return [name, *extra]

    def trial(
        self,
        name: str,
        number: int,
        scheme: Mapping[str, Any],
        scenario: Mapping[str, Any],
        repeat: int,
        *,
        failed: bool,
    ) -> None:
        start = self.now
        if self.rack:
            self.links(name, str(scenario["name"]))
        frames: list[dict[str, Any]] = []
        images: list[dict[str, Any]] = []
        if not failed:
            for model_number, model in enumerate(self.models(scheme)):
                for set_name, side in self.sets.items():
                    for ratio in self.ratios:
                        for share in self.shares:
                            for pair in range(self.pairs):
                                where = (set_name, side, ratio, share, pair, model_number)
                                self.frame(name, frames, images, scheme, scenario, repeat, model, *where)
        row = {
            "trial": name,
            "order": number,
            "policy": scheme["name"],
            "scenario": scenario["name"],
            "repeat": repeat,
            "state": "failed" if failed else "completed",
            "t_start_s": start,
            "t_end_s": self.now,
            "links_ok": True if self.rack else None,
            "error": "device orin-nano lost: connection closed" if failed else None,
        }
        self.writer.write("frames", name, frames)
        self.writer.write("images", name, images)
        if self.rack:
            clocks = [
                {"t_s": t_s, "device": device, "offset_s": 100 + t_s * 8e-6, "rtt_ms": 0.1}
                for t_s in (start, self.now)
                for device in DEVICES
            ]
            self.writer.write("clocks", name, clocks)
            self.writer.write("traffic", name, self.traffic(name, frames))
        self.writer.write("trials", name, [row])
        self.now += 1.5 if self.rack else 0.0

    def frame(
        self,
        trial: str,
        frames: list[dict[str, Any]],
        images: list[dict[str, Any]],
        scheme: Mapping[str, Any],
        scenario: Mapping[str, Any],
        repeat: int,
        model: str | None,
        set_name: str,
        side: int,
        ratio: float,
        share: float,
        pair: int,
        model_number: int,
    ) -> None:
        on_air = self.rack and scheme["kind"] == "learned"
        symbols, number = round(ratio * 3 * side * side), len(frames)
        sent = {
            "trial": trial,
            "frame": number,
            "set": set_name,
            "pair": f"p{pair:02d}",
            "model": model,
            "bandwidth_ratio": ratio,
            "share": share,
            "symbols": symbols,
            "side_bits": 8,
        }
        if on_air:
            encode, size = 6.0 + self.random.random(), 4 * symbols + 300
            begin = self.now + encode / 1000
            air = size * 8 / 20e6 + 0.0005
            decode = {"orin-nx": 9.0, "orin-nano": 14.0}
            done = begin + air + max(decode.values()) / 1000 + 0.001
            sent |= {"bytes": 2 * size, "copies": 2, "encode_ms": encode, "t_send_s": begin, "t_done_s": done}
            for device, own in decode.items():
                self.busy[device].append((begin + air, begin + air + own / 1000))
            self.now = done
        for user, device in enumerate(DEVICES, start=1):
            snr = float(scenario["snr_db"][user - 1])
            seed = f"1/{repeat}/{pair}/{user}"
            channel = random.Random(seed)
            gain = 10 * math.log10(max(1e-3, channel.expovariate(1.0))) if scenario.get("fading") else 0.0
            error = math.sqrt(scenario.get("csi_error", 0.0)) * channel.gauss(0, 4)
            psnr, received = self.quality(scheme, scenario, share, user, gain, error, ratio, side)
            if received:
                own_image = random.Random(f"{set_name}{pair}{user}").gauss(0, 2.5)
                psnr += own_image + channel.gauss(0, 0.2) + self.random.gauss(0, self.noise)
                psnr += 0.05 * model_number
            shot = {
                "trial": trial,
                "frame": number,
                "user": user,
                "device": device if on_air else None,
                "image": f"image-{pair}-{user}",
                "snr_db": snr,
                "gain_db": gain,
                "believed_db": snr + gain + error,
                "measured_snr_db": snr + gain + channel.gauss(0, 0.03) if on_air else None,
                "psnr_db": psnr,
                "ssim": 1 - math.exp(-psnr / 12),
                "ms_ssim": 1 - math.exp(-psnr / 8) if side >= 128 else None,
                "received": received,
                "air_ms": air * 1000 if on_air else None,
                "decode_ms": decode[device] + self.random.random() if on_air else None,
                "noise_seed": seed,
                "digest": hashlib.sha256(f"{psnr}".encode()).hexdigest()[:16],
                "on_paper": scheme["kind"] != "learned",
            }
            images.append(shot)
            keep = (
                self.pictures and repeat == 0 and pair == 0 and abs(share - 0.5) < 0.05 and not model_number
            )
            if keep:
                folder = self.folder / "pictures"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{trial}-{number}-{user}.png").write_bytes(png(side, side, int(psnr * 3)))
                (folder / f"source-{set_name}-{pair}-{user}.png").write_bytes(png(side, side, 7 * user))
        frames.append(sent)

    def quality(
        self,
        scheme: Mapping[str, Any],
        scenario: Mapping[str, Any],
        share: float,
        user: int,
        gain: float,
        error: float,
        ratio: float,
        side: int,
    ) -> tuple[float, bool]:
        """Return PSNR and whether anything was decoded, from the rate that the user gets of the channel."""
        snr = 10 ** ((float(scenario["snr_db"][user - 1]) + gain) / 10)
        part = share if user == 1 else 1 - share
        if scheme["plays"] == "superposition":
            interference = 0.0 if user == 1 else share * snr
            rate = math.log2(1 + part * snr / (interference + 1))
        else:
            rate = part * math.log2(1 + snr)
        rate *= 6 * ratio
        if scheme["kind"] == "learned":
            better = float(scheme["better"])
            if self.better is not None and scheme["name"] == "fusion":
                better = self.better
            return 18.0 + 4.2 * math.log2(1 + rate) + better - abs(error) * 0.1, True
        lost = rate < (0.7 if side >= 128 else 1.2) or (scheme["kind"] == "practical" and error > 1.5)
        return (
            (13.5, False)
            if lost
            else (17.6 + 5.4 * math.log2(1 + rate) - 0.8 * (scheme["kind"] == "practical"), True)
        )

    def links(self, trial: str, scenario: str) -> None:
        rows = []
        for device in DEVICES:
            for direction in ("downlink", "uplink"):
                common = {
                    "trial": trial,
                    "scenario": scenario,
                    "device": device,
                    "direction": direction,
                    "backend": "htb+tbf",
                    "asked_mbit": 20.0,
                }
                rows.append({"t_s": self.now, "cause": "set", **common})
                expected = 65536 * 8 / 20 / 1000 * 1.045
                rows.append(
                    {
                        "t_s": self.now + 0.4,
                        **common,
                        "message_bytes": 65536,
                        "n": 5,
                        "expected_ms": expected,
                        "measured_ms": expected * 1.01,
                        "p95_ms": expected * 1.03,
                        "ratio": 1.01,
                        "ok": True,
                    }
                )
        self.writer.write("links", trial, rows)
        self.now += 0.9

    def traffic(self, trial: str, frames: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        sent = sum(frame.get("bytes") or 0 for frame in frames) // 2
        return [
            {
                "trial": trial,
                "device": device,
                "direction": direction,
                "frames": 10 + sent // 1448,
                "drops": 0,
                "frame_bytes": (sent if direction == "downlink" else 900) + 66 * (10 + sent // 1448),
                "dispatch_bytes": sent if direction == "downlink" else 900,
                "control_bytes": 640,
            }
            for device in DEVICES
            for direction in ("downlink", "uplink")
        ]

    def power(self, *, hz: float = 20.0) -> None:
        end = self.now + 4
        for device, watts in zip(DEVICES, (6.0, 4.0), strict=True):
            count = int(end * hz)
            load = [0.0] * (count + 1)
            for begin, finish in self.busy[device]:
                load[int(begin * hz)] += (finish - begin) * hz
            rows, level = [], 0.0
            for index in range(count):
                level += 0.22 * (min(1.0, load[index]) - level)
                rows.append(
                    {"t_s": index / hz, "device": device, "rail": "VDD_IN", "mw": 1000 * (watts + 5 * level)}
                )
            self.writer.write("power", device, rows)

    def manifest(self, state: str) -> dict[str, Any]:
        hosts: dict[str, Any] = {"bs": {"role": "base_station", "address": "10.83.0.1"}}
        facts: dict[str, Any] = {"bs": {"python": "3.11.2", "torch": "2.13.0+cpu", "memory_bytes": 8 << 30}}
        for place, (device, board) in enumerate(DEVICES.items()):
            hosts[device] = {"role": "device", "address": f"10.83.0.{11 + place}"}
            facts[device] = {
                "board_model": board,
                "jetpack": "6.2",
                "python": "3.10.12",
                "memory_bytes": 8 << 30,
            }
        lines = [
            "campaign: synthetic-broadcast",
            "workload: broadcast",
            f"repeats: {self.repeats}",
            "schemes:",
        ]
        lines += [f"  - {{name: {scheme['name']}, kind: {scheme['kind']}}}" for scheme in self.schemes]
        lines.append("scenarios:")
        for scenario in self.scenarios:
            extra = "".join(f", {key}: {scenario[key]}" for key in ("fading", "csi_error") if key in scenario)
            lines.append(f"  - {{name: {scenario['name']}, snr_db: {scenario['snr_db']}{extra}}}")
        manifest: dict[str, Any] = {
            "run": self.folder.name,
            "workload": "broadcast",
            "campaign": "\n".join(lines) + "\n",
            "campaign_name": "synthetic-broadcast",
            "started_unix": STARTED,
            "versions": {"testbed": "0.1.0", "torch": "2.13.0"},
            "machine": {"system": "Linux", "cpus": 2},
            "inventory": {"lab": "synthetic", "hosts": hosts},
            "facts": facts,
            "models": {"semcast-fusion": {"plays": "fusion", "training_seed": 1, "weights": "0" * 64}},
            "links": {"backend": "htb+tbf"},
            "seeds": {"order": 7},
            "security": "tls",
            "command": "testbed run campaigns/synthetic-broadcast.yaml",
            "state": state,
        }
        if self.rack:
            return manifest | {"emulated": True, "power_total": dict.fromkeys(DEVICES, "VDD_IN")}
        return manifest | {"simulated": True, "simulation": {"processes": 2}}


Maker = Callable[..., Path]


@pytest.fixture(scope="session")
def make_broadcast(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Make a synthetic run, once for the same options: those of :class:`SyntheticBroadcast` and of its ``make``."""
    made: dict[str, Path] = {}

    def make(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in made:
            making = {name: options.pop(name) for name in ("fail", "state", "stop_after") if name in options}
            folder = tmp_path_factory.mktemp("results") / "synthetic-broadcast-0001"
            made[key] = SyntheticBroadcast(folder, **options).make(**making)
        return made[key]

    return make
