"""Which pass through the model made a token, and which dispatches belong to it.

One pass answers one request, or one decoding step of several. The tables ``tokens`` and ``dispatches`` number them
(``iteration``); runs of before that had one request at a time, whose passes are told by request and token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from testbed.records.run import Run

__all__ = ["Numbered", "numbered", "overlapping", "passes_of_tokens"]

KEY = ["trial", "iteration"]


class Numbered(NamedTuple):
    """The tokens and dispatches of a run's trials, every row with the number of its pass (plain int64).

    Attributes:
        tokens: The table ``tokens``.
        dispatches: The table ``dispatches`` without quality passes.
    """

    tokens: pd.DataFrame
    dispatches: pd.DataFrame


def numbered(run: Run) -> Numbered:
    """Return a run's tokens and dispatches with the number of the pass in every row.

    Args:
        run: The run, of any schema.
    """
    tokens = run.tokens
    dispatches = run.dispatches[run.dispatches["trial"].isin(set(run.trials["trial"]))]
    sides = [
        frame[["trial", "request", step]].set_axis(["trial", "request", "step"], axis="columns")
        for frame, step in ((tokens, "position"), (dispatches, "step"))
    ]
    known = pd.concat([tokens["iteration"], dispatches["iteration"]]).to_numpy(dtype=float, na_value=np.nan)
    lacking = np.isnan(known)
    if lacking.any():
        both = pd.concat(sides)[lacking]
        # Below zero, so that a trial that has some numbers and lacks others mixes up none.
        known[lacking] = -1.0 - both.groupby(["trial", "request", "step"], sort=False, dropna=False).ngroup()
    numbers = known.astype("int64")
    return Numbered(
        tokens.assign(iteration=numbers[: len(tokens)]), dispatches.assign(iteration=numbers[len(tokens) :])
    )


def passes_of_tokens(tokens: pd.DataFrame, dispatches: pd.DataFrame) -> pd.DataFrame:
    """Return which passes made each token: the one that it came from, and for a first token all pieces of its prompt.

    Args:
        tokens: Tokens with numbered passes; their index is kept.
        dispatches: All numbered dispatches.

    Returns:
        ``place`` (the token's place in ``tokens``), ``trial`` and ``iteration``, each pair once.
    """
    places = pd.DataFrame({"place": np.arange(len(tokens))}, index=tokens.index)
    own = tokens[KEY].assign(place=places["place"])
    reading = dispatches.loc[
        (dispatches["step"] == 0).fillna(False) & dispatches["request"].notna(), [*KEY, "request"]
    ].drop_duplicates()
    first = tokens.loc[tokens["position"] == 0, ["trial", "request"]].assign(place=places["place"])
    pieces = first.merge(reading, on=["trial", "request"], how="inner")
    return pd.concat([own, pieces[["place", *KEY]]], ignore_index=True)[["place", *KEY]].drop_duplicates(
        ignore_index=True
    )


def overlapping(run: Run) -> set[str]:
    """Return the trials in which several requests were answered at once."""
    found = set()
    for trial, own in run.requests.groupby("trial", sort=False):
        starts = own.sort_values("t_start_s")
        ends = (starts["t_start_s"] + starts["e2el_ms"] / 1000).cummax()
        # Requests that follow each other touch; stamps are exact to less than a microsecond.
        if (starts["t_start_s"].to_numpy()[1:] < ends.to_numpy()[:-1] - 1e-6).any():
            found.add(str(trial))
    return found
