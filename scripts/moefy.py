"""Splitting a dense feed-forward layer into experts: the mathematics of ``build_smollm2_moe.py``, no effects.

Sizes: T calibration tokens, H model width, I intermediate neurons of the dense layer, E experts of I' neurons each, S
neurons of the shared part, r rank of a compensator. A neuron's contribution to the layer's output is its activation
times its column of the down projection.

* The shared part gets the S neurons that contribute most: they are always computed, and where the base station is.
* The others are dealt out by a balanced k-means over how much they contribute to each token, so that neurons that work
  together are together (co-activation).
* Each expert's compensator is the best linear guess of its output from the layer's input, of rank r (reduced-rank
  ridge regression, closed form).
* The router is a ridge regression of the logarithm of what is lost without each expert: the energy (squared norm) of
  its output less its compensator's guess.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment

__all__ = ["Fitted", "Layer", "Split", "activations", "fit_layer", "split_neurons"]

#: Directions that contributions are projected on before they are clustered.
PROJECTIONS = 256
#: Tokens that neurons are clustered by; more of them change little.
CLUSTERED = 12288
ROUNDS = 10
#: Ridge penalties, as a share of the mean square of an input.
COMPENSATOR_PENALTY = 1e-3
ROUTER_PENALTY = 1e-3


class Layer(NamedTuple):
    """A dense layer.

    Attributes:
        gate: (I, H).
        up: (I, H).
        down: (H, I).
    """

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


class Split(NamedTuple):
    """Which neurons go where.

    Attributes:
        shared: (S,), those of the shared part.
        experts: (E, I'), those of each expert.
    """

    shared: torch.Tensor
    experts: torch.Tensor


class Fitted(NamedTuple):
    """What is computed beside the experts; compensators as in ``payloads.wdmoe.families.moefied``.

    Attributes:
        router_weight: (E, H).
        router_bias: (E,).
        down: (E r, H).
        up: (H, E r).
        bias: (H, E).
        left: (E,), the share of each expert's energy that its compensator does not explain.
    """

    router_weight: torch.Tensor
    router_bias: torch.Tensor
    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor
    left: torch.Tensor


def activations(layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    """Return what the neurons (T, I) make of the layer's inputs (T, H)."""
    return torch.nn.functional.silu(inputs @ layer.gate.T) * (inputs @ layer.up.T)


def split_neurons(layer: Layer, active: torch.Tensor, shared: int, experts: int, seed: int) -> Split:
    """Deal out a layer's neurons.

    Args:
        layer: The dense layer.
        active: (T, I), the neurons' activations.
        shared: S.
        experts: E; it divides the neurons that are left.
        seed: What the random projection and the first centres follow from.
    """
    lengths = layer.down.norm(dim=0)
    energy = active.square().mean(dim=0) * lengths.square()
    order = energy.argsort(descending=True)
    chosen, rest = order[:shared].sort().values, order[shared:].sort().values
    # Each neuron's pattern over the tokens, whatever its size and its mean.
    patterns = active[:CLUSTERED, rest].abs().T
    patterns = torch.nn.functional.normalize(patterns, dim=1)
    patterns = torch.nn.functional.normalize(patterns - patterns.mean(dim=1, keepdim=True), dim=1)
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(patterns.shape[1], PROJECTIONS, generator=generator) / PROJECTIONS**0.5
    labels = balanced_k_means(patterns @ projection, experts, generator)
    return Split(chosen, torch.stack([rest[labels == number] for number in range(experts)]))


def balanced_k_means(points: torch.Tensor, groups: int, generator: torch.Generator) -> torch.Tensor:
    """Return each point's group (N,), all groups of one size: k-means with an optimal assignment in each round."""
    count, size = len(points), len(points) // groups
    if size * groups != count:
        raise ValueError(f"{count} points make no {groups} groups of one size")
    centres = points[torch.randint(count, (1,), generator=generator)]
    for _ in range(groups - 1):  # as k-means++ does: far from those there are
        far = torch.cdist(points, centres).square().min(dim=1).values
        centres = torch.cat([centres, points[torch.multinomial(far, 1, generator=generator)]])
    labels = torch.full((count,), -1)
    for _ in range(ROUNDS):
        cost = torch.cdist(points, centres).square().repeat_interleave(size, dim=1)
        again = torch.from_numpy(linear_sum_assignment(cost.numpy())[1] // size)
        if torch.equal(again, labels):
            break
        labels = again
        centres = torch.stack([points[labels == number].mean(dim=0) for number in range(groups)])
    return labels


def fit_layer(layer: Layer, split: Split, inputs: torch.Tensor, active: torch.Tensor, rank: int) -> Fitted:
    """Fit the router and the compensators of a layer.

    Args:
        layer: The dense layer.
        split: Where its neurons went.
        inputs: (T, H), the layer's inputs.
        active: (T, I), its neurons' activations.
        rank: r.
    """
    ridge = _Ridge(inputs)
    mixed = ridge.mixed(active)
    downs, ups, biases, lost, left = [], [], [], [], []
    for neurons in split.experts:
        back = layer.down[:, neurons].T
        weights = ridge.solve(mixed[:, neurons] @ back.double(), COMPENSATOR_PENALTY)
        # The best map of rank r for these inputs: the full one, projected on the r strongest directions of its guess.
        spread = weights.T @ ridge.square @ weights
        directions = torch.linalg.eigh(spread).eigenvectors[:, -rank:].float()
        down = (weights.float() @ directions).T
        bias = active[:, neurons].mean(dim=0) @ back - directions @ (down @ ridge.mean.float())
        output = active[:, neurons] @ back
        energy = output.square().sum()
        rest = output.addmm_(inputs @ down.T, directions.T, alpha=-1).sub_(bias)
        downs.append(down)
        ups.append(directions)
        biases.append(bias)
        lost.append(rest.norm(dim=1))
        left.append(rest.square().sum() / energy)
    losses = torch.stack(lost, dim=1)
    floor = 1e-3 * losses.mean()
    # Energies, not norms: what several experts leave out is nearly orthogonal, so that these add up.
    target = 2 * (losses + floor).log()
    router = ridge.solve(ridge.mixed(target), ROUTER_PENALTY).float()
    router_bias = target.mean(dim=0) - ridge.mean.float() @ router
    return Fitted(
        router.T.contiguous(),
        router_bias,
        torch.cat(downs),
        torch.cat(ups, dim=1),
        torch.stack(biases, dim=1),
        torch.stack(left),
    )


class _Ridge:
    """Ridge regression of several targets on the same inputs (T, H), with an intercept that is not penalised.

    Attributes:
        mean: (H,), the inputs' mean.
        square: (H, H), the sum of the squares of what is left of them.
    """

    def __init__(self, inputs: torch.Tensor) -> None:
        self._inputs = inputs
        self.mean = inputs.mean(dim=0).double()
        self.square = (inputs.T @ inputs).double() - len(inputs) * torch.outer(self.mean, self.mean)

    def mixed(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum (H, M) of inputs times targets (T, M), both less their means."""
        mean = targets.mean(dim=0).double()
        return (self._inputs.T @ targets).double() - len(self._inputs) * torch.outer(self.mean, mean)

    def solve(self, mixed: torch.Tensor, penalty: float) -> torch.Tensor:
        """Return the weights (H, M) for such a sum; the penalty is a share of an input's mean square."""
        square = self.square.clone()
        square.diagonal().add_(penalty * square.diagonal().mean())
        return torch.cholesky_solve(mixed, torch.linalg.cholesky(square))
