"""What one token of one layer can do where the band is shared anew for whatever it does. Plain numbers, for speed.

There is no bottleneck to begin with then: all devices that are sent anything are slow alike, and a pair that is dropped
anywhere gives the others its part of the band. So all ways to drop pairs are looked at, as far as they can be good.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

from payloads.wdmoe.selectors.front import REPLACE_FROM, REPLACE_POWER, Choice, odds

if TYPE_CHECKING:
    from payloads.wdmoe.allocation.band import Band
    from payloads.wdmoe.routing import LayerView

__all__ = ["MOST_WAYS", "choices_together"]

MOST_WAYS = 1 << 12
"""More ways to drop pairs than these are not tried one by one; eight experts of a token never have more."""

_GAIN = 1e-9
"""What is faster by less than this part is not faster."""

_Way = Tuple[float, Tuple[int, ...]]
"""The mass that is lost, and how many pairs each device loses."""


def choices_together(view: LayerView, band: Band, replace: bool, most: float = 1.0) -> Optional[List[Choice]]:
    """Return the choices of a layer's only token, from all of its pairs on: each is faster than those that lose less.

    Args:
        view: The layer.
        band: What it takes when the band is shared for it.
        replace: Whether a pair may be replaced.
        most: The mass that may be lost; what loses more is left out.

    Returns:
        The choices, the one that loses nothing first; ``None`` where a token has so many experts that there are more
        than :data:`MOST_WAYS`.
    """
    routing = view.routing
    experts = routing.index[0].tolist()
    scores = routing.scores[0].tolist()
    device_of = view.device_of.tolist()
    total = sum([scores[expert] for expert in experts])
    mass = [scores[expert] / total if total > 0 else 1.0 / len(experts) for expert in experts]
    held: Dict[int, List[int]] = {}
    for place in sorted(range(len(experts)), key=mass.__getitem__):
        held.setdefault(device_of[experts[place]], []).append(place)
    ways = _ways(list(held.values()), mass, most)
    if ways is None:
        return None
    choices: List[Choice] = []
    for lost, dropped in ways:
        there = {
            device: len(places) - gone
            for (device, places), gone in zip(held.items(), dropped)
            if gone < len(places)
        }
        if choices and _cannot_beat(band, there, choices[-1].seconds):
            continue
        seconds = band.token_s(there)
        if choices and seconds >= choices[-1].seconds * (1 - _GAIN):
            continue
        kept: List[Optional[int]] = list(experts)
        for places, gone in zip(held.values(), dropped):
            for place in places[:gone]:
                kept[place] = None
        choices.append(Choice(seconds, odds(lost), lost, tuple(kept)))
    if replace:
        for choice in list(choices):
            choices.extend(_replaced(choice, band, experts, mass, device_of, scores))
    return choices


def _ways(held: Sequence[Sequence[int]], mass: Sequence[float], most: float) -> Optional[List[_Way]]:
    """Return the ways to drop pairs, those that lose least first; of each device the pairs with least mass go."""
    count = 1
    for places in held:
        count *= len(places) + 1
    if count > MOST_WAYS:
        return None
    bills = []
    for places in held:
        bill = [0.0]
        for place in places:
            bill.append(bill[-1] + mass[place])
        bills.append(bill)
    everything = tuple(len(places) for places in held)
    ways = []
    for dropped in product(*(range(len(places) + 1) for places in held)):
        lost = sum([bill[gone] for bill, gone in zip(bills, dropped)])
        if dropped != everything and lost <= most:
            ways.append((lost, dropped))
    return sorted(ways)


def _cannot_beat(band: Band, held: Dict[int, int], seconds: float) -> bool:
    """Return whether some device alone would take as long already, with all of the band."""
    return any(band.alone_s(device, pairs) >= seconds for device, pairs in held.items())


def _replaced(
    choice: Choice,
    band: Band,
    experts: Sequence[int],
    mass: Sequence[float],
    device_of: Sequence[int],
    scores: Sequence[float],
) -> List[Choice]:
    """Return the faster choices in which one pair goes to the best other expert of another device instead."""
    held: Dict[int, int] = {}
    for expert in choice.experts:
        if expert is not None:
            held[device_of[expert]] = held.get(device_of[expert], 0) + 1
    harmed = choice.harm / (1.0 + choice.harm)
    found = []
    for place, expert in enumerate(choice.experts):
        if expert is None:
            continue
        here = device_of[expert]
        for other, near in _alternatives(expert, experts, device_of, scores):
            there = dict(held)
            there[here] -= 1
            if not there[here]:
                del there[here]
            goal = device_of[other]
            there[goal] = there.get(goal, 0) + 1
            if _cannot_beat(band, there, choice.seconds):
                continue
            seconds = band.token_s(there)
            if seconds >= choice.seconds * (1 - _GAIN):
                continue
            lost = choice.lost + mass[place] * (1.0 - near)
            harm = odds(harmed + mass[place] * (1.0 - near**REPLACE_POWER))
            now = (*choice.experts[:place], other, *choice.experts[place + 1 :])
            found.append(Choice(seconds, harm, lost, now))
    return found


def _alternatives(
    expert: int, experts: Sequence[int], device_of: Sequence[int], scores: Sequence[float]
) -> List[Tuple[int, float]]:
    """Return the best similarly scored expert of each other device, none of the router's, and how near it comes."""
    floor = REPLACE_FROM * scores[expert]
    best: Dict[int, int] = {}
    for other, score in enumerate(scores):
        device = device_of[other]
        if score < floor or score <= 0.0 or device == device_of[expert] or other in experts:
            continue
        if device not in best or score > scores[best[device]]:
            best[device] = other
    return [(other, min(1.0, scores[other] / scores[expert])) for other in best.values()]
