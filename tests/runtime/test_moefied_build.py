"""How a dense layer is split and what is fitted beside its experts: ``scripts/moefy.py``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[2] / "scripts" / "moefy.py"


@pytest.fixture(scope="module")
def moefy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("moefy", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["moefy"] = module
    spec.loader.exec_module(module)
    return module


def layer_of(moefy, width=16, neurons=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gate, up, down = (
        torch.randn(shape, generator=generator) for shape in [(neurons, width)] * 2 + [(width, neurons)]
    )
    return moefy.Layer(gate, up, down), torch.randn(400, width, generator=generator)


@given(seed=st.integers(0, 1000), groups=st.sampled_from([1, 2, 3, 4]))
def test_every_neuron_goes_to_one_place(moefy, seed, groups):
    layer, inputs = layer_of(moefy, seed=seed)
    active = moefy.activations(layer, inputs)
    split = moefy.split_neurons(layer, active, 8, groups, seed)
    assert split.shared.shape == (8,)
    assert split.experts.shape == (groups, 24 // groups)
    assert sorted([*split.shared.tolist(), *split.experts.flatten().tolist()]) == list(range(32))
    # The shared part has those that contribute most.
    energy = active.square().mean(0) * layer.down.norm(dim=0).square()
    assert energy[split.shared].min() >= energy[split.experts].max()


def test_neurons_that_work_together_come_together(moefy):
    """Three planted groups, each active for its own third of the tokens."""
    generator = torch.Generator().manual_seed(1)
    active = 0.05 * torch.rand(300, 24, generator=generator)
    owners = torch.randperm(24, generator=generator) % 3
    for group in range(3):
        active[group * 100 : group * 100 + 100, owners == group] += (
            torch.rand(100, 1, generator=generator) + 0.5
        )
    layer = moefy.Layer(torch.zeros(24, 4), torch.zeros(24, 4), torch.ones(4, 24))
    split = moefy.split_neurons(layer, active, 0, 3, 0)
    assert all(len(set(owners[neurons].tolist())) == 1 for neurons in split.experts)


def test_sizes_that_do_not_divide_are_refused(moefy):
    with pytest.raises(ValueError, match="10 points make no 3 groups"):
        moefy.balanced_k_means(torch.rand(10, 2), 3, torch.Generator())


def planted(moefy, rank=2):
    """A layer whose experts are almost linear maps of the given rank: activations are given, not computed."""
    generator = torch.Generator().manual_seed(2)
    layer, inputs = layer_of(moefy)
    split = moefy.Split(torch.arange(8), torch.arange(8, 32).view(2, 12))
    active = torch.randn(400, 32, generator=generator)
    for neurons in split.experts:
        maps = torch.randn(16, rank, generator=generator) @ torch.randn(rank, 12, generator=generator)
        active[:, neurons] = inputs @ maps + 3.0
    return layer, split, inputs, active


def test_a_compensator_finds_a_linear_expert(moefy):
    layer, split, inputs, active = planted(moefy)
    fitted = moefy.fit_layer(layer, split, inputs, active, 2)
    for number, neurons in enumerate(split.experts):
        output = active[:, neurons] @ layer.down[:, neurons].T
        down, up = fitted.down[2 * number : 2 * number + 2], fitted.up[:, 2 * number : 2 * number + 2]
        guess = inputs @ down.T @ up.T + fitted.bias[:, number]
        assert (output - guess).norm() < 0.01 * output.norm()
    assert (fitted.left < 1e-4).all()
    poorer = moefy.fit_layer(layer, split, inputs, active, 1)
    assert (poorer.left > 0.01).all()


def test_the_router_finds_the_expert_that_will_be_missed(moefy):
    """What no linear map can guess is large for one expert where an input is positive, for the other elsewhere."""
    layer, split, inputs, active = planted(moefy)
    inputs[:, 0] = torch.where(inputs[:, 0] > 0, 1.0, -1.0)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(400, 32, generator=generator)
    first = inputs[:, :1] > 0
    active[:, split.experts[0]] = noise[:, split.experts[0]] * torch.where(first, 4.0, 0.5)
    active[:, split.experts[1]] = noise[:, split.experts[1]] * torch.where(first, 0.5, 4.0)
    fitted = moefy.fit_layer(layer, split, inputs, active, 2)
    logits = inputs @ fitted.router_weight.T + fitted.router_bias
    right = (logits.argmax(1) == 0) == first[:, 0]
    assert right.float().mean() > 0.95
