"""What a policy made of the router's choices, added up over a trial: the tables ``selection`` and ``routing``. Pure.

The *mass* of a pair of a token and an expert is its share of the scores of the experts that the router chose for that
token, so each token that is sent out whole brings a mass of 1 to each layer. The mass is not the weight: a model may
give every expert the same weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Sequence, Tuple

if TYPE_CHECKING:
    from numpy import floating, int64
    from numpy.typing import NDArray

    from payloads.wdmoe.routing import Routing, Selection

__all__ = ["STAGES", "Tally", "Weighed", "stage_of", "weigh"]

STAGES = ("prompt", "decode")


class Weighed(NamedTuple):
    """One layer's selection by device.

    Attributes:
        pairs: (D,), pairs that are sent.
        dropped: (D,), pairs that the router wanted of the device and that it does not get.
        moved_in: (D,), of the pairs sent, those that took the place of another.
        mass: (D,), mass that is sent.
        dropped_mass: (D,), mass of the pairs that it does not get.
    """

    pairs: NDArray[int64]
    dropped: NDArray[int64]
    moved_in: NDArray[int64]
    mass: NDArray[floating[Any]]
    dropped_mass: NDArray[floating[Any]]


def stage_of(step: int) -> str:
    """Return the stage that a token step belongs to."""
    return STAGES[0] if step == 0 else STAGES[1]


def weigh(routing: Routing, selection: Selection, device_of: NDArray[int64], devices: int) -> Weighed:
    """Add one layer's selection up by device.

    Args:
        routing: The router's choice.
        selection: What was made of it.
        device_of: (E,), the device that serves each expert.
        devices: D, the number of devices.
    """
    import numpy as np

    from payloads.wdmoe.selectors.rows import row_sum

    def added(places: Any, weights: Any = None) -> Any:
        return np.bincount(places, weights=weights, minlength=devices)

    scores, first = (
        routing.scores.reshape(-1),
        np.arange(len(routing.index))[:, None] * routing.scores.shape[1],
    )
    wanted = scores.take(first + routing.index).astype(float)
    total = row_sum(wanted)
    # A router that gives all of its choice a score of 0 likes them equally.
    total, wanted = (total, wanted) if (total > 0).all() else _evened(total, wanted)
    wanted /= total
    if selection.index is routing.index and selection.keep.all():
        sent_to, nothing = device_of.take(routing.index).reshape(-1), np.zeros(devices, dtype=np.int64)
        return Weighed(
            added(sent_to), nothing, nothing, added(sent_to, wanted.reshape(-1)), nothing.astype(float)
        )
    moved = selection.keep & (selection.index != routing.index)
    lost = ~selection.keep | moved
    sent_to = device_of.take(selection.index[selection.keep])
    lost_by = device_of.take(routing.index[lost])
    sent = np.where(moved, scores.take(first + selection.index) / total, wanted) if moved.any() else wanted
    return Weighed(
        added(sent_to),
        added(lost_by),
        added(device_of.take(selection.index[moved])),
        added(sent_to, sent[selection.keep]),
        added(lost_by, wanted[lost]),
    )


def _evened(total: Any, wanted: Any) -> Tuple[Any, Any]:
    import numpy as np

    none = total == 0
    wanted = np.where(none, 1.0, wanted)
    return np.where(none, wanted.shape[1], total), wanted


class Tally:
    """Sums over a trial, by stage, layer and device.

    Attributes:
        devices: The devices' names, in the order of the columns.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = tuple(devices)
        self._sums: Dict[Tuple[str, int], List[Any]] = {}
        self._asked: Dict[Tuple[str, int], NDArray[int64]] = {}

    def add(
        self, layer: int, step: int, routing: Routing, selection: Selection, device_of: NDArray[int64]
    ) -> None:
        """Add one layer of one token step."""
        import numpy as np

        place = stage_of(step), layer
        asked = np.bincount(routing.index.reshape(-1), minlength=routing.scores.shape[1])
        self._asked[place] = self._asked[place] + asked if place in self._asked else asked
        weighed = weigh(routing, selection, device_of, len(self.devices))
        sums = self._sums.get(place)
        if sums is None:
            self._sums[place] = list(weighed)
        else:
            for number, part in enumerate(weighed):
                sums[number] = sums[number] + part

    def rows(self) -> List[Dict[str, Any]]:
        """Return a row for each stage, layer and device, of a device left with nothing too."""
        rows = []
        for (stage, layer), sums in _in_order(self._sums):
            pairs, dropped, moved_in, mass, dropped_mass = (part.tolist() for part in sums)
            rows += [
                {
                    "stage": stage,
                    "layer": layer,
                    "device": device,
                    "pairs": pairs[number],
                    "dropped": dropped[number],
                    "moved_in": moved_in[number],
                    "mass": mass[number],
                    "dropped_mass": dropped_mass[number],
                }
                for number, device in enumerate(self.devices)
            ]
        return rows

    def routing_rows(self) -> List[Dict[str, Any]]:
        """Return a row for each stage, layer and expert: how often the router itself asked for it."""
        return [
            {"stage": stage, "layer": layer, "expert": expert, "pairs": pairs}
            for (stage, layer), counts in _in_order(self._asked)
            for expert, pairs in enumerate(counts.tolist())
        ]


def _in_order(sums: Dict[Tuple[str, int], Any]) -> List[Tuple[Tuple[str, int], Any]]:
    return sorted(sums.items(), key=lambda item: (STAGES.index(item[0][0]), item[0][1]))
