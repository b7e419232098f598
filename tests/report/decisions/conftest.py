"""A synthetic run of many policies that drop experts: made up here by a small model, written through the real writer.

Nothing of it was measured. A policy drops the pairs at the scenario's slow device whose share of a token's gate mass is
below its threshold; sharing the band brings all devices to one rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from testbed.records import RecordWriter, write_manifest

Maker = Callable[..., Path]
DEVICES = {"agx-orin": 0.9, "orin-nx": 1.5, "orin-nano": 2.1, "xavier-nx": 3.2}
LAYERS, EXPERTS, CHOSEN, PROMPT_ROWS = 4, 8, 2, 12
SLOW = {"even": "xavier-nx", "weak-nano": "orin-nano", "street": "orin-nx"}
RATES = {
    "even": (20.0, 20.0, 20.0, 8.0),
    "weak-nano": (20.0, 20.0, 0.8, 20.0),
    "street": (12.0, 2.0, 9.0, 14.0),
}


class Kind(NamedTuple):
    """One policy: what it drops, its settings, and whether it looks at the links."""

    drops: float
    selection: str
    bandwidth: str = ""
    follows: bool = True


POLICIES = {
    "top-2": Kind(0.0, "{kind: top_k, k: 2}", follows=False),
    "top-2-minmax": Kind(0.0, "{kind: top_k, k: 2}", "{kind: minmax, per: token}", follows=False),
    "top-1": Kind(1.0, "{kind: top_k, k: 1}", follows=False),
    "wlr": Kind(0.36, "{kind: wlr}"),
    "bottleneck": Kind(0.3, "{kind: bottleneck}"),
    "budget-98": Kind(0.15, "{kind: budget, tau: 0.98}"),
    "budget-90": Kind(0.45, "{kind: budget, tau: 0.9}"),
    "budget-98-minmax": Kind(0.15, "{kind: budget, tau: 0.98}", "{kind: minmax, per: token}"),
    "budget-90-minmax": Kind(0.45, "{kind: budget, tau: 0.9}", "{kind: minmax, per: token}"),
}


class ManyPolicies:
    """Makes one run.

    Args:
        folder: The run's folder.
        repeats: Repeats of each policy and scenario.
        prompts: Measured prompts of a trial.
        tokens: Generated tokens of a prompt.
        policies: Names out of ``POLICIES``; all without it.
        scenarios: Names out of ``RATES``; all without it.
        quality: Whether quality was measured.
        predicts: The run that this one, then a simulated one, predicts.
        off: How much slower the simulation is than what it predicts.
        latency: Whether trials were run at all.
    """

    def __init__(
        self,
        folder: Path,
        *,
        repeats: int = 5,
        prompts: int = 2,
        tokens: int = 8,
        policies: tuple[str, ...] = tuple(POLICIES),
        scenarios: tuple[str, ...] = tuple(RATES),
        quality: bool = True,
        predicts: str | None = None,
        off: float = 1.0,
        latency: bool = True,
        seed: int = 3,
    ) -> None:
        self.folder, self.repeats, self.prompts, self.tokens = folder, repeats, prompts, tokens
        self.policies, self.scenarios, self.rated, self.predicts = policies, scenarios, quality, predicts
        self.off, self.latency = off, latency
        self.random = np.random.default_rng(seed)
        self.writer, self.now = RecordWriter(folder), 5.0

    def make(self) -> Path:
        number = 0
        for repeat in range(self.repeats if self.latency else 0):
            pairs = [(policy, scenario) for policy in self.policies for scenario in self.scenarios]
            for place in self.random.permutation(len(pairs)):
                number += 1
                self.trial(f"t{number:03d}", number, *pairs[int(place)], repeat)
        if self.rated:
            self.quality()
        if self.latency and self.predicts is None:
            self.power()
        write_manifest(self.folder, self.manifest())
        return self.folder

    def trial(self, name: str, order: int, policy: str, scenario: str, repeat: int) -> None:
        start = self.now
        speed = self.off * math.exp(
            np.random.default_rng(100 + repeat).normal(0, 0.03) + self.random.normal(0, 0.01)
        )
        requests, tokens, dispatches, selection = [], [], [], []
        for prompt in range(self.prompts + 1):
            begin, about = self.now, {"trial": name, "request": f"p{prompt}"}
            for position in range(self.tokens):
                since, bs_ms, bound_ms = self.now, 0.0, 0.0
                for layer in range(LAYERS):
                    own_ms = speed * self.random.uniform(0.5, 0.6)
                    bs_ms += own_ms
                    self.now += own_ms / 1000
                    rows = PROMPT_ROWS if position == 0 else 1
                    layer_rows, tally, least_ms = self.layer(policy, scenario, rows, speed)
                    bound_ms += own_ms + least_ms
                    dispatches += [{**about, "step": position, "layer": layer, **row} for row in layer_rows]
                    stage = "prompt" if position == 0 else "decode"
                    if prompt:  # the first only warms up
                        selection += [{"trial": name, "stage": stage, "layer": layer, **row} for row in tally]
                tokens.append(
                    {
                        **about,
                        "position": position,
                        "token": 1,
                        "t_s": self.now,
                        "duration_ms": (self.now - since) * 1000,
                        "bs_ms": bs_ms,
                        "bound_ms": bound_ms if "budget" in policy else None,
                    }
                )
            requests.append(
                {
                    **about,
                    "warmup": prompt == 0,
                    "prompt_tokens": PROMPT_ROWS,
                    "output_tokens": self.tokens,
                    "t_start_s": begin,
                    "ttft_ms": tokens[-self.tokens]["duration_ms"],
                    "e2el_ms": (self.now - begin) * 1000,
                }
            )
        keys = ["trial", "stage", "layer", "device"]
        counted = pd.DataFrame(selection).groupby(keys, sort=False).sum().reset_index()
        row = {
            "trial": name,
            "order": order,
            "policy": policy,
            "scenario": scenario,
            "repeat": repeat,
            "state": "completed",
            "t_start_s": start,
            "t_end_s": self.now,
            "links_ok": True,
        }
        tables = {"requests": requests, "tokens": tokens, "dispatches": dispatches, "selection": counted}
        self.writer.write_trial(row, tables)
        self.links(name, scenario, start)
        self.now += 0.5

    def links(self, trial: str, scenario: str, start: float) -> None:
        """Write the rates, a good probe and a clock for each device."""
        settings, probes, clocks = [], [], []
        for name, rate in zip(DEVICES, RATES[scenario], strict=True):
            clocks += [
                {"t_s": t_s, "device": name, "offset_s": 100.0, "rtt_ms": 0.1}
                for t_s in (start - 0.1, self.now)
            ]
            for direction in ("downlink", "uplink"):
                about = {"trial": trial, "scenario": scenario, "device": name, "direction": direction}
                about |= {"backend": "htb+tbf", "asked_mbit": rate}
                settings.append({"t_s": start - 0.3, **about, "cause": "set"})
                sent = {
                    "message_bytes": 4096,
                    "n": 5,
                    "expected_ms": 10.0,
                    "measured_ms": 10.1,
                    "p95_ms": 10.2,
                }
                probes.append({"t_s": start - 0.2, **about, **sent, "ratio": 1.01, "ok": True})
        self.writer.write("links", f"{trial}-set", settings)
        if self.predicts is None:
            self.writer.write("links", f"{trial}-probe", probes)
            self.writer.write("clocks", trial, clocks)

    def power(self) -> None:
        """Write an even power for each board."""
        times = np.arange(0, self.now + 2, 0.05)
        for place, name in enumerate(DEVICES):
            rows = pd.DataFrame({"t_s": times, "device": name, "rail": "VDD_IN", "mw": 4e3 + 1e3 * place})
            self.writer.write("power", name, rows)

    def layer(
        self, policy: str, scenario: str, rows: int, speed: float
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
        """Run one layer; returns its dispatches, what was dropped, and the least milliseconds that it could take."""
        names, kind = list(DEVICES), POLICIES[policy]
        slow = names.index(SLOW[scenario])
        scores = self.random.dirichlet(np.full(EXPERTS, 0.6), rows)
        index = np.argsort(-scores, axis=1)[:, :CHOSEN]
        mass = np.take_along_axis(scores, index, axis=1)
        mass = mass / mass.sum(axis=1, keepdims=True)
        device = index % len(names)
        keep = np.ones_like(mass, dtype=bool)
        if policy == "top-1":
            keep[:, 1] = False
        else:
            keep &= ~((device == slow) & (mass < kind.drops))
        rates = np.array(RATES[scenario])
        rates = np.full(len(names), len(names) / (1 / rates).sum()) * 1.5 if kind.bandwidth else rates
        sent, done, tally, ends = self.now, [], [], [0.0]
        for place, name in enumerate(names):
            here = device == place
            pairs = int((here & keep).sum())
            wanted = float(mass[here].sum())
            left = float(mass[here & ~keep].sum())
            tally.append(
                {
                    "device": name,
                    "pairs": pairs,
                    "dropped": int((here & ~keep).sum()),
                    "moved_in": 0,
                    "mass": wanted - left,
                    "dropped_mass": left,
                }
            )
            if not pairs:
                continue
            size = 60 + 384 * pairs
            way_ms = size * 8 / rates[place] / 1000
            expected = 2 * way_ms + 0.2 + DEVICES[name] * (1 + 0.08 * pairs) * self.off
            compute_ms = (
                speed * DEVICES[name] * (1 + 0.08 * pairs) * float(np.exp(self.random.normal(0, 0.05)))
            )
            total_ms = 2 * way_ms + 0.2 + compute_ms
            ends.append(total_ms)
            received = sent + (way_ms + 0.1) / 1000
            computed = received + compute_ms / 1000
            done.append(
                {
                    "device": name,
                    "tokens": min(rows, pairs),
                    "assignments": pairs,
                    "dropped": tally[-1]["dropped"],
                    "bytes_out": size,
                    "bytes_back": size,
                    "t_send_s": sent,
                    "t_first_s": computed,
                    "t_done_s": sent + total_ms / 1000,
                    "t_received_s": received,
                    "t_started_s": received,
                    "t_computed_s": computed,
                    "t_replied_s": computed,
                    "compute_ms": compute_ms,
                    "predicted_ms": expected * 1.04,
                }
            )
        self.now += max(ends) / 1000
        return done, tally, 0.9 * max(ends)

    def quality(self) -> None:
        """Write what each policy costs: more where it drops more, and more in the scenario of the weak link."""
        base, hard = self.random.normal(3.1, 0.25, 16), self.random.random(200)
        for policy in self.policies:
            kind = POLICIES[policy]
            for scenario in self.scenarios if kind.follows else (None,):
                scale = {"weak-nano": 1.6, "street": 1.0}.get(scenario or "", 0.8)
                cost = (0.025 if policy.startswith("budget") else 0.14) * kind.drops**2 * scale
                noise = self.random.normal(0, 0.002, 16) * (kind.drops > 0)
                name = f"{policy}-{scenario or 'any'}"
                rows = pd.DataFrame(
                    {
                        "policy": policy,
                        "scenario": scenario,
                        "text": [f"text-{place // 8}" for place in range(16)],
                        "window": [place % 8 for place in range(16)],
                        "tokens": 255,
                        "nll_sum": 255 * (base + cost + noise),
                        "kl_sum": 255 * cost * (1 + np.abs(noise)),
                        "agree": (255 * (1 - cost) - 3 * np.abs(noise) * 255).astype(int),
                        "mass_kept": 1 - kind.drops * 0.3 * scale,
                    }
                )
                self.writer.write("quality", f"quality-{name}", rows)
                right = hard < 0.45 - cost
                answers = pd.DataFrame(
                    {
                        "policy": policy,
                        "scenario": scenario,
                        "set": "general",
                        "item": [f"q{place}" for place in range(200)],
                        "choices": 4,
                        "answer": 1,
                        "chosen": np.where(right, 1, 2),
                        "nll_answer": 1.0,
                        "nll_chosen": 0.9,
                    }
                )
                self.writer.write("choices", f"choices-{name}", answers)

    def manifest(self) -> dict[str, object]:
        lines = ["campaign: many", f"repeats: {self.repeats}", "policies:"]
        for name in self.policies:
            kind = POLICIES[name]
            bandwidth = f", bandwidth: {kind.bandwidth}" if kind.bandwidth else ""
            lines.append(f"  - {{name: {name}, selection: {kind.selection}{bandwidth}}}")
        lines += ["scenarios:", *(f"  - {{name: {name}}}" for name in self.scenarios), ""]
        hosts = {"bs": {"role": "base_station"}, **{name: {"role": "device"} for name in DEVICES}}
        simulated = {"simulated": True, "predicts": self.predicts} if self.predicts is not None else {}
        evaluation = {} if self.latency else {"files": {"evaluation": {"policies": [], "scenarios": []}}}
        return {
            "run": self.folder.name,
            "campaign": "\n".join(lines),
            "campaign_name": "many",
            "started_unix": 1_760_000_000.0,
            "inventory": {"lab": "synthetic", "hosts": hosts},
            "facts": {},
            "power_total": dict.fromkeys(DEVICES, "VDD_IN"),
            "emulated": not simulated,
            "security": "plain-hmac",
            "command": "testbed run campaigns/many.yaml",
            "state": "completed",
            **simulated,
            **evaluation,
        }


@pytest.fixture(scope="session")
def make_many(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Make a run of many policies: options of :class:`ManyPolicies`, and ``beside`` for its folder."""

    def make(name: str = "many-0001", *, beside: Path | None = None, **options: Any) -> Path:
        folder = (beside or tmp_path_factory.mktemp("results")) / name
        return ManyPolicies(folder, **options).make()

    return make


@pytest.fixture(scope="session")
def many_run(make_many: Maker) -> Path:
    """A run of nine policies in three scenarios."""
    return make_many(repeats=3, tokens=6)
