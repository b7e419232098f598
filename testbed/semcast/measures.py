"""How near an image is to what was sent: PSNR, SSIM and MS-SSIM of 8-bit pixels.

SSIM (Wang et al. 2004) and MS-SSIM (Wang, Simoncelli and Bovik 2003) come from pytorch-msssim, per colour channel and
averaged. MS-SSIM halves an image four times, and its window has to fit even then: the usual 11 x 11 one needs a side
of more than 160 pixels. Smaller images get the largest odd window that fits (7 x 7 at 128 pixels, 5 x 5 at 96) and
those of 64 pixels or fewer have no MS-SSIM.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["HIGHEST_PSNR_DB", "ms_ssim", "ms_ssim_window", "psnr_db", "ssim"]

Pixels = NDArray[np.uint8]

#: What equal images are given, and the most that any are: tables hold no infinities.
HIGHEST_PSNR_DB = 100.0

_WINDOW = 11
_LEAST_WINDOW = 5
#: MS-SSIM's five scales are four halvings.
_HALVINGS = 2**4


def psnr_db(first: Pixels, second: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two images (H, W, 3) in dB, at most :data:`HIGHEST_PSNR_DB`.

    Raises:
        ValueError: They differ in their sizes, or are no 8-bit images.
    """
    _check(first, second)
    error = float(np.square(first.astype(np.int32) - second.astype(np.int32)).mean())
    return min(HIGHEST_PSNR_DB, 10 * math.log10(255**2 / error)) if error else HIGHEST_PSNR_DB


def ssim(first: Pixels, second: Pixels) -> float:
    """Return the structural similarity of two images (H, W, 3), at most 1.

    Raises:
        ValueError: They differ in their sizes, are no 8-bit images, or are smaller than the window of 11 pixels.
    """
    _check(first, second)
    if min(first.shape[:2]) < _WINDOW:
        raise ValueError(f"SSIM needs sides of at least {_WINDOW} pixels, and there are {first.shape[:2]}")
    from pytorch_msssim import ssim as measured

    return float(measured(_planes(first), _planes(second), data_range=255, win_size=_WINDOW))


def ms_ssim_window(side: int) -> int | None:
    """Return the side of the window that MS-SSIM has for images of this shorter side; None where none fits."""
    widest = (side - 1) // _HALVINGS + 1
    odd = min(_WINDOW, widest if widest % 2 else widest - 1)
    return odd if odd >= _LEAST_WINDOW else None


def ms_ssim(first: Pixels, second: Pixels) -> float | None:
    """Return the multi-scale structural similarity of two images (H, W, 3); None where they are too small for it.

    Raises:
        ValueError: They differ in their sizes, or are no 8-bit images.
    """
    _check(first, second)
    window = ms_ssim_window(min(first.shape[:2]))
    if window is None:
        return None
    from pytorch_msssim import ms_ssim as measured

    return float(measured(_planes(first), _planes(second), data_range=255, win_size=window))


def _planes(pixels: Pixels) -> torch.Tensor:
    """Return an image as (1, 3, H, W) numbers."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()[None]


def _check(first: Pixels, second: Pixels) -> None:
    if first.dtype != np.uint8 or second.dtype != np.uint8 or first.ndim != 3 or not first.size:
        raise ValueError("images (H, W, 3) of 8-bit pixels were expected")
    if first.shape != second.shape:
        raise ValueError(f"images of {first.shape} and {second.shape} cannot be compared")
