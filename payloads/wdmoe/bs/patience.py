"""How long a layer's dispatches may take."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Sequence

import numpy as np

from payloads.station.link_state import LinkState
from payloads.wdmoe.bs.asked import Asked, loads_of_parcels
from payloads.wdmoe.bs.loss import LossPolicy
from payloads.wdmoe.bs.packing import Parcel
from payloads.wdmoe.dispatch import Decided
from payloads.wdmoe.routing import Loads
from payloads.wire.client import Patience

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GRACE_S", "Expects", "Waiting", "patience_of"]

#: What each device (D,) is expected to take, in seconds, for some loads on some links.
Expects = Callable[[Loads, Optional[LinkState]], "NDArray[np.floating[Any]]"]

#: So much later than its deadline may a pass end whose devices do answer.
GRACE_S = 0.5


class Waiting(NamedTuple):
    """What bounds the waiting for answers.

    Attributes:
        policy: What is done when a device is late.
        expects: Tells what devices are expected to take; ``None`` where nobody knows.
        links: Tells the links as they are now; asked only when somebody may be late.
        deadline_ns: When nobody waits for the pass any more, on the monotonic clock; ``None`` for never.
    """

    policy: LossPolicy
    expects: Optional[Expects]
    links: Callable[[], Optional[LinkState]]
    deadline_ns: Optional[int]


def patience_of(
    waiting: Waiting, asked: Asked, parcels: Sequence[Parcel], devices: int, decided: Optional[Decided]
) -> Optional[Patience]:
    """Return how long a layer's parcels may take; ``None`` for as long as their devices make progress.

    Args:
        waiting: What bounds it.
        asked: The layer.
        parcels: What is sent.
        devices: D.
        decided: The decision behind it; ``None`` where it was not made for these parcels.
    """
    left_s = float("inf")
    if waiting.deadline_ns is not None:
        # That a request's time is up makes no device a late one: what most answers take is always granted.
        left_s = max(GRACE_S, (waiting.deadline_ns - time.monotonic_ns()) / 1e9)
    elif waiting.expects is None:
        return None
    floor_s = min(left_s, waiting.policy.deadline_floor_ms / 1e3)
    return Patience(floor_s, partial(_deadlines_s, waiting, asked, parcels, devices, decided, left_s))


def _deadlines_s(
    waiting: Waiting,
    asked: Asked,
    parcels: Sequence[Parcel],
    devices: int,
    decided: Optional[Decided],
    most_s: float,
) -> Sequence[float]:
    """Return how long each parcel may take: by the links as they are now, or as they were if that is longer."""
    if waiting.expects is None:
        return [most_s] * len(parcels)
    loads = loads_of_parcels(parcels, asked.index, asked.device_of, devices)
    expected_s = waiting.expects(loads, waiting.links())
    if decided is not None:
        expected_s = np.maximum(expected_s, waiting.expects(loads, decided.links_in_force))
    return [min(most_s, waiting.policy.deadline_s(float(expected_s[parcel.device]))) for parcel in parcels]
