"""The Karhunen-Loeve transform of image patches: the linear part that everything starts from.

Among the linear transmissions of a Gaussian vector over a Gaussian channel the best sends each principal component by
itself, with a power in proportion to its standard deviation (Lee and Petersen 1976, for many components on one
channel). So a component of deviation s is scaled by ``s ** -0.5``, and the most important ones come first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["PATCH", "Klt", "fit_klt", "from_patches", "to_patches"]

#: Side of a patch; three colours of 8 x 8 are 192 components.
PATCH = 8


class Klt(NamedTuple):
    """The transform of patches, as one vector each.

    Attributes:
        mean: (P,), the mean patch.
        basis: (P, P), orthonormal; column j is component j, the most important first.
        deviation: (P,), standard deviation of each component.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    deviation: torch.Tensor


def to_patches(images: torch.Tensor) -> torch.Tensor:
    """Return images (B, 3, H, W) as patches (B, 192, H / 8, W / 8)."""
    return torch.nn.functional.pixel_unshuffle(images, PATCH)


def from_patches(patches: torch.Tensor) -> torch.Tensor:
    """Return patches (B, 192, h, w) as images (B, 3, 8 h, 8 w)."""
    return torch.nn.functional.pixel_shuffle(patches, PATCH)


def fit_klt(patches: torch.Tensor) -> Klt:
    """Return the transform of some patches.

    Args:
        patches: (N, P), at least as many as they have components.
    """
    vectors = patches.double()
    mean = vectors.mean(dim=0)
    values, vectors = torch.linalg.eigh((vectors - mean).T @ (vectors - mean) / len(vectors))
    deviation = values.flip(0).clamp_min(1e-6).sqrt()
    return Klt(mean.float(), vectors.flip(1).float(), deviation.float())
