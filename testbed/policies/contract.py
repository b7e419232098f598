"""The contract of an expert selection: what must hold for whatever it is shown, for `testbed policy check` and tests.

Each check shows a fresh selector random layers: one token and many, few devices and many, links from even to a hundred
times unequal, routers that are sure and routers that are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from payloads.wdmoe.gating import Selector
from payloads.wdmoe.guarded import PROBLEMS
from payloads.wdmoe.latency import TERMS, DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.routing import LayerView, Routing, loads_of
from payloads.wdmoe.user_policy import fault_of

__all__ = ["Check", "Timing", "check_selector", "random_view", "time_selector"]

Make = Callable[[], Selector]


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        name: A few words.
        problem: What was seen where it does not hold; empty where it does.
    """

    name: str
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether it holds."""
        return not self.problem


@dataclass(frozen=True)
class Timing:
    """How long a choice takes.

    Attributes:
        tokens: Tokens of the layer.
        calls: How many calls were timed.
        median_us: Their median, in microseconds.
    """

    tokens: int
    calls: int
    median_us: float


def random_view(
    generator: np.random.Generator,
    *,
    tokens: int,
    experts: int = 8,
    chosen: int = 2,
    devices: int = 4,
    layer: int = 0,
    step: int = 1,
) -> LayerView:
    """Return a random layer.

    Args:
        generator: Where it is drawn from.
        tokens: N.
        experts: E.
        chosen: k, at most E.
        devices: D.
        layer: The layer's number.
        step: The token step.
    """
    logits = generator.normal(0, generator.uniform(0.2, 4.0), (tokens, experts))
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    index = np.argsort(-scores, axis=1, kind="stable")[:, :chosen].astype(np.int64)
    weights = np.take_along_axis(scores, index, axis=1)
    weights /= weights.sum(axis=1, keepdims=True)
    device_of = generator.permutation(np.arange(experts) % devices).astype(np.int64)
    rates = 10 ** generator.uniform(0, 2, (2, devices))
    speeds = tuple(
        DeviceSpeed(float(ops), float(ops) / 100, float(fixed))
        for ops, fixed in zip(
            10 ** generator.uniform(9, 11, devices), generator.uniform(0.1, 2, devices), strict=True
        )
    )
    model = LatencyModel(
        devices=tuple(f"d{number}" for number in range(devices)),
        shape=ExpertShape(192, 384, 2),
        speeds=speeds,
        terms=frozenset(TERMS),
        bs_layer_ms=0.1,
        bs_row_ms=0.0,
        bs_step_ms=1.0,
    )
    return LayerView(layer, step, Routing(index, weights, scores), device_of, model.costs(rates[0], rates[1]))


def check_selector(make: Make, *, rounds: int = 40, seed: int = 1, file: Path | None = None) -> list[Check]:
    """Check an expert selection.

    Args:
        make: Makes a fresh selector.
        rounds: How many random layers each check shows it.
        seed: What they follow from.
        file: The file of its class: what fails there is said with its line.

    Returns:
        One entry for each thing that must hold.
    """
    checks: list[tuple[str, Callable[[Make, LayerView], str]]] = [
        *((name, _asked(problem_of)) for name, problem_of in PROBLEMS),
        ("keeps the router's weights where a token loses nothing", _untouched),
        ("chooses the same for the same layer", _repeatable),
        ("leaves what it is shown as it was", _harmless),
        ("learns from measured times without a fault", _learns),
    ]
    return [_checked(name, check, make, rounds, seed, file) for name, check in checks]


def time_selector(make: Make, *, tokens: int, calls: int = 50, seed: int = 2) -> Timing:
    """Return how long a choice takes on this machine.

    Args:
        make: Makes a fresh selector.
        tokens: Tokens of a layer.
        calls: How many calls.
        seed: What the layers follow from.
    """
    generator = np.random.default_rng(seed)
    selector = make()
    views = [random_view(generator, tokens=tokens) for _ in range(min(calls, 8))]
    took = []
    for number in range(calls):
        view = views[number % len(views)]
        begun = time.perf_counter()
        selector.select(view)
        took.append(time.perf_counter() - begun)
    return Timing(tokens, calls, float(np.median(took)) * 1e6)


def views_of(rounds: int, seed: int) -> Iterator[LayerView]:
    """Yield random layers of all sizes."""
    generator = np.random.default_rng(seed)
    for number in range(rounds):
        experts = int(generator.integers(2, 17))
        yield random_view(
            generator,
            tokens=1 if number % 2 else int(generator.integers(2, 60)),
            experts=experts,
            chosen=int(generator.integers(1, min(experts, 6) + 1)),
            devices=int(generator.integers(1, 9)),
            layer=number % 3,
            step=number,
        )


def _checked(
    name: str,
    check: Callable[[Make, LayerView], str],
    make: Make,
    rounds: int,
    seed: int,
    file: Path | None,
) -> Check:
    for number, view in enumerate(views_of(rounds, seed)):
        try:
            problem = check(make, view)
        # A user's code may do anything: that it failed is what is reported.
        except (Exception, SystemExit) as error:
            problem = str(fault_of(error, file)) if file else f"{type(error).__name__}: {error}"
        if problem:
            tokens, chosen = view.routing.index.shape
            shown = f"{tokens} tokens, {chosen} of {view.routing.scores.shape[1]} experts"
            return Check(name, f"layer {number + 1} of {rounds} ({shown}): {problem}")
    return Check(name)


def _asked(problem_of: Callable[[Any, Routing], str]) -> Callable[[Make, LayerView], str]:
    """Return a check of what a fresh selector chooses, of what must hold at the base station too."""

    def check(make: Make, view: LayerView) -> str:
        return problem_of(make().select(view), view.routing)

    return check


def _untouched(make: Make, view: LayerView) -> str:
    selection, routing = make().select(view), view.routing
    whole = selection.keep.all(axis=1) & (selection.index == routing.index).all(axis=1)
    if (selection.weights[whole] != routing.weights[whole]).any():
        return "the weights of a token that keeps all of its experts were changed"
    return ""


def _repeatable(make: Make, view: LayerView) -> str:
    first, second = make().select(view), make().select(view)
    same = all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    return "" if same else "two fresh selectors disagree; draw random numbers from a seed of the settings"


def _harmless(make: Make, view: LayerView) -> str:
    arrays = (*view.routing, view.device_of)
    before = [array.copy() for array in arrays]
    make().select(view)
    changed = [a for a, b in zip(arrays, before, strict=True) if not np.array_equal(a, b)]
    return "it changed an array of the view" if changed else ""


def _learns(make: Make, view: LayerView) -> str:
    selector = make()
    observe = getattr(selector, "observe", None)
    devices = len(view.costs.pair_s)
    for _ in range(3):
        loads = loads_of(selector.select(view), view.device_of, devices)
        seconds = np.where(loads.pairs > 0, view.costs.dispatch_s(loads), np.nan)
        if observe is not None:
            observe(view.layer, view.step, loads, seconds)
    return ""
