"""What is asked in one layer, while devices come and go. Pure but for its own memory: who is asked, who is not.

The pairs of a layer are settled again whenever a device turns out to be gone: moved to another holder, waited for,
given up, or the reason to fail, as the policy says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from payloads.wdmoe.bs.loss import LossPolicy, rescue
from payloads.wdmoe.routing import Loads, Routing, Selection
from payloads.wire.channel import DeviceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from payloads.wdmoe.bs.packing import Parcel
    from payloads.wdmoe.bs.reach import Reach

__all__ = ["Asked", "Pairs", "Verdict", "dropped_of", "loads_of_parcels", "pairs_of"]


class Pairs(NamedTuple):
    """Pairs of a token and an expert, the experts rising.

    Attributes:
        experts: (P,), the experts.
        places: (P,), their places: token * k + choice.
    """

    experts: NDArray[np.int64]
    places: NDArray[np.int64]


class Verdict(NamedTuple):
    """What is to be done with some pairs.

    Attributes:
        pairs: The pairs to ask for now.
        waiting: Devices that have to be waited for first; then the pairs are settled again.
        failing: The device without which it cannot go on.
        said: What was done, for the records: device, event, detail.
    """

    pairs: Pairs
    waiting: Tuple[int, ...] = ()
    failing: Optional[int] = None
    said: Tuple[Tuple[int, str, str], ...] = ()


class Asked:
    """One layer's pairs.

    Attributes:
        layer: The layer.
        index: (N, k), the experts.
        keep: (N, k), the pairs that are asked for; ``None`` for all.
        weights: (N, k), the weights where they were changed here; ``None`` where they were not.
        device_of: (E,), the device that serves each expert.
        refused: Devices that answered with an error, and the error: they are asked no more in this layer.
        wait_until_s: Until when devices are waited for in this layer; ``None`` while none was.
        lost: (N, k), the pairs that nobody answers; ``None`` for none.
        rerouted: (N, k), the pairs that another device answers; ``None`` for none.
    """

    def __init__(
        self,
        layer: int,
        index: NDArray[np.int64],
        keep: Optional[NDArray[np.bool_]],
        device_of: NDArray[np.int64],
        routing: Optional[Routing] = None,
        weights: Optional[NDArray[np.floating[Any]]] = None,
    ) -> None:
        self.layer = layer
        self.index = index
        self.keep = keep
        self.weights: Optional[NDArray[np.floating[Any]]] = None
        self.device_of = device_of
        self.refused: Dict[int, DeviceError] = {}
        self.wait_until_s: Optional[float] = None
        self.lost: Optional[NDArray[np.bool_]] = None
        self.rerouted: Optional[NDArray[np.bool_]] = None
        self._routing = routing
        self._given = weights

    @property
    def changed(self) -> bool:
        """Whether it is not what the policy had decided any more."""
        return self.lost is not None or self.rerouted is not None

    def settle(self, pairs: Pairs, reach: Reach, policy: LossPolicy, renormalise: Any) -> Verdict:
        """Say what is to be done with some pairs, now that some devices are gone.

        Args:
            pairs: The pairs.
            reach: Who can be asked.
            policy: What is done about who cannot.
            renormalise: How the weights that are left are scaled.
        """
        names = reach.devices
        without = frozenset(self.refused)
        away = reach.away(self.device_of, without)
        stuck = [expert for expert in np.unique(pairs.experts).tolist() if away[expert]]
        if not stuck:
            return Verdict(pairs)
        moves: Dict[int, int] = {}
        dropping: List[int] = []
        waiting: Set[int] = set()
        load = np.bincount(self.device_of[pairs.experts], minlength=len(names))
        for expert in stuck:
            device = int(self.device_of[expert])
            others = reach.holders(self.layer, expert, without)
            action = policy.final(bool(others))
            if action == "replica":
                moves[expert] = min(others, key=lambda other: int(load[other]))
                load[moves[expert]] += int((pairs.experts == expert).sum())
            elif action == "drop" and self._routing is not None:
                dropping.append(expert)
            elif action == "wait" and device in reach.gone:
                waiting.add(device)
            else:
                return Verdict(pairs, failing=device)
        if waiting:
            return Verdict(pairs, waiting=tuple(sorted(waiting)))
        said = self._move(pairs, moves, names)
        if not dropping:
            return Verdict(pairs, said=said)
        gone = {int(self.device_of[expert]) for expert in dropping}
        said += self._said_dropped(pairs, dropping)
        left = self._drop(pairs, dropping, reach, renormalise)
        if left is None:
            return Verdict(pairs, failing=min(gone))
        return Verdict(left, said=said)

    def _move(
        self, pairs: Pairs, moves: Dict[int, int], names: Sequence[str]
    ) -> Tuple[Tuple[int, str, str], ...]:
        """Let other devices serve some experts; return what to say."""
        if not moves:
            return ()
        counts: Dict[Tuple[int, int], int] = {}
        mine = np.isin(pairs.experts, list(moves))
        for expert in pairs.experts[mine].tolist():
            way = (int(self.device_of[expert]), moves[expert])
            counts[way] = counts.get(way, 0) + 1
        self.device_of = self.device_of.copy()
        self.device_of[list(moves)] = list(moves.values())
        self.rerouted = _marked(self.rerouted, self.index.shape, pairs.places[mine])
        return tuple(
            (device, "rerouted", f"{count} pairs to {names[other]}")
            for (device, other), count in counts.items()
        )

    def _said_dropped(self, pairs: Pairs, experts: Sequence[int]) -> Tuple[Tuple[int, str, str], ...]:
        mine = np.isin(pairs.experts, experts)
        devices = self.device_of[pairs.experts[mine]]
        tokens = pairs.places[mine] // self.index.shape[1]
        said = []
        for device in np.unique(devices).tolist():
            theirs = tokens[devices == device]
            said.append((device, "dropped", f"{len(theirs)} pairs of {len(np.unique(theirs))} tokens"))
        return tuple(said)

    def _drop(self, pairs: Pairs, experts: Sequence[int], reach: Reach, renormalise: Any) -> Optional[Pairs]:
        """Give up the pairs of some experts; return what is to be asked, ``None`` where nothing can be reached."""
        assert self._routing is not None
        without = frozenset(self.refused)
        mine = np.isin(pairs.experts, experts)
        places = pairs.places[mine]
        now = _marked(None, self.index.shape, places)
        keep = np.ones(self.index.shape, dtype=bool) if self.keep is None else self.keep
        weights = self.weights if self.weights is not None else self._given
        assert weights is not None
        try:
            left = rescue(
                self._routing,
                Selection(self.index, keep, weights),
                now,
                reach.reachable(self.layer, without),
                renormalise,
            )
        except ValueError:
            return None
        self.index, self.keep, self.weights = left.selection
        self.lost = _marked(self.lost, self.index.shape, places)
        asked = self.index.reshape(-1)[left.asked]
        away = reach.away(self.device_of, without)
        for expert in np.unique(asked).tolist():
            if away[expert]:
                self.device_of = self.device_of.copy()
                self.device_of[expert] = reach.holders(self.layer, expert, without)[0]
        return pairs_of(self.index, np.concatenate([pairs.places[~mine], left.asked]))


def pairs_of(index: NDArray[np.int64], places: NDArray[np.int64]) -> Pairs:
    """Return the pairs at some places, their experts rising; those of an expert in the order given.

    Args:
        index: (N, k), the experts.
        places: (P,), the places.
    """
    experts = index.reshape(-1)[places]
    order = np.argsort(experts, kind="stable")
    return Pairs(experts[order], places[order])


def dropped_of(routing: Routing, selection: Selection, device_of: NDArray[np.int64]) -> Dict[int, int]:
    """Return how many pairs that the router wanted of each device a policy does not send there.

    Args:
        routing: The router's choice.
        selection: What the policy made of it.
        device_of: (E,), the device that serves each expert.
    """
    dropped = ~selection.keep | (selection.index != routing.index)
    return dict(enumerate(np.bincount(device_of[routing.index[dropped]]).tolist()))


def loads_of_parcels(
    parcels: Sequence[Parcel], index: NDArray[np.int64], device_of: NDArray[np.int64], devices: int
) -> Loads:
    """Return what some parcels ask of D devices.

    Args:
        parcels: The parcels.
        index: (N, k), the experts of all pairs.
        device_of: (E,), the device that serves each expert.
        devices: D.
    """
    tokens, pairs, used = (np.zeros(devices, dtype=np.int64) for _ in range(3))
    counts = np.zeros(len(device_of), dtype=np.int64)
    for parcel in parcels:
        mine = np.bincount(index.reshape(-1)[parcel.places], minlength=len(device_of))
        tokens[parcel.device] += parcel.tokens
        pairs[parcel.device] += len(parcel.places)
        used[parcel.device] += int((mine > 0).sum())
        counts += mine
    return Loads(tokens, pairs, used, counts, device_of)


def _marked(
    mask: Optional[NDArray[np.bool_]], shape: Tuple[int, ...], places: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return a mask (N, k) with some more places marked."""
    marked = np.zeros(shape, dtype=bool) if mask is None else mask
    marked.reshape(-1)[places] = True
    return marked
