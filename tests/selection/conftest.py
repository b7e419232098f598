"""Layers to choose experts in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.routing import LayerView, Routing, loads_of

SHAPE = ExpertShape(1024, 3584, 2)


def routing_of(scores, chosen, *, weights=None):
    """The router's choice by scores, weights normalised as Mixtral does."""
    scores = np.asarray(scores, np.float32)
    index = np.argsort(-scores, axis=1, kind="stable")[:, :chosen]
    picked = np.take_along_axis(scores, index, axis=1)
    if weights is None:
        weights = picked / picked.sum(axis=1, keepdims=True)
    return Routing(index, weights.astype(np.float32), scores)


def view_of(seed, tokens, chosen=2, experts=8, devices=4, *, layer=0, step=1, spread=1.5):
    """A layer on unequal devices and links; all follows from the seed."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(tokens, experts)) * spread
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    speeds = tuple(DeviceSpeed(1e12 * (1 + d % 3), 1e11, float(random.uniform(0, 3))) for d in range(devices))
    model = LatencyModel(tuple(f"d{d}" for d in range(devices)), SHAPE, speeds)
    costs = model.costs(random.uniform(5, 100, devices), random.uniform(5, 50, devices))
    device_of = np.arange(experts) % devices
    return LayerView(layer, step, routing_of(scores, chosen), device_of, costs)


def latency_s(view, selection):
    """The layer's attention waiting latency."""
    return view.costs.layer_s(loads_of(selection, view.device_of, len(view.costs.fixed_s)))


@st.composite
def views(draw):
    """Any layer."""
    experts = draw(st.sampled_from([4, 8, 12]))
    return view_of(
        draw(st.integers(0, 10**6)),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 4)),
        experts,
        draw(st.integers(1, 5)),
        spread=draw(st.sampled_from([0.0, 0.5, 2.0, 6.0])),
    )


@pytest.fixture
def view():
    return view_of(3, 200)
