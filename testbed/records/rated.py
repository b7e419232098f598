"""What the quality passes of a run come to: one row for each policy, scenario and text or set of questions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from testbed.records.run import Run

__all__ = ["rated"]


def rated(run: Run) -> list[dict[str, Any]]:
    """Return the means over the windows of each text, and over the questions of each set.

    Returns:
        Rows with policy, scenario (None where the policy does not look at links), of (the text or the set) and n
        (tokens or questions), and then perplexity, KL divergence from the undropped model in nats a token, the
        shares of tokens with its most likely token, of gate mass sent, and of questions answered right; None where
        one does not apply.
    """
    rows = [_text(*_key(key), part) for key, part in _groups(run.quality, "text")]
    rows += [_questions(*_key(key), part) for key, part in _groups(run.choices, "set")]
    order = list(dict.fromkeys(row["policy"] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row["policy"]), row["scenario"] or ""))


def _groups(table: pd.DataFrame, of: str) -> Any:
    return table.groupby(["policy", "scenario", of], sort=False, dropna=False)


def _key(key: tuple[Any, ...]) -> tuple[str, str | None, str]:
    policy, scenario, of = key
    return str(policy), scenario if isinstance(scenario, str) else None, str(of)


def _row(policy: str, scenario: str | None, of: str, n: int, **values: float | None) -> dict[str, Any]:
    names = ("perplexity", "kl", "agreement", "mass_kept", "accuracy")
    row = {"policy": policy, "scenario": scenario, "of": of, "n": n}
    return row | {name: values.get(name) for name in names}


def _text(policy: str, scenario: str | None, text: str, windows: pd.DataFrame) -> dict[str, Any]:
    tokens = int(windows["tokens"].sum())
    kl, agree, mass = windows["kl_sum"], windows["agree"], windows["mass_kept"]
    return _row(
        policy,
        scenario,
        text,
        tokens,
        perplexity=math.exp(float(windows["nll_sum"].sum()) / tokens),
        kl=None if kl.isna().any() else float(kl.sum()) / tokens,
        agreement=None if agree.isna().any() else float(agree.sum()) / tokens,
        mass_kept=None if mass.isna().any() else float((mass * windows["tokens"]).sum()) / tokens,
    )


def _questions(policy: str, scenario: str | None, name: str, items: pd.DataFrame) -> dict[str, Any]:
    right = float((items["chosen"] == items["answer"]).mean())
    return _row(policy, scenario, name, len(items), accuracy=right)
