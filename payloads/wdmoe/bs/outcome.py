"""What the tokens of one pass through the model got: counted layer by layer, cheap where nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, NamedTuple, Optional, Tuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Outcome", "OutcomeCount"]


class Outcome(NamedTuple):
    """What each of N tokens got, over all layers so far.

    Attributes:
        wanted: (N,), pairs of the token and an expert that the policy wanted to be asked.
        lost: (N,), how many of them no device answered.
        rerouted: (N,), how many of them another device answered than would have, had none been lost.
    """

    wanted: NDArray[np.int64]
    lost: NDArray[np.int64]
    rerouted: NDArray[np.int64]


class OutcomeCount:
    """Counts one pass."""

    def __init__(self) -> None:
        self._tokens = 0
        self._whole = 0  # pairs of every token in layers where the policy kept all of them
        self._kept: List[NDArray[np.bool_]] = []
        self._changed: List[Tuple[Optional[NDArray[np.bool_]], Optional[NDArray[np.bool_]]]] = []

    def add(
        self,
        tokens: int,
        chosen: int,
        keep: Optional[NDArray[np.bool_]],
        lost: Optional[NDArray[np.bool_]] = None,
        rerouted: Optional[NDArray[np.bool_]] = None,
    ) -> None:
        """Count a layer.

        Args:
            tokens: N.
            chosen: k, the router's choices for a token.
            keep: (N, k), the pairs that the policy kept; ``None`` for all.
            lost: (N, k), the pairs that nobody answered; ``None`` for none.
            rerouted: (N, k), the pairs that another device answered; ``None`` for none.
        """
        self._tokens = tokens
        if keep is None:
            self._whole += chosen
        else:
            self._kept.append(keep)
        if lost is not None or rerouted is not None:
            moved = rerouted if rerouted is None or lost is None else rerouted & ~lost
            self._changed.append((lost, moved))

    def outcome(self) -> Optional[Outcome]:
        """Return the counts; ``None`` before the first layer."""
        if not self._tokens:
            return None
        wanted = np.full(self._tokens, self._whole)
        for keep in self._kept:
            wanted += keep.sum(axis=1)
        lost, rerouted = np.zeros_like(wanted), np.zeros_like(wanted)
        for one, other in self._changed:
            if one is not None:
                lost += one.sum(axis=1)
            if other is not None:
                rerouted += other.sum(axis=1)
        return Outcome(wanted, lost, rerouted)
