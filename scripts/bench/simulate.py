#!/usr/bin/env python3
"""How fast the simulator is: Mixtral-8x7B's shape on eight devices, a batch of 10,000 tokens, every policy there is.

    python scripts/bench/simulate.py [--draws 100] [--tokens 10000] [--jobs 2] [--json]

Measured are the whole (with the tables, without the report and the lower bounds), what one draw of the links takes by
how many there are, what a batch takes by its tokens, what the bounds add, and 1,024 devices. The exit code is 1 where a
floor is missed. All but the whole is processor time, which other work on the machine disturbs less than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from payloads.linkd.channel import Channel
from payloads.wdmoe.gating import SELECTOR_KINDS, check_selection
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from testbed.config.scenario import ChannelSettings, Scenario
from testbed.links.channels import channel_of
from testbed.simulate.prepare import prepare
from testbed.simulate.routing import Drawn, draw_routing
from testbed.simulate.run import simulate_trials
from testbed.simulate.session import target
from testbed.simulate.world import Ask, PolicySettings, TrialPlan, World

ROOT = Path(__file__).resolve().parents[2]
CAMPAIGN = ROOT / "campaigns" / "mixtral-8x7b.yaml"
REQUIRED = {"k": 2, "tau": 0.9}
ALONE = ("uniform", "proportional", "minmax")
JOINT = ("budget", "wlr")
MOST_S = 60.0
MOST_SPREAD = (
    1.3  # of a draw's cost between few and many draws, and of a token's between short and long batches
)
MANY = 1024


def main() -> int:
    """Measure, print, and say whether the floors were met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100, help="draws of the links")
    parser.add_argument("--tokens", type=int, default=10_000, help="tokens of the batch")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    policies = all_policies()
    whole = campaign_world(policies, options.draws, options.tokens)
    begun, begun_cpu = time.perf_counter(), all_cpu_s()
    tables = simulate_trials(whole, options.jobs)
    seconds, busy_s = time.perf_counter() - begun, all_cpu_s() - begun_cpu
    fewer = (max(1, options.draws // 20), max(2, options.draws // 10))
    by_draws = {draws: cpu_s(few(whole, draws)) / draws for draws in fewer}
    lengths = [options.tokens // 4, options.tokens // 2, options.tokens]
    one = {tokens: campaign_world(policies, 1, tokens) for tokens in lengths}
    by_tokens = {tokens: cpu_s(world) for tokens, world in one.items()}
    by_policy = {name: cpu_s(only(one[options.tokens], name)) for name in policies}
    with_bounds = [replace(only(one[options.tokens], name), bounds=True) for name in policies]
    bounds_s = sum(map(cpu_s, with_bounds)) - sum(by_policy.values())
    many = {name: cpu_s(many_devices(policies, name)) for name in policies}
    checks = {
        f"{len(policies)} policies, {options.draws} draws, {options.tokens:,} tokens, {options.jobs} processes: "
        f"{seconds:.1f} s ({busy_s:.1f} s of processors), at most {MOST_S:g}": seconds <= MOST_S,
        f"a draw costs the same however many there are: {spread(by_draws.values()):.2f} times, at most "
        f"{MOST_SPREAD:g}": spread(by_draws.values()) <= MOST_SPREAD,
        f"no token costs more in a longer batch: {growth(by_tokens):.2f} times, at most {MOST_SPREAD:g}": (
            growth(by_tokens) <= MOST_SPREAD
        ),
    }
    if options.json:
        figures = {
            "seconds": seconds,
            "cpu_s": busy_s,
            "by_draws": by_draws,
            "by_tokens": by_tokens,
            "by_policy": by_policy,
        }
        print(json.dumps({**figures, "many_devices": many, "checks": checks}, indent=2))
    else:
        print(
            f"{os.cpu_count()} cores; {len(tables['trials'])} trials of {tables['trials']['t_end_s'].max():,.0f} s"
        )
        print("\n| policy | ms a draw | ms a draw, 1,024 devices |\n| --- | --- | --- |")
        for name in policies:
            print(f"| {name} | {1e3 * by_policy[name]:.0f} | {1e3 * many[name]:.0f} |")
        print(f"\nlower bounds, where a policy has a budget: {1e3 * bounds_s:.0f} ms more a draw")
        print("\n| draws | ms each, all policies |\n| --- | --- |")
        for draws, each in by_draws.items():
            print(f"| {draws} | {1e3 * each:.0f} |")
        print("\n| tokens | ms, all policies | us a token |\n| --- | --- | --- |")
        for tokens, all_s in by_tokens.items():
            print(f"| {tokens:,} | {1e3 * all_s:.0f} | {1e6 * all_s / tokens:.1f} |")
        print()
        for line, met in checks.items():
            print(f"{'met   ' if met else 'MISSED'} {line}")
    return 0 if all(checks.values()) else 1


def all_policies() -> dict[str, PolicySettings]:
    """Return every kind of selection alone, every kind of allocation alone, and both together."""
    left: Mapping[str, Any] = {"kind": "scenario"}
    selections: dict[str, dict[str, Any]] = {}
    for kind, about in SELECTOR_KINDS.items():
        needed = {name: REQUIRED[name] for name in about.settings if name in REQUIRED}
        selections[kind] = {"kind": kind, **needed}
        if problems := check_selection(selections[kind]):
            sys.exit(f"{kind}: {problems[0]}: say in REQUIRED what it needs")
    policies = {kind: PolicySettings(settings, left) for kind, settings in selections.items()}
    for kind in ALONE:
        policies[f"top_k + {kind}"] = PolicySettings(selections["top_k"], {"kind": kind})
    for kind in JOINT:
        if kind in selections:
            policies[f"{kind} + minmax"] = PolicySettings(selections[kind], {"kind": "minmax"})
    return policies


def campaign_world(policies: Mapping[str, PolicySettings], draws: int, tokens: int) -> World:
    """Return the campaign's world with other policies and draws, and one prompt of one batch."""
    wanted = target(CAMPAIGN, ROOT, repeats=draws, batch_tokens=tokens)
    prompts = wanted.campaign.prompts.model_copy(update={"count": 1, "max_new_tokens": 1})
    campaign = wanted.campaign.model_copy(update={"prompts": prompts})
    world = prepare(campaign, wanted.inventory, batch_tokens=tokens, say=lambda _text: None).world
    (scenario,) = world.delays_ms
    asks = world.trials[0].asks
    trials = _trials(policies, scenario, draws, asks)
    return replace(world, policies=policies, trials=trials, bounds=False)


def _trials(
    policies: Mapping[str, PolicySettings], scenario: str, draws: int, asks: tuple[Ask, ...]
) -> tuple[TrialPlan, ...]:
    pairs = [(repeat, name) for repeat in range(draws) for name in policies]
    return tuple(
        TrialPlan(f"t{number:05d}", number, name, scenario, repeat, asks)
        for number, (repeat, name) in enumerate(pairs)
    )


def few(world: World, draws: int) -> World:
    """Return the first draws of a world."""
    return replace(world, trials=tuple(trial for trial in world.trials if trial.repeat < draws))


def only(world: World, policy: str) -> World:
    """Return the trials of one policy."""
    return replace(world, trials=tuple(trial for trial in world.trials if trial.policy == policy))


def many_devices(policies: Mapping[str, PolicySettings], policy: str) -> World:
    """Return one trial with one expert of each layer on each of 1,024 devices."""
    names = tuple(f"d{number:04d}" for number in range(MANY))
    generator = np.random.default_rng(1)
    speeds = tuple(
        DeviceSpeed(float(ops), float(ops) / 100, 1.0) for ops in generator.uniform(2e12, 2e13, MANY)
    )
    device = {"snr_db": 12.0}
    settings = ChannelSettings.model_validate(
        {"model": "shannon", "bandwidth_mhz": 10_000, "coherence_ms": 30_000, "devices": {"default": device}}
    )
    channel = _channel(Scenario.model_validate({"name": "many", "channel": settings}), names)
    model = LatencyModel(names, ExpertShape(4096, 14336, 2), speeds)
    traces = draw_routing(
        Drawn(), layers=4, experts=MANY, experts_per_token=2, lengths={"q": (1000, 1)}, seed=1
    )
    return World(
        model=model,
        delays_ms={"many": np.zeros(MANY)},
        device_of=np.tile(np.arange(MANY), (4, 1)),
        several={},
        policies=policies,
        links={("many", 0): channel},
        traces=traces,
        bounds=False,
        trials=_trials({policy: policies[policy]}, "many", 1, (Ask("q", False, "q"),)),
    )


def _channel(scenario: Scenario, names: tuple[str, ...]) -> Channel:
    channel = channel_of(scenario, names, seed=1, repeat=0)
    assert channel is not None
    return channel


def all_cpu_s() -> float:
    """Return the processor time so far, of this process and of those that it started and that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def cpu_s(world: World) -> float:
    """Return the processor time that a world takes in this process, in seconds."""
    begun = time.process_time()
    simulate_trials(world)
    return time.process_time() - begun


def spread(values: Any) -> float:
    """Return the largest over the smallest."""
    listed = list(values)
    return float(max(listed) / min(listed))


def growth(by_tokens: Mapping[int, float]) -> float:
    """Return a token's time in the longest batch over that in the shortest."""
    shortest, longest = min(by_tokens), max(by_tokens)
    return (by_tokens[longest] / longest) / (by_tokens[shortest] / shortest)


if __name__ == "__main__":
    sys.exit(main())
