"""The contract that anyone can run on a policy: testbed's own kinds keep it, and broken policies are found out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from payloads.wdmoe.gating import SELECTOR_KINDS, selector_of
from payloads.wdmoe.routing import LayerView, Selection
from payloads.wdmoe.selectors.kinds import REQUIRED
from testbed.policies import check_selector

_REQUIRED = {"k": 1, "tau": 0.7, "threshold": 0.3, "theta": 0.7}


def _settings(kind: str) -> dict[str, Any]:
    needed = {name for name, one in SELECTOR_KINDS[kind].settings.items() if one.default is REQUIRED}
    return {"kind": kind, **{name: _REQUIRED[name] for name in needed}}


@pytest.mark.parametrize("kind", sorted(SELECTOR_KINDS))
def test_every_kind_keeps_the_contract(kind: str) -> None:
    checks = check_selector(lambda: selector_of(_settings(kind)), rounds=24)
    assert [check for check in checks if not check.holds] == []


class _All:
    def select(self, view: LayerView) -> Selection:
        routing = view.routing
        return Selection(routing.index, np.ones(routing.index.shape, bool), routing.weights)

    def observe(self, *_: Any) -> None:
        pass


class _Nothing(_All):
    def select(self, view: LayerView) -> Selection:
        none = np.zeros(view.routing.index.shape, bool)
        return Selection(view.routing.index, none, view.routing.weights * 0)


class _Loose(_All):
    def select(self, view: LayerView) -> Selection:
        keep = np.ones(view.routing.index.shape, bool)
        keep[:, 1:] = False
        return Selection(view.routing.index, keep, view.routing.weights)


class _Twice(_All):
    def select(self, view: LayerView) -> Selection:
        index = np.repeat(view.routing.index[:, :1], view.routing.index.shape[1], axis=1)
        return Selection(index, np.ones(index.shape, bool), view.routing.weights)


class _Random(_All):
    def select(self, view: LayerView) -> Selection:
        keep = np.random.default_rng().random(view.routing.index.shape) < 0.5
        keep[:, 0] = True
        return Selection(view.routing.index, keep, view.routing.weights * keep)


class _Scribbler(_All):
    def select(self, view: LayerView) -> Selection:
        view.routing.weights[:] = 1
        return super().select(view)


class _Deaf(_All):
    def observe(self, *_: Any) -> None:
        raise KeyError("bottleneck")


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (_Nothing, "leaves every token an expert"),
        (_Loose, "weights are finite, not negative, and 0 where a pair is dropped"),
        (_Twice, "asks for experts that are there, each at most once a token"),
        (_Random, "chooses the same for the same layer"),
        (_Scribbler, "leaves what it is shown as it was"),
        (_Deaf, "learns from measured times without a fault"),
    ],
)
def test_a_broken_policy_is_found_out(made: Callable[[], Any], name: str) -> None:
    assert name in {check.name for check in check_selector(made, rounds=12) if not check.holds}


def test_a_sound_policy_is_not() -> None:
    assert all(check.holds for check in check_selector(_All))
