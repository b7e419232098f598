"""Worlds that are small enough to be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from payloads.linkd.channel import Channel, Rule, linear_channel
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from testbed.simulate.routing import Traced
from testbed.simulate.world import Ask, PolicySettings, TrialPlan, World

TOP_2: Mapping[str, Any] = {"kind": "top_k", "k": 2}
LEFT: Mapping[str, Any] = {"kind": "scenario"}


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Traced]:
    """Return what makes a trace: ``choices`` holds, for each layer, the two experts of each row."""

    def make(choices: Sequence[Sequence[tuple[int, int]]], prompt: int, experts: int = 2) -> Traced:
        index = np.array(choices, np.int64)
        scores = np.full((*index.shape[:2], experts), 0.1 / experts, np.float32)
        np.put_along_axis(scores, index[:, :, :1], 0.6, axis=2)
        np.put_along_axis(scores, index[:, :, 1:], 0.3, axis=2)
        scores /= scores.sum(axis=2, keepdims=True)
        weights = np.take_along_axis(scores, index, axis=2)
        weights /= weights.sum(axis=2, keepdims=True)
        new = index.shape[1] - prompt + 1
        return Traced(prompt, index, weights, scores, np.arange(new))

    return make


@pytest.fixture(scope="session")
def two_devices() -> LatencyModel:
    """Two devices with one expert each, 1 million operations a second, and nothing beside the papers' own terms.

    A row has 4 numbers of 2 bytes, 64 bits; an expert of 4 x 8 takes 6 * 4 * 8 + 5 * 8 = 232 operations a token.
    """
    speed = DeviceSpeed(1e6, None, None)
    return LatencyModel(("a", "b"), ExpertShape(4, 8, 2), (speed, speed), frozenset())


@pytest.fixture(scope="session")
def make_world() -> Callable[..., World]:
    """Return what makes a world of one trial and one prompt."""

    def make(
        model: LatencyModel,
        trace: Traced,
        channel: Channel | None = None,
        *,
        selection: Mapping[str, Any] = TOP_2,
        bandwidth: Mapping[str, Any] = LEFT,
        trials: int = 1,
        **more: Any,
    ) -> World:
        layers, experts = trace.layers, trace.scores.shape[2]
        device_of = np.tile(np.arange(experts) % len(model.devices), (layers, 1))
        rates = dict.fromkeys(model.devices, (1.0, 1.0))
        return World(
            **{
                "model": model,
                "delays_ms": {"s": np.zeros(len(model.devices))},
                "device_of": device_of,
                "several": {},
                "policies": {"p": PolicySettings(selection, bandwidth)},
                "links": {("s", repeat): channel or linear_channel(rates) for repeat in range(trials)},
                "traces": {"q": trace},
                "trials": tuple(
                    TrialPlan(f"t{number:03d}", number, "p", "s", number, (Ask("q", False, "q"),))
                    for number in range(trials)
                ),
                **more,
            }
        )

    return make


@pytest.fixture(scope="session")
def two_blocks() -> Channel:
    """Links of a and b at 1 Mbit/s with half of the band each, and after a millisecond a tenth of that."""
    return Channel(
        rule=Rule("linear", min_mbit=0.01, max_mbit=1000),
        devices=("a", "b"),
        shares_downlink=(0.5, 0.5),
        shares_uplink=(0.5, 0.5),
        t_s=(0.0, 0.001),
        duration_s=0.1,
        downlink=((2.0, 2.0), (0.2, 0.2)),
        uplink=((2.0, 2.0), (0.2, 0.2)),
    )
