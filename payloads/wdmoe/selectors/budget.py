"""Ours: the least attention waiting latency that keeps at least a share of the gate's mass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import numpy as np

from payloads.wdmoe.gating import finish
from payloads.wdmoe.routing import LayerView, Routing, Selection
from payloads.wdmoe.selectors.account import Account
from payloads.wdmoe.selectors.batch import lighten
from payloads.wdmoe.selectors.batch_together import lighten_together
from payloads.wdmoe.selectors.front import Choice, Taking, choices_of, hull_of, token_seconds
from payloads.wdmoe.selectors.kinds import Settings, value_of
from payloads.wdmoe.selectors.together import choices_together

if TYPE_CHECKING:
    from payloads.wdmoe.costs import Costs

__all__ = ["Budget", "layer_parts"]


class _Layer:
    """What is remembered of a layer: its account, and the decision that may be asked for once more."""

    __slots__ = ("account", "price", "routing", "spent")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.routing: Optional[Routing] = None
        self.price = 0.0
        self.spent = 0.0


class Budget:
    """Takes pairs off the bottleneck device in the order of quality lost per second gained.

    At least ``tau`` of the gate's mass is kept: in each block with ``scope: block``, over all blocks of a layer so far
    with ``scope: running``. A block of several tokens is one optimisation
    (:func:`payloads.wdmoe.selectors.batch.lighten`); with ``running`` a block of one token spends what its layer has
    saved up where a second costs least (:class:`payloads.wdmoe.selectors.account.Account`).

    No token loses more than ``most`` of its own mass. What it loses in quality is taken to be
    ``(lost / kept mass) ** power``, measured, see docs/policies.md; a layer gets the more of the budget, the less its
    ``layer_cost`` is. With one, ``tau`` holds on the average of the layers.

    Where the policy shares the band for each layer, latencies are those with the band shared for each choice.

    Source: ours.
    """

    #: Whoever shares the band need not ask again at other shares.
    sees_band = True

    def __init__(self, settings: Settings) -> None:
        def given(name: str) -> Any:
            return value_of(settings, name)

        self._settings = {"renormalise": given("renormalise")}
        self._lose = 1.0 - float(given("tau"))
        # Who asks for less than half of the mass may lose more than half of a token's.
        self._most = max(float(given("most")), self._lose)
        self._running = given("scope") == "running"
        self._replace = bool(given("replace"))
        self._power = float(given("power"))
        self._cap = float(given("cap"))
        self._memory = int(given("memory"))
        self._reserve = float(given("reserve"))
        self._parts = layer_parts(given("layer_cost"))
        self._layers: Dict[int, _Layer] = {}
        self._costs: Optional[Costs] = None
        self._seconds: Optional[Taking] = None

    def select(self, view: LayerView) -> Selection:
        """Choose for the tokens of one layer."""
        routing = view.routing
        tokens, chosen = routing.index.shape
        lose = min(1.0, self._lose * self._part(view.layer))
        if lose <= 0.0 or (chosen == 1 and not self._replace):
            return Selection(routing.index, np.ones((tokens, chosen), dtype=bool), routing.weights)
        if tokens > 1:
            if view.best_s is not None:
                index, keep = lighten_together(view, view.best_s, lose * tokens, self._most, self._replace)
            else:
                index, keep = lighten(view, lose * tokens, self._most, self._replace)
            return finish(routing, keep, self._settings, index)
        choice = self._choice(view, lose)
        if not choice.lost and None not in choice.experts:
            return Selection(routing.index, np.ones((1, chosen), dtype=bool), routing.weights)
        keep = np.array([[expert is not None for expert in choice.experts]])
        index = routing.index.copy()
        for place, expert in enumerate(choice.experts):
            if expert is not None:
                index[0, place] = expert
        return finish(routing, keep, self._settings, index if self._replace else None)

    def _part(self, layer: int) -> float:
        return self._parts[layer] if layer < len(self._parts) else 1.0

    def _choice(self, view: LayerView, lose: float) -> Choice:
        """Choose for a single token."""
        most = (self._most if self._running else min(self._most, lose)) * (1 + 1e-6)
        choices = None
        if view.best_s is not None:
            choices = choices_together(view, view.best_s, self._replace, most)
        if choices is None:
            choices = choices_of(view, self._of(view.costs), self._replace)
        good = [choice for choice in choices if choice.lost <= most]
        if self._running:
            return self._bargain(view, lose, good)
        return min(good, key=lambda choice: (choice.seconds, choice.harm))

    def _bargain(self, view: LayerView, lose: float, choices: List[Choice]) -> Choice:
        """Choose by the price, as far as the account goes."""
        layer = self._layers.get(view.layer)
        if layer is None:
            account = Account(lose, self._cap, self._memory, self._reserve)
            layer = self._layers[view.layer] = _Layer(account)
        account = layer.account
        again = layer.routing is view.routing
        if again:
            # Asked once more for the same block, at other rates: which answer is used is not known here.
            account.spend(-layer.spent)
            budget = account.balance
        else:
            budget = account.grant()
            layer.price, layer.spent = account.price, 0.0
        best, steps = choices[0], []
        for rate, _, lost, choice in hull_of(choices, self._power):
            steps.append((rate, lost))
            if rate > layer.price and choice.lost <= budget:
                best = choice
        if not again:
            layer.routing = view.routing
            account.learn(steps)
        layer.spent = max(layer.spent, best.lost)
        account.spend(layer.spent)
        return best

    def _of(self, costs: Costs) -> Taking:
        """Return what one token takes on each device; the same costs are often asked about again."""
        if self._seconds is None or costs is not self._costs:
            self._seconds, self._costs = token_seconds(costs), costs
        return self._seconds


def layer_parts(layer_cost: Optional[Tuple[float, ...]]) -> List[float]:
    """Return each layer's part of the budget: the less its mass is worth, the more; 1 on average.

    Less than in proportion, as the next bit of mass in a layer saves fewer seconds than the one before.
    """
    if not layer_cost:
        return []
    parts = [cost**-0.5 for cost in layer_cost]
    return [part * len(parts) / sum(parts) for part in parts]
