"""What the base station adds to a layer of its own, while the devices work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, List, Optional

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Beside", "keep_result", "served_by", "served_of"]

#: Given which experts answer (N, E), ``None`` for all of them, what is added (N, H).
Beside = Callable[[Optional[torch.Tensor]], torch.Tensor]


def served_by(index: torch.Tensor, keep: Optional[NDArray[np.bool_]], experts: int) -> torch.Tensor:
    """Return which experts (N, E) answer each token.

    Args:
        index: (N, k), the experts chosen.
        keep: (N, k), which of them are asked; ``None`` for all.
        experts: E.
    """
    served = torch.zeros(index.shape[0], experts, dtype=torch.bool)
    if keep is None:
        return served.scatter_(1, index, True)
    rows, places = torch.from_numpy(keep).nonzero(as_tuple=True)
    served[rows, index[rows, places]] = True
    return served


def served_of(
    index: NDArray[np.int64], keep: Optional[NDArray[np.bool_]], experts: int
) -> Optional[torch.Tensor]:
    """Return which experts (N, E) answer each token; ``None`` where all do.

    Args:
        index: (N, k), the experts chosen.
        keep: (N, k), which of them are asked; ``None`` for all.
        experts: E.
    """
    if keep is None and index.shape[1] == experts:
        return None
    return served_by(torch.from_numpy(index), keep, experts)


def keep_result(
    beside: Beside,
    index: NDArray[np.int64],
    keep: Optional[NDArray[np.bool_]],
    experts: int,
    results: List[torch.Tensor],
) -> None:
    """Work out what is added where these experts are asked, as for :func:`served_of`, and keep it."""
    results.append(beside(served_of(index, keep, experts)))
