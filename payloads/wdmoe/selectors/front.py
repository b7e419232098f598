"""What one token of one layer can do: its choices from the best to the fastest. Plain numbers, for speed.

While a token is generated a layer's batch is a single token with a few experts, and NumPy would take longer than the
decision is worth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from payloads.wdmoe.costs import Costs
    from payloads.wdmoe.routing import LayerView

__all__ = ["Choice", "Taking", "choices_of", "front_of", "hull_of", "odds", "token_seconds"]

REPLACE_FROM = 0.8
"""An expert is replaced only by one with at least this share of its score: see docs/policies.md."""

REPLACE_POWER = 4.0
"""How fast what replacing costs falls as the scores come near each other: see docs/policies.md."""


class Choice(NamedTuple):
    """One thing that a token can do.

    Attributes:
        seconds: The layer's attention waiting latency.
        harm: The odds of the mass that is lost, its share over the share that is kept: what quality depends on.
        lost: The mass that is lost.
        experts: The expert of each of the router's pairs, ``None`` where it is dropped.
    """

    seconds: float
    harm: float
    lost: float
    experts: Tuple[Optional[int], ...]


Taking = Callable[[int, int], float]
"""What one token takes on a device with so many experts there, one at least."""


def token_seconds(costs: Costs) -> Taking:
    """Return what one token takes on a device, up to the rounding to whole frames."""
    first = (costs.fixed_s + costs.pair_s).tolist()
    more = (costs.pair_s - costs.down_s).tolist()
    return lambda device, pairs: first[device] + (pairs - 1) * more[device]


def choices_of(view: LayerView, seconds: Taking, replace: bool) -> List[Choice]:
    """Return the choices of a layer's only token, see :func:`front_of`.

    Args:
        view: The layer.
        seconds: What one token takes on each device.
        replace: Whether pairs may be replaced.
    """
    routing = view.routing
    experts = routing.index[0].tolist()
    scores = routing.scores[0].tolist()
    total = sum([scores[expert] for expert in experts])
    share = 1.0 / len(experts)
    mass = [scores[expert] / total if total > 0 else share for expert in experts]
    return front_of(experts, mass, view.device_of.tolist(), seconds, scores if replace else None)


def front_of(
    experts: Sequence[int],
    mass: Sequence[float],
    device_of: Sequence[int],
    seconds: Taking,
    scores: Optional[Sequence[float]] = None,
) -> List[Choice]:
    """Return a token's choices, from all of its pairs on: each takes a pair off the then bottleneck device.

    Taking away anything else would not make the layer faster, and of the pairs on the bottleneck the one with the
    least mass costs least. A pair may be replaced instead of dropped: by the expert with the best score on a device
    that then is no bottleneck.

    Args:
        experts: The router's choice, k experts.
        mass: Their shares of the scores; they sum to 1.
        device_of: The device of every expert.
        seconds: What one token takes on each device.
        scores: The score of every expert, where pairs may be replaced.
    """
    here = list(experts)
    held: Dict[int, List[int]] = {}
    for place, expert in enumerate(experts):
        held.setdefault(device_of[expert], []).append(place)
    taken = {device: seconds(device, len(places)) for device, places in held.items()}
    left = len(experts)
    lost = harmed = 0.0
    now: List[Optional[int]] = list(here)
    choices = [Choice(max(taken.values()), 0.0, 0.0, tuple(now))]
    while True:
        slowest = max(taken, key=taken.__getitem__)
        places = held[slowest]
        place = min(places, key=mass.__getitem__) if len(places) > 1 else places[0]
        if scores is not None:
            better = _replaced(
                choices[-1], place, mass, lost, harmed, device_of, seconds, held, taken, scores
            )
            choices.extend(better)
        if left == 1:
            return choices
        left -= 1
        lost += mass[place]
        harmed += mass[place]
        now[place] = None
        places.remove(place)
        if places:
            taken[slowest] = seconds(slowest, len(places))
        else:
            del taken[slowest]
        choices.append(Choice(max(taken.values()), odds(harmed), lost, tuple(now)))


def _replaced(
    choice: Choice,
    place: int,
    mass: Sequence[float],
    lost: float,
    harmed: float,
    device_of: Sequence[int],
    seconds: Taking,
    held: Dict[int, List[int]],
    taken: Dict[int, float],
    scores: Sequence[float],
) -> List[Choice]:
    """Return the choices in which the pair at ``place`` goes to the best other expert of another device."""
    expert = choice.experts[place]
    assert expert is not None
    slowest = device_of[expert]
    floor = REPLACE_FROM * scores[expert]
    best: Dict[int, int] = {}
    for other, score in enumerate(scores):
        device = device_of[other]
        if score < floor or score <= 0.0 or device == slowest or other in choice.experts:
            continue
        if device not in best or score > scores[best[device]]:
            best[device] = other
    if not best:
        return []
    rest = [time for device, time in taken.items() if device != slowest]
    if len(held[slowest]) > 1:
        rest.append(seconds(slowest, len(held[slowest]) - 1))
    base = max(rest) if rest else 0.0
    choices = []
    for device, other in best.items():
        there = seconds(device, len(held.get(device, ())) + 1)
        after = max(base, there)
        if after >= choice.seconds:
            continue
        near = min(1.0, scores[other] / scores[expert])
        after_lost = lost + mass[place] * (1.0 - near)
        after_harm = harmed + mass[place] * (1.0 - near**REPLACE_POWER)
        experts = (*choice.experts[:place], other, *choice.experts[place + 1 :])
        choices.append(Choice(after, odds(after_harm), after_lost, experts))
    return choices


def hull_of(choices: Sequence[Choice], power: float) -> List[Tuple[float, float, float, Choice]]:
    """Return the steps of the lower convex hull of seconds over harm, the best bargain first.

    Args:
        choices: What the token can do, the one that harms nothing first.
        power: What quality loses is ``harm ** power``.

    Returns:
        For each step the seconds that it gains for each unit of loss, its loss, its lost mass, and the choice that it
        leads to.
    """
    steps: List[Tuple[float, float, float, Choice]] = []
    here, here_loss = choices[0], 0.0
    rest = [(choice.harm**power, choice) for choice in choices[1:] if choice.seconds < here.seconds]
    while rest:
        best_rate, best_loss, best = 0.0, 0.0, here
        for loss, choice in rest:
            rate = (here.seconds - choice.seconds) / max(loss - here_loss, 1e-12)
            if rate > best_rate:
                best_rate, best_loss, best = rate, loss, choice
        if best is here:
            break
        steps.append((best_rate, best_loss - here_loss, best.lost - here.lost, best))
        here, here_loss = best, best_loss
        rest = [(loss, choice) for loss, choice in rest if choice.seconds < here.seconds and loss > here_loss]
    return steps


def odds(lost: float) -> float:
    """Return the odds of a share of mass that is lost."""
    return lost / max(1.0 - lost, 1e-9)
