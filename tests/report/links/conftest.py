"""A synthetic run whose links change while its trials run: made up here, written through the real writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from testbed.records import RecordWriter, load_run, read_manifest, write_manifest

Maker = Callable[..., Path]
FADING = "weak-nano"
BAD_LINK = ("orin-nano", "uplink")
BACKENDS = {"downlink": "bs-line", "uplink": "device-htb-tbf"}
SAMPLE_S = 0.2


class MovingLinks:
    """Gives a run new links: fixed rates in one scenario, a channel's blocks and a policy's shares in the other.

    Args:
        folder: The run's folder.
        block_s: How long a block of the channel is.
        off: Whether one link misses its rate.
        surplus: By how much links deliver more than they were asked for.
    """

    def __init__(
        self, folder: Path, *, block_s: float = 0.05, off: bool = False, surplus: float = 1.0
    ) -> None:
        self.run, self.writer = load_run(folder), RecordWriter(folder)
        self.block_s, self.off, self.surplus = block_s, off, surplus
        self.random = np.random.default_rng(11)

    def write(self) -> None:
        for trial in self.run.trials.itertuples():
            settings, samples, probes = [], [], []
            for number, device in enumerate(self.run.devices):
                for direction in ("downlink", "uplink"):
                    t_s, mbit, causes = self.rates(trial, number)
                    about = {"trial": trial.trial, "device": device, "direction": direction}
                    rows = pd.DataFrame({"t_s": t_s, "asked_mbit": mbit, "cause": causes})
                    more = {"scenario": trial.scenario, "backend": BACKENDS[direction], "delay_ms": 2.0}
                    rows["why"] = np.where(rows["cause"] == "allocate", "layer 3", None)
                    settings.append(rows.assign(**about, **more))
                    samples.append(self.samples(trial, t_s, mbit).assign(**about))
                    probes += self.probes({**about, **more}, float(t_s[0]) - 0.3, float(mbit[0]))
            self.writer.write("links", f"{trial.trial}-set", pd.concat(settings))
            self.writer.write("links", f"{trial.trial}-probe", probes)
            self.writer.write("throughput", trial.trial, pd.concat(samples))

    def rates(self, trial: Any, number: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        begin_s, end_s, base = trial.t_start_s - 0.2, trial.t_end_s, 20.0 - 3 * number
        if trial.scenario != FADING:
            return np.array([begin_s]), np.array([base]), ["set"]
        moves_s = np.arange(trial.t_start_s, end_s, self.block_s)
        level = np.cumsum(self.random.normal(0, 0.25 * np.sqrt(self.block_s), moves_s.size))
        mbit = np.clip(base * np.exp(level - 0.4 * np.sin(moves_s / 2)), 0.5, 60)
        other = "allocate" if trial.policy == "top-1" else "block"
        causes = ["set", *(other if place % 5 == 4 else "block" for place in range(moves_s.size))]
        return np.append(begin_s, moves_s), np.append(base, mbit), causes

    def samples(self, trial: Any, t_s: np.ndarray, mbit: np.ndarray) -> pd.DataFrame:
        ends = np.arange(trial.t_start_s + SAMPLE_S, trial.t_end_s, SAMPLE_S)
        fine_s = np.arange(trial.t_start_s, trial.t_end_s, 0.001)
        rate = mbit[np.searchsorted(t_s, fine_s, side="right") - 1]
        sums = np.concatenate([[0.0], np.cumsum(rate * 0.001)])
        places = np.round((ends - trial.t_start_s) / 0.001).astype(int)
        asked = sums[places] - sums[places - round(SAMPLE_S / 0.001)]
        waiting = np.sin(ends * 1.7) > -0.2
        full = waiting & np.append(False, waiting[:-1])
        share = np.where(full, self.random.normal(self.surplus, 0.004, ends.size), 0.3)
        sent = (asked * share * 1e6 / 8).astype(int)
        waits = np.where(waiting, 9000, 0)
        return pd.DataFrame(
            {"t_s": ends, "interval_s": SAMPLE_S, "frame_bytes": sent, "backlog_bytes": waits}
        )

    def probes(self, about: dict[str, Any], t_s: float, rate: float) -> list[dict[str, Any]]:
        wrong = self.off and (about["device"], about["direction"]) == BAD_LINK
        rows = []
        for size in (1024, 8192, 65536):
            for state in ("idle", "busy"):
                expected = size * 8 / rate / 1000 * 1.045
                if size == 1024 and "tbf" in about["backend"]:
                    expected = 0.0
                measured = expected * float(self.random.normal(1.004, 0.006)) + (0 if expected else 0.02)
                if wrong and size == 8192:
                    measured *= 0.2
                ratio = measured / expected if expected else None
                fine = ratio is None or abs(ratio - 1) < 0.05
                timed = {"expected_ms": expected, "measured_ms": measured, "p95_ms": measured * 1.05}
                what = {"t_s": t_s, "asked_mbit": rate, "message_bytes": size, "n": 5, "state": state}
                rows.append({**about, **what, **timed, "ratio": ratio, "ok": fine})
        return rows


@pytest.fixture(scope="session")
def make_moving(make_run: Maker) -> Maker:
    """Make a run with moving links: options of :class:`MovingLinks`, and under ``run`` those of the run."""

    def make(run: dict[str, Any] | None = None, **options: Any) -> Path:
        folder = make_run(**(run or {"repeats": 1, "prompts": 3, "tokens": 24}))
        MovingLinks(folder, **options).write()
        return folder

    return make


@pytest.fixture(scope="session")
def moving_run(make_moving: Maker) -> Path:
    """A run with moving links and nothing wrong."""
    return make_moving()


@pytest.fixture
def untouched_run(make_run: Maker) -> Path:
    """A run whose links nobody set: the devices told of their radio instead."""
    folder = make_run(repeats=1, prompts=1, tokens=6)
    for part in (folder / "tables" / "links").glob("*.parquet"):
        part.unlink()
    for part in (folder / "tables" / "trials").glob("*.parquet"):
        row = pd.read_parquet(part).astype({"links_ok": object}).assign(links_ok=None)
        RecordWriter(folder).write("trials", part.stem, row)
    manifest = read_manifest(folder)
    manifest["inventory"]["network"] = {"shaping": "none"}
    write_manifest(folder, manifest | {"links": {"backend": "none"}})
    generator = np.random.default_rng(2)
    for number, device in enumerate(load_run(folder).devices[:3]):
        signal = -52 - 4 * number + generator.normal(0, 1.5, 30)
        rows = pd.DataFrame({"t_s": np.arange(30.0), "interface": "wlan0", "signal_dbm": signal})
        rates = {"tx_mbit": 400 + 5 * signal, "rx_mbit": 520 + 6 * signal, "width_mhz": 80.0}
        RecordWriter(folder).write("radio", device, rows.assign(device=device, **rates))
    return folder
