#!/usr/bin/env python3
"""What a policy costs the base station for each layer of a token: beside a layer whose tokens simply go out.

    python scripts/bench/decisions.py [--rounds 400] [--json]

A whole layer at the base station is timed (decide, sort, frames, weigh, sum) over four echo workers, in turn for each
policy, in one run on one machine, so that only the differences and ratios are to be trusted:

- ``none``: all that the router asks for goes out, nobody decides: what a base station did before it had policies;
- ``top_k``, ``budget``: an expert selection, on links that are followed;
- ``minmax``, ``joint``: a bandwidth allocation for each layer, alone and with ``budget``; linkd only keeps rates here
  (its backend for paced sockets), so that its answer is counted and the kernel's work is not.

``decide`` is the part of it that decides.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

WORKERS, EXPERTS, CHOSEN, HIDDEN = 4, 8, 2, 2048
TOKENS = (1, 64)
POLICIES: dict[str, tuple[dict[str, Any], dict[str, Any]] | None] = {
    "none": None,
    "top_k": ({"kind": "top_k", "k": CHOSEN}, {"kind": "scenario"}),
    "budget": ({"kind": "budget", "tau": 0.9}, {"kind": "scenario"}),
    "minmax": ({"kind": "top_k", "k": CHOSEN}, {"kind": "minmax"}),
    "joint": ({"kind": "budget", "tau": 0.9}, {"kind": "minmax"}),
}


def main() -> None:
    """Start the workers and linkd, time all policies in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=400, help="rounds at one token; fewer for more")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        key = home / "key"
        key.write_text(os.urandom(32).hex())
        key.chmod(0o600)
        context = multiprocessing.get_context("spawn")
        workers, ports = [], []
        for _ in range(WORKERS):
            ours, theirs = context.Pipe()
            workers.append(context.Process(target=serve_results, args=(theirs, str(key)), daemon=True))
            workers[-1].start()
            ports.append(ours.recv())
        linkd = start_linkd(home)
        try:
            rows = [measure(tokens, ports, key, home / "linkd.sock", options.rounds) for tokens in TOKENS]
        finally:
            for process in workers:
                process.terminate()
                process.join()
            linkd.terminate()
            linkd.wait()
    if options.json:
        print(json.dumps(rows))
        return
    print(
        f"median us for a layer (more than none; of it decide), {WORKERS} workers, hidden {HIDDEN}, bfloat16"
    )
    for row in rows:
        cells = [
            f"{name} {row[name]:6.0f} ({row[name] - row['none']:+5.0f}; {row['decide'].get(name, 0.0):4.0f})"
            for name in POLICIES
        ]
        print(f"{row['tokens']:4} tokens: " + "   ".join(cells))


def start_linkd(home: Path) -> subprocess.Popen[bytes]:
    """Start a linkd that only keeps rates, with four unequal links."""
    from payloads.linkd.client import Client

    ready = home / "ready"
    process = subprocess.Popen(
        [sys.executable, "-m", "payloads.linkd", "serve", "--backend", "pacing", "--sample-hz", "0"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TESTBED_HOME": str(home),
            "TESTBED_READY": str(ready),
        },
    )
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.02)
    links = [
        {
            "device": f"w{n}",
            "address": f"10.9.0.{n + 2}",
            "port": 7070,
            "downlink_mbit": mbit,
            "uplink_mbit": mbit,
        }
        for n, mbit in enumerate((8, 8, 2, 8))
    ]
    with Client(home / "linkd.sock") as client:
        client.set(links)
    return process


