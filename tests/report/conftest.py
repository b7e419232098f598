"""A synthetic run for the tests of the report: made up here by a small model, written through the real writer.

Nothing of it was measured. Its times follow from one model of links and boards, so that its parts fit together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from testbed.records import RecordWriter, write_manifest

DEVICES = {
    "agx-orin": (0.9, 9.0, "NVIDIA Jetson AGX Orin Developer Kit", "VDD_GPU_SOC+VDD_CPU_CV"),
    "orin-nx": (1.5, 5.5, "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "VDD_IN"),
    "orin-nano": (2.1, 4.0, "NVIDIA Jetson Orin Nano Developer Kit", "VDD_IN"),
    "xavier-nx": (3.2, 4.6, "NVIDIA Jetson Xavier NX Developer Kit", "VDD_IN"),
}
POLICIES = {"top-2": 2, "top-1": 1}
RATES = {"even": dict.fromkeys(DEVICES, 20.0), "weak-nano": dict.fromkeys(DEVICES, 20.0) | {"orin-nano": 5.0}}
CAMPAIGN = """# synthetic: only for tests
campaign: synthetic
repeats: {repeats}
policies:
  - {{name: top-2, selection: {{kind: top_k, k: 2}}}}
  - {{name: top-1, selection: {{kind: top_k, k: 1}}}}
scenarios:
  - {{name: even}}
  - {{name: weak-nano}}
