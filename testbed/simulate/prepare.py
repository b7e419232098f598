"""From files to a world: the campaign, the lab, the model, and a run whose routing and pings are to be taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from payloads.linkd.channel import Channel, linear_channel
from payloads.linkd.model import takes_first_frame
from payloads.wdmoe.allocation.bandwidth import LEAVE_ALONE
from payloads.wdmoe.holders import first_holders
from payloads.wdmoe.latency import LatencyModel
from payloads.wdmoe.user_policy import is_user_kind, read_user_policy, split_kind
from testbed.campaigns.placed import place
from testbed.campaigns.spec import load_prompts
from testbed.campaigns.trials import Trial, trials_of
from testbed.config.campaign import Campaign, Policy
from testbed.config.inventory import Inventory
from testbed.hosts.facts import assume_facts
from testbed.links.backends import is_shaped
from testbed.links.channels import channel_of
from testbed.placement.place import Placement
from testbed.records import Run
from testbed.simulate.assumed import latency_model
from testbed.simulate.playable import check_playable
from testbed.simulate.recorder import Asked, record_routing
from testbed.simulate.routing import Traced, draw_routing, drawn_settings
from testbed.simulate.shapes import SimulatedModel, simulated_model
from testbed.simulate.world import Ask, PolicySettings, TrialPlan, World

__all__ = ["MOST_ROWS", "Prepared", "prepare"]

MOST_ROWS = 2_000_000
"""With more dispatches than this, and rates that change with them, there are sums only."""

_BYTES_PER_TOKEN = 4  # of a prompt for a shape, which has no tokenizer


@dataclass(frozen=True)
class Prepared:
    """A world, and what it was made of.

    Attributes:
        world: The world.
        model: The model.
        placement: Which devices hold which expert.
        routing: Where the routing comes from, in words.
    """

    world: World
    model: SimulatedModel
    placement: Placement
    routing: str


def prepare(
    campaign: Campaign,
    inventory: Inventory,
    *,
    run: Run | None = None,
    batch_tokens: int | None = None,
    say: Callable[[str], None],
) -> Prepared:
    """Return the world of a campaign.

    Args:
        campaign: The campaign.
        inventory: The lab, limited to the devices that take part.
        run: A run whose placement, answers, round trips and kind of shaping are taken.
        batch_tokens: How many tokens the prompts of a shape have; by the length of their texts where left out.
        say: Told what takes a while.

    Raises:
        InputError: Something of it is wrong.
    """
    check_playable(campaign)
    model = simulated_model(campaign.model, campaign.experts)
    placement = _placement(campaign, inventory, model, run)
    # As at the base station: only those that hold an expert, by name.
    devices = sorted({name for row in placement.values() for names in row.values() for name in names})
    held = [list(placement[layer].values()) for layer in sorted(placement)]
    device_of, several = first_holders(held, devices)
    trials = trials_of(campaign)
    plans, asked = _asks(campaign, trials, run)
    traces, routing = _traces(campaign, model, asked, batch_tokens, say)
    world = World(
        model=_latency(campaign, inventory, model, run).limited(devices),
        delays_ms={
            scenario.name: np.array([scenario.impairments(name)[0] for name in devices])
            for scenario in campaign.scenarios
        },
        device_of=device_of,
        several=several,
        policies={
            policy.name: PolicySettings(
                _selection(policy, model),
                policy.bandwidth.settings() if policy.bandwidth else LEAVE_ALONE,
                policy.activations,
            )
            for policy in campaign.policies
        },
        links=_links(campaign, inventory),
        traces=traces,
        trials=plans,
        detail=_rows(plans, traces, len(devices)) <= MOST_ROWS,
    )
    return Prepared(world, model, placement, routing)


def _selection(policy: Policy, model: SimulatedModel) -> dict[str, Any]:
    """Return the settings of a policy's selection as the base station has them."""
    settings = policy.selection.settings()
    if not is_user_kind(settings["kind"]):
        return {"renormalise": model.family.renormalise(model.config), **settings}
    return {**settings, "sha256": read_user_policy(*split_kind(settings["kind"])).sha256}


def _placement(campaign: Campaign, inventory: Inventory, model: SimulatedModel, run: Run | None) -> Placement:
    if run is not None and run.manifest.get("placement"):
        given = run.manifest["placement"]
        return {
            int(layer): {int(expert): tuple(names) for expert, names in row.items()}
            for layer, row in given.items()
        }
    facts = {host.name: assume_facts(host) for host in inventory.hosts.values()}
    return place(campaign, inventory, model.manifest, facts)


def _latency(
    campaign: Campaign, inventory: Inventory, model: SimulatedModel, run: Run | None
) -> LatencyModel:
    latency = latency_model(campaign, inventory, model.manifest)
    if run is None:
        return latency
    # As at the base station: what nobody measured yet, the pings tell; the shortest is that of the idlest link.
    unknown = {
        name for name, speed in zip(latency.devices, latency.speeds, strict=True) if speed.fixed_ms is None
    }
    pings = run.clocks.groupby("device")["rtt_ms"].min()
    latency = latency.with_fixed_ms({str(name): float(ms) for name, ms in pings.items() if name in unknown})
    backends = (run.manifest.get("links") or {}).get("backends") or {}
    shaping = {backend for ways in backends.values() for backend in ways.values()}
    return latency.with_first_frame(all(map(takes_first_frame, shaping))) if shaping else latency