def measure(tokens: int, ports: list[int], key: Path, linkd: Path, rounds: int) -> dict[str, Any]:
    """Time one size under all policies; return the medians in microseconds."""
    import numpy as np
    import torch

    from payloads.station.devices import DeviceSpec
    from payloads.station.link_feed import LinkFeed
    from payloads.wdmoe.bs.fleet import FleetSpec
    from payloads.wdmoe.bs.links import LinkControl
    from payloads.wdmoe.bs.remote import Dispatcher
    from payloads.wdmoe.decision import decider_of
    from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
    from payloads.wdmoe.pace import ExpertShape
    from payloads.wire.client import Channel, Exchange
    from payloads.wire.credentials import PlainKey

    torch.set_num_threads(1)
    exchange = Exchange()
    channels = {f"w{number}": Channel(f"w{number}", "127.0.0.1", port) for number, port in enumerate(ports)}
    for channel in channels.values():
        exchange.connect(channel, PlainKey(key))
    devices = tuple(DeviceSpec(name, channel.address, channel.port) for name, channel in channels.items())
    names = list(channels)
    dispatcher = Dispatcher(exchange)
    dispatcher.place(
        FleetSpec(devices, (tuple((names[expert % len(names)],) for expert in range(EXPERTS)),)), channels
    )
    speeds = tuple(DeviceSpeed(1e11, 1e9, 0.5) for _ in names)
    model = LatencyModel(dispatcher.devices, ExpertShape(HIDDEN, 2 * HIDDEN, 2), speeds)
    feed = LinkFeed(linkd)
    control = LinkControl(linkd, feed, "minmax", "bench", dispatcher.devices)
    links = feed.links(dispatcher.devices)
    deciders = {
        name: settings and decider_of(*settings, model, dispatcher.device_of, links)
        for name, settings in POLICIES.items()
    }
    times: dict[str, list[float]] = {name: [] for name in POLICIES}
    decide_us: dict[str, list[float]] = {name: [] for name in POLICIES if POLICIES[name]}
    generator = np.random.default_rng(0)
    count = max(40, int(rounds / tokens**0.5))
    for number in range(count + 10):
        hidden = torch.randn(tokens, HIDDEN).to(torch.bfloat16)
        scores = torch.from_numpy(generator.dirichlet(np.full(EXPERTS, 0.5), tokens)).float()
        weights, index = torch.topk(scores, CHOSEN)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        for name, decider in deciders.items():
            timed = None if decider is None else Timed(decider)
            dispatcher.decider = timed
            dispatcher.feed = None if decider is None else feed
            dispatcher.control = control if name in ("minmax", "joint") else None
            with torch.inference_mode():
                begun = time.perf_counter()
                dispatcher.layer(0, hidden, index, weights, scores)
                took_us = (time.perf_counter() - begun) * 1e6
            dispatcher.booking.rows.clear()
            if number >= 10:
                times[name].append(took_us)
                if timed is not None:
                    decide_us[name].append(timed.took_us)
    control.__exit__(None, None, None)
    exchange.close()
    return {
        "tokens": tokens,
        **{name: statistics.median(values) for name, values in times.items()},
        "decide": {name: statistics.median(values) for name, values in decide_us.items()},
    }


class Timed:
    """A decider that is timed."""

    def __init__(self, decider: Any) -> None:
        self._decider = decider
        self.took_us = 0.0
        self.before_token, self.observe = decider.before_token, decider.observe

    def decide(self, *arguments: Any) -> Any:
        """Decide as the other does."""
        begun = time.perf_counter()
        decision = self._decider.decide(*arguments)
        self.took_us = (time.perf_counter() - begun) * 1e6
        return decision


def serve_results(ready: Any, key: str) -> None:
    """Serve the data plane; answer with a row for each pair, without computing anything."""
    from payloads.wire.credentials import PlainKey
    from payloads.wire.frames import Buffer, Header, pack_result, unpack_dispatch
    from payloads.wire.server import Server, listen

    def echo(header: Header, payload: memoryview, received_ns: int) -> list[Buffer]:
        dispatch = unpack_dispatch(payload)
        now_ns = time.monotonic_ns()
        head = pack_result(dispatch, received_ns, now_ns, now_ns, now_ns, False, header.sequence)
        return [head, bytes(sum(dispatch.counts) * HIDDEN * 2)]

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    server = Server(listen("127.0.0.1", 0), PlainKey(Path(key)), echo, "bench")
    ready.send(server.address[1])
    server.serve()


if __name__ == "__main__":
    main()