verify: {{message_bytes: [4096, 65536], repeats: 5, tolerance: 0.05}}
"""
STARTED = 1_760_000_000.0


class SyntheticRun:
    """Makes one run.

    Args:
        folder: The run's folder.
        repeats: Repeats of each policy and scenario.
        prompts: Measured prompts of a trial; one more is for warming up.
        tokens: Generated tokens of a prompt.
        layers: MoE layers.
        effect: How much of a real difference between the policies there is: 0 makes them the same.
        noise: The spread of a repeat.
    """

    def __init__(
        self,
        folder: Path,
        *,
        repeats: int = 3,
        prompts: int = 3,
        tokens: int = 8,
        layers: int = 4,
        effect: float = 1.0,
        noise: float = 0.01,
        seed: int = 7,
    ) -> None:
        self.folder, self.repeats, self.prompts, self.tokens = folder, repeats, prompts, tokens
        self.layers, self.effect, self.noise = layers, effect, noise
        self.random = random.Random(seed)
        self.writer = RecordWriter(folder)
        self.now = 12.0
        self.busy: dict[str, list[tuple[float, float]]] = {name: [] for name in DEVICES}

    def trials(self) -> list[tuple[str, str, int]]:
        order: list[tuple[str, str, int]] = []
        for repeat in range(self.repeats):
            block = [(policy, scenario, repeat) for policy in POLICIES for scenario in RATES]
            self.random.shuffle(block)
            order += block
        return order

    def make(
        self, *, stop_after: int | None = None, fail: int | None = None, state: str = "completed"
    ) -> Path:
        """Write the run; ``stop_after`` trials it is cut off, and trial number ``fail`` fails."""
        self.quality()
        for number, (policy, scenario, repeat) in enumerate(self.trials()[:stop_after], start=1):
            self.trial(f"t{number:03d}", number, policy, scenario, repeat, failed=number == fail)
        self.power()
        write_manifest(self.folder, self.manifest(state))
        return self.folder

    def trial(self, name: str, number: int, policy: str, scenario: str, repeat: int, *, failed: bool) -> None:
        self.links(name, scenario)
        start = self.now
        speed = math.exp(self.random.gauss(0, self.noise))
        requests, tokens, dispatches = [], [], []
        for index in range(self.prompts + 1):
            begin = self.now
            for position in range(self.tokens):
                token_begin = self.now
                rows = 12 + 3 * index if position == 0 else 1
                bs_ms = self.token(name, f"p{index}", position, policy, scenario, rows, speed, dispatches)
                tokens.append(
                    {
                        "trial": name,
                        "request": f"p{index}",
                        "position": position,
                        "token": self.random.randrange(4000),
                        "t_s": self.now,
                        "duration_ms": (self.now - token_begin) * 1000,
                        "bs_ms": bs_ms,
                        "nll": self.random.expovariate(0.6),
                    }
                )
            first = tokens[-self.tokens]["duration_ms"]
            requests.append(
                {
                    "trial": name,
                    "request": f"p{index}",
                    "warmup": index == 0,
                    "prompt_tokens": 12 + 3 * index,
                    "output_tokens": self.tokens,
                    "t_start_s": begin,
                    "ttft_ms": first,
                    "e2el_ms": (self.now - begin) * 1000,
                    "text": "a synthetic answer </script><b>& more",
                }
            )
        clocks = [
            {
                "t_s": t_s,
                "device": device,
                "offset_s": 100 + t_s * 8e-6,
                "rtt_ms": 0.09 + 0.02 * self.random.random(),
            }
            for t_s in (start - 0.05, self.now + 0.05)
            for device in DEVICES
        ]
        row = {
            "trial": name,
            "order": number,
            "policy": policy,
            "scenario": scenario,
            "repeat": repeat,
            "state": "failed" if failed else "completed",
            "t_start_s": start,
            "t_end_s": self.now,
            "links_ok": True,
            "error": "device orin-nano lost: connection closed" if failed else None,
        }
        traffic = self.traffic(name, dispatches)
        tables = {
            "traffic": traffic,
            "requests": requests,
            "tokens": tokens,
            "dispatches": dispatches,
            "clocks": clocks,
        }
        self.writer.write_trial(row, {} if failed else tables)
        self.now += 0.6

    def token(
        self,
        trial: str,
        request: str,
        step: int,
        policy: str,
        scenario: str,
        rows: int,
        speed: float,
        out: list,
    ) -> float:
        """Run one token through all layers; returns the base station's milliseconds."""
        bs_ms = 0.0
        for layer in range(self.layers):
            own_ms = speed * (0.5 + 0.04 * rows) * self.random.uniform(0.95, 1.05)
            bs_ms += own_ms
            self.now += own_ms / 1000
            wanted = POLICIES[policy] * rows if self.effect else 2 * rows
            counts = dict.fromkeys(DEVICES, 0)
            for _ in range(wanted):
                counts[self.random.choice(list(DEVICES))] += 1
            send, ends = self.now, []
            for device, assigned in counts.items():
                if not assigned:
                    continue
                slow_ms = DEVICES[device][0]
                size = 60 + 384 * assigned
                way = size * 8 / (RATES[scenario][device] * 1e6)
                received = send + way + 0.0001
                started = received + 0.00005
                computed = started + speed * slow_ms / 1000 * (1 + 0.08 * assigned)
                done = computed + 0.00004 + way + 0.0001
                ends.append(done)
                self.busy[device].append((started, computed))
                out.append(
                    {
                        "trial": trial,
                        "request": request,
                        "step": step,
                        "layer": layer,
                        "device": device,
                        "tokens": min(assigned, rows),
                        "assignments": assigned,
                        "dropped": 0,
                        "bytes_out": size,
                        "bytes_back": size - 8,
                        "t_send_s": send,
                        "t_first_s": done - way,
                        "t_done_s": done,
                        "t_received_s": received,
                        "t_started_s": started,
                        "t_computed_s": computed,
                        "t_replied_s": computed + 0.00004,
                        "compute_ms": (computed - started) * 1000,
                    }
                )
            self.now = max(ends)
        return bs_ms

    def traffic(self, trial: str, dispatches: list) -> list[dict[str, object]]:
        rows = []
        for device in DEVICES:
            own = [row for row in dispatches if row["device"] == device]
            for direction, column in (("downlink", "bytes_out"), ("uplink", "bytes_back")):
                sent, frames = sum(row[column] for row in own), 2 * len(own) + 20
                rows.append(
                    {
                        "trial": trial,
                        "device": device,
                        "direction": direction,
                        "frames": frames,
                        "drops": 0,
                        "frame_bytes": sent + 640 + 66 * frames,
                        "dispatch_bytes": sent,
                        "control_bytes": 640,
                    }
                )
        return rows

    def links(self, trial: str, scenario: str) -> None:
        settings, probes = [], []
        for device, rate in RATES[scenario].items():
            for direction in ("downlink", "uplink"):
                common = {
                    "trial": trial,
                    "scenario": scenario,
                    "device": device,
                    "direction": direction,
                    "backend": "htb+tbf",
                    "asked_mbit": rate,
                }
                settings.append({"t_s": self.now, **common})
                for size in (4096, 65536):
                    expected = size * 8 / rate / 1000 * 1.045
                    measured = expected * self.random.gauss(1.005, 0.008)
                    probes.append(
                        {
                            "t_s": self.now + 0.4,
                            **common,
                            "message_bytes": size,
                            "n": 5,
                            "expected_ms": expected,
                            "measured_ms": measured,
                            "p95_ms": measured * 1.03,
                            "ratio": measured / expected,
                            "ok": True,
                        }
                    )
        self.writer.write("links", f"{trial}-set", settings)
        self.writer.write("links", f"{trial}-probe", probes)
        self.now += 0.9

    def quality(self) -> None:
        base = [self.random.gauss(3.1, 0.25) for _ in range(16)]
        for policy, k in POLICIES.items():
            rows = [
                {
                    "policy": policy,
                    "text": f"text-{index // 8}",
                    "window": index % 8,
                    "tokens": 255,
                    "nll_sum": 255 * (value + (0.09 + self.random.gauss(0, 0.01)) * (2 - k) * self.effect),
                }
                for index, value in enumerate(base)
            ]
            self.writer.write("quality", f"quality-{policy}", rows)

    def power(self, *, hz: float = 20.0) -> None:
        """Write idle power and what the busy times add, smoothed over a fifth of a second."""
        end = self.now + 3
        for device, (_, active_w, _, rule) in DEVICES.items():
            rails = rule.split("+")
            count = int(end * hz)
            load = [0.0] * (count + 1)
            for begin, finish in self.busy[device]:
                load[int(begin * hz)] += (finish - begin) * hz
            watts, level, rows = 0.55 * active_w, 0.0, []
            for index in range(count):
                level += 0.22 * (min(1.0, load[index]) - level)
                total = 1000 * (watts + 0.45 * active_w * level + self.random.gauss(0, 0.01))
                rows += [
                    {"t_s": index / hz, "device": device, "rail": rail, "mw": total / len(rails)}
                    for rail in rails
                ]
            self.writer.write("power", device, rows)
            heat = [
                {"t_s": t / 2, "device": device, "key": "temp_cpu_c", "value": 41 + t / 100}
                for t in range(20)
            ]
            self.writer.write("boards", device, heat)

    def manifest(self, state: str) -> dict[str, object]:
        hosts = {"bs": {"role": "base_station", "address": "10.83.0.1"}}
        facts = {
            "bs": {"board_model": None, "python": "3.11.2", "torch": "2.13.0+cpu", "memory_bytes": 8 << 30}
        }
        for device, (_, _, board, _) in DEVICES.items():
            hosts[device] = {"role": "device", "address": f"10.83.0.{len(hosts) + 10}"}
            facts[device] = {
                "board_model": board,
                "jetpack": "6.2",
                "l4t": "36.4.3",
                "python": "3.10.12",
                "torch": "2.13.0",
                "power_mode": "MAXN",
                "memory_bytes": 8 << 30,
                "cpu_count": 6,
            }
        return {
            "run": self.folder.name,
            "campaign": CAMPAIGN.format(repeats=self.repeats),
            "campaign_name": "synthetic",
            "started_unix": STARTED,
            "versions": {"testbed": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
            "machine": {"system": "Linux", "cpus": 2},
            "inventory": {"lab": "synthetic", "hosts": hosts},
            "facts": facts,
            "model": {"name": "tiny-mixtral", "manifest": "0" * 64, "parameters": 3_841_216},
            "placement": {"0": {"0": ["agx-orin"], "1": ["orin-nx"]}},
            "links": {"backend": "htb+tbf"},
            "power_total": {name: rule for name, (_, _, _, rule) in DEVICES.items()},
            "seeds": {"order": 7},
            "security": "plain-hmac",
            "emulated": True,
            "command": "testbed run campaigns/synthetic.yaml",
            "state": state,
        }


Maker = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Make a synthetic run: options of :class:`SyntheticRun` and of its ``make``."""

    def make(name: str = "synthetic-0001", **options: object) -> Path:
        making = {key: options.pop(key) for key in ("stop_after", "fail", "state") if key in options}
        folder = tmp_path_factory.mktemp("results") / name
        return SyntheticRun(folder, **options).make(**making)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def whole_run(make_run: Maker) -> Path:
    """A completed run of three repeats."""
    return make_run()