def _links(campaign: Campaign, inventory: Inventory) -> dict[tuple[str, int], Channel | None]:
    """Return the links of each scenario and repeat: those that the run would draw."""
    names = [device.name for device in inventory.devices]
    links: dict[tuple[str, int], Channel | None] = {}
    for scenario in campaign.scenarios:
        fixed: Channel | None = None
        if scenario.channel is None and is_shaped(inventory):
            rates = {name: scenario.rates(name) for name in names}
            fixed = linear_channel({n: (rate.downlink_mbit, rate.uplink_mbit) for n, rate in rates.items()})
        for repeat in range(campaign.repeats):
            drawn = channel_of(scenario, names, seed=campaign.seed, repeat=repeat)
            links[scenario.name, repeat] = fixed if drawn is None else drawn
    return links


def _asks(
    campaign: Campaign, trials: Sequence[Trial], run: Run | None
) -> tuple[tuple[TrialPlan, ...], dict[str, Asked]]:
    """Return the trials with their prompts, and what routing they need.

    Of a run, each trial is given the answers that it really had, which depend on its policy.
    """
    prompts = {prompt["id"]: prompt["text"] for prompt in load_prompts(campaign)}
    names = list(prompts)
    warmups = [names[number % len(names)] for number in range(campaign.prompts.warmup)]
    order = [(f"warmup-{number}-{name}", name, True) for number, name in enumerate(warmups)]
    order += [(name, name, False) for name in names]
    answers = _answers(run) if run is not None else {}
    asked: dict[str, Asked] = {}
    plans = []
    for number, trial in enumerate(trials):
        asks = []
        for request, prompt, warmup in order:
            tokens = answers.get((trial.policy, trial.scenario, trial.repeat, request))
            key = prompt if tokens is None else f"{prompt}-{_digest(tokens)}"
            asked[key] = Asked(prompts[prompt], tokens)
            asks.append(Ask(request, warmup, key))
        plans.append(TrialPlan(trial.name, number, trial.policy, trial.scenario, trial.repeat, tuple(asks)))
    return tuple(plans), asked


def _answers(run: Run) -> dict[tuple[str, str, int, str], tuple[int, ...]]:
    """Return the tokens that each request of a run's completed trials was answered with."""
    trials = {
        str(row.trial): (str(row.policy), str(row.scenario), int(row.repeat))
        for row in run.completed.itertuples()
    }
    answers = {}
    for (trial, request), rows in run.tokens.groupby(["trial", "request"], sort=False):
        if trial in trials:
            tokens = rows.sort_values("position")["token"].astype(int)
            answers[(*trials[trial], str(request))] = tuple(tokens.tolist())
    return answers


def _digest(tokens: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(tokens)).encode()).hexdigest()[:16]


def _traces(
    campaign: Campaign,
    model: SimulatedModel,
    asked: dict[str, Asked],
    batch_tokens: int | None,
    say: Callable[[str], None],
) -> tuple[dict[str, Traced], str]:
    """Return the routing, and in words where it comes from."""
    new = campaign.prompts.max_new_tokens
    if model.weights:
        digest = model.manifest.digest()
        traces = record_routing(campaign.model, digest, model.family, campaign.dtype, asked, new, say)
        given = any(ask.tokens is not None for ask in asked.values())
        return traces, "recorded from the model" + (", on the answers of the run" if given else "")
    lengths = {
        name: (batch_tokens or -(-len(ask.text.encode()) // _BYTES_PER_TOKEN), new)
        for name, ask in asked.items()
    }
    settings = drawn_settings(model.config)
    say(f"drawing the routing of {sum(sum(pair) - 1 for pair in lengths.values()):,} tokens")
    drawn = draw_routing(
        settings,
        layers=model.manifest.layers,
        experts=model.manifest.experts_per_layer,
        experts_per_token=model.manifest.experts_per_token,
        lengths=lengths,
        seed=campaign.seed,
    )
    about = ", ".join(f"{name} {value:g}" for name, value in vars(settings).items())
    return drawn, f"drawn, as the model has no weights ({about})"


def _rows(plans: Sequence[TrialPlan], traces: dict[str, Traced], devices: int) -> int:
    """Return how many dispatches there are at most."""

    def rows(trace: Traced) -> int:
        chosen: Any = trace.index.shape[2]
        steps = min(devices, chosen * trace.prompt_tokens) + (trace.steps - 1) * min(devices, chosen)
        return int(trace.layers * steps)

    size = {name: rows(trace) for name, trace in traces.items()}
    return sum(size[ask.trace] for plan in plans for ask in plan.asks)
