"""A run with known truth: made by a latency model and written by the real writer. Nothing of it was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from payloads.wdmoe.buckets import Buckets
from payloads.wdmoe.latency import LatencyModel, message_bytes
from payloads.wdmoe.routing import Selection, loads_of
from testbed.records import RecordWriter, write_manifest

LAYERS, STEPS = 4, 7
DEVICE_OF = np.array([0, 0, 0, 1, 1, 2])
RATES = {"even": [20.0, 20.0, 20.0], "weak": [20.0, 20.0, 2.0]}


class MadeRun:
    """Makes a run.

    Args:
        folder: Its folder.
        truth: What it follows.
        assumed: The pace that the inventory says of each device.
        trials: How many trials; every second one has the scenario ``weak``.
        noise_ms: The spread of a dispatch and of the base station's time in a layer.
        prompts: Tokens of each prompt.
        one: Whether each token uses one device only.
        shaped: Whether the links have rates.
        blocks: Whether rates change all the time.
        shares: Whether the trial of a number shares the band anew for a layer of a step.
        shares_step: Whether it does so for each step.
    """

    def __init__(
        self,
        folder: Path,
        truth: LatencyModel,
        *,
        assumed: dict[str, float],
        trials: int = 8,
        noise_ms: float = 0.02,
        prompts: tuple[int, ...] = (6, 15, 40, 90),
        one: bool = False,
        shaped: bool = True,
        blocks: bool = False,
        shares: Callable[[int, int, int], bool] = lambda trial, layer, step: False,
        shares_step: Callable[[int], bool] = lambda trial: False,
        seed: int = 1,
    ) -> None:
        self.folder, self.truth, self.assumed, self.trials = folder, truth, assumed, trials
        self.noise_ms, self.prompts, self.one = noise_ms, prompts, one
        self.shaped, self.blocks = shaped, blocks
        self.shares, self.shares_step, self.number = shares, shares_step, 0
        self.random = np.random.default_rng(seed)
        self.now = 10.0

    def make(self, **manifest: Any) -> Path:
        shape = self.truth.shape
        hosts: dict[str, Any] = {"bs": {"role": "base_station"}}
        for name in self.truth.devices:
            hosts[name] = {"role": "device", "pace": self.assumed, "board": None}
        write_manifest(
            self.folder,
            {
                "run": self.folder.name,
                "state": "completed",
                "started_unix": 1_760_000_000.0,
                "inventory": {"hosts": hosts},
                "model": {
                    "layers": LAYERS,
                    "hidden_size": shape.hidden,
                    "intermediate_size": shape.intermediate,
                },
                **manifest,
            },
        )
        writer = RecordWriter(self.folder)
        for number in range(self.trials):
            self._trial(writer, f"t{number + 1:03d}", ("even", "weak")[number % 2], number)
        return self.folder

    def _trial(self, writer: RecordWriter, trial: str, scenario: str, number: int) -> None:
        begin, buckets, self.number = self.now, Buckets(self.truth), number
        tables: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("requests", "tokens", "dispatches", "links")
        }
        if self.shaped:
            tables["links"] = [
                {
                    "t_s": begin - 0.5, "trial": trial, "scenario": scenario, "device": device,
                    "direction": direction, "backend": "bs-htb-netem" if self.truth.first_frame else "bs-htb-tbf",
                    "cause": "set", "asked_mbit": rate, "delay_ms": 0.0,
                }
                for device, rate in zip(self.truth.devices, RATES[scenario], strict=True)
                for direction in ("downlink", "uplink")
            ]  # fmt: skip
        rates = RATES[scenario] if self.shaped else [np.inf] * 3
        for rows in self.prompts:
            self._answer(trial, f"prompt-{rows}", rows, rates, buckets, tables)
        if self.blocks:
            row = tables["links"][0]
            times = np.arange(begin, self.now, 0.002)
            tables["links"] += [{**row, "t_s": float(t), "cause": "block", "delay_ms": None} for t in times]
        row = {"trial": trial, "order": number, "policy": "p", "scenario": scenario, "repeat": number // 2}
        writer.write_trial({**row, "state": "completed", "t_start_s": begin, "t_end_s": self.now}, tables)
        self.now += 1.0

    def _share(self, why: str, tables: dict[str, Any]) -> None:
        """Share the band anew, as it was."""
        self.now += self.truth.bs_allocate_ms / 1e3
        more = {"t_s": self.now, "cause": "allocate", "why": why, "delay_ms": None}
        tables["links"] += [{**row, **more} for row in tables["links"] if row["cause"] == "set"]

    def _noise(self) -> float:
        """Return the noise of one time in seconds: small, and now and then a pause of the machine."""
        pause = 30.0 * (self.random.random() < 0.002)
        return float(self.noise_ms * (self.random.normal() + pause)) / 1e3

    def _answer(
        self, trial: str, request: str, rows: int, rates: Any, buckets: Buckets, tables: dict[str, Any]
    ) -> None:
        start = self.now
        for step in range(STEPS):
            begin = self.now
            batch = rows if step == 0 else 1
            waits = self._layers(trial, request, step, batch, rates, buckets, tables)
            own_s = self.now - begin - waits
            token = {"trial": trial, "request": request, "position": step, "token": 1, "t_s": self.now}
            tables["tokens"].append(
                {**token, "duration_ms": 1e3 * (self.now - begin), "bs_ms": 1e3 * own_s, "nll": 0.0}
            )
            if step == 0:
                first = self.now
        tables["requests"].append(
            {
                "trial": trial, "request": request, "warmup": False, "prompt_tokens": rows,
                "output_tokens": STEPS, "t_start_s": start, "ttft_ms": 1e3 * (first - start),
                "e2el_ms": 1e3 * (self.now - start), "text": "",
            }
        )  # fmt: skip

    def _layers(
        self, trial: str, request: str, step: int, batch: int, rates: Any, buckets: Buckets, tables: Any
    ) -> float:
        waits, truth = 0.0, self.truth
        if self.shares_step(self.number):
            self._share(f"step {step} of {request}" if step else f"before {request}", tables)
        self.now += truth.bs_step_ms / 1e3
        for layer in range(LAYERS):
            if self.shares(self.number, layer, step):
                self._share(f"layer {layer} step {step}", tables)
            self.now += truth.station_s(batch, 1) - truth.station_s(batch, 0) + self._noise()
            index = np.stack([self.random.permutation(6)[: 1 if self.one else 2] for _ in range(batch)])
            if step == 0:  # a prompt whose tokens agree, so that every expert's tokens are known
                index[:] = index[0]
            loads = loads_of(Selection(index, index >= 0, np.ones(index.shape)), DEVICE_OF, 3)
            seconds = buckets.dispatch_s(loads, rates, rates, self.now)
            silent = replace(truth, terms=truth.terms - {"round-trip"}, first_frame=True)
            compute = silent.demand(loads).fixed_s
            up_s = truth.demand(loads).uplink_bits / (np.array(rates) * 1e6)
            sizes = message_bytes(loads, truth.row_bytes, truth.tls)
            used = np.flatnonzero(loads.pairs)
            # Sent in turn, the slowest last: the worst that sending in turn can do.
            for turn, device in enumerate(used[np.argsort(seconds[used])]):
                took_s = float(seconds[device]) + self._noise()
                sent_s = self.now + turn * truth.bs_dispatch_ms / 1e3
                replied_s = sent_s + took_s - float(up_s[device])
                tables["dispatches"].append(
                    {
                        "trial": trial, "request": request, "step": step, "layer": layer,
                        "device": truth.devices[device], "tokens": int(loads.tokens[device]),
                        "assignments": int(loads.pairs[device]), "dropped": 0,
                        "bytes_out": int(sizes[0][device]), "bytes_back": int(sizes[1][device]),
                        "t_send_s": sent_s, "t_first_s": sent_s + took_s, "t_done_s": sent_s + took_s,
                        "t_received_s": sent_s, "t_started_s": sent_s,
                        "t_computed_s": replied_s, "t_replied_s": replied_s,
                        "compute_ms": float(1e3 * compute[device] * (1 + 0.002 * self.random.normal())),
                    }
                )  # fmt: skip
            end_s = max(row["t_done_s"] for row in tables["dispatches"][-len(used) :])
            waits += end_s - self.now
            self.now = end_s
        return waits


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return what makes a run of a name, a truth and the settings of :class:`MadeRun`; it returns the run's folder."""

    def make(name: str, truth: LatencyModel, manifest: dict[str, Any] | None = None, **settings: Any) -> Path:
        return MadeRun(tmp_path / "results" / name, truth, **settings).make(**(manifest or {}))

    return make
