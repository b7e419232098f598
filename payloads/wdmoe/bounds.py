"""The least that the devices could have been waited for, beside what a policy took: the bound of its own budget. Pure.

Only a selection of the kind ``budget`` that replaces nothing promises a share of the mass, so only it has a bound:
what no selection that drops pairs and keeps that share could have gone below, at the shares of the band in force.
"""

from __future__ import annotations

from typing import Any, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple

from payloads.wdmoe.routing import LayerView
from payloads.wdmoe.selectors.bound import choices_s, lower_bound_s, stream_bound_s
from payloads.wdmoe.selectors.budget import layer_parts
from payloads.wdmoe.selectors.kinds import value_of

__all__ = ["WaitBounds", "bounds_of"]


def bounds_of(settings: Mapping[str, Any]) -> Optional[WaitBounds]:
    """Return what bounds a policy's waiting, or ``None`` where it promises nothing.

    Args:
        settings: The settings of its expert selection.
    """
    if settings["kind"] != "budget" or value_of(settings, "replace"):
        return None
    return WaitBounds(settings)


class WaitBounds:
    """Bounds of one trial.

    A block of several tokens has a bound of its own. Blocks of one token share a budget where the scope is ``running``:
    then only the sum over all of a layer's is a bound, and each token's is its part of that.

    Args:
        settings: The settings of a selection of the kind ``budget``.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._lose = 1.0 - float(value_of(settings, "tau"))
        self._running = value_of(settings, "scope") == "running"
        self._parts: Sequence[float] = layer_parts(value_of(settings, "layer_cost"))
        self._waits_s: Dict[Hashable, float] = {}
        self._streams: Dict[int, List[Tuple[Hashable, List[Tuple[float, float]]]]] = {}

    def add(self, token: Hashable, view: LayerView) -> None:
        """Add one layer of one token step.

        Args:
            token: What tells the token step from others.
            view: What was decided on, at the rates that were in force when it was sent.
        """
        self._waits_s.setdefault(token, 0.0)
        if self._running and len(view.routing.index) == 1:
            self._streams.setdefault(view.layer, []).append((token, choices_s(view)))
        else:
            self._waits_s[token] += lower_bound_s(view, self._tau(view.layer))

    def waits_s(self) -> Dict[Hashable, float]:
        """Return, for each token step that was added, the least that its layers could have been waited for."""
        waits_s = dict(self._waits_s)
        for layer, stream in self._streams.items():
            bounds = stream_bound_s([choices for _, choices in stream], self._tau(layer))
            for (token, _), seconds in zip(stream, bounds.tolist()):
                waits_s[token] += seconds
        return waits_s

    def _tau(self, layer: int) -> float:
        part = self._parts[layer] if layer < len(self._parts) else 1.0
        return 1.0 - min(1.0, self._lose * part)
