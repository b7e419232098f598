"""What the router asks for in every layer, request by request: recorded from the real model, or drawn at a shape.

A trace is what the simulator replays under every policy. It is the undropped model's: a policy that drops experts
would change the hidden states behind it, and so, a little, what later layers ask for. That is left out.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from payloads.wdmoe.routing import Routing
from testbed.errors import InputError

__all__ = ["Drawn", "Traced", "draw_routing", "drawn_settings", "read_traces", "write_traces"]

_ARRAYS = ("index", "weights", "scores", "tokens")
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Traced:
    """One prompt and its answer, as the routers saw them. T = prompt tokens + new tokens - 1 rows.

    Attributes:
        prompt_tokens: Length of the prompt: rows 0 to that belong to token step 0, each later row to one step more.
        index: (L, T, k), the experts that the router of each layer chose, the best first.
        weights: (L, T, k), the weights of their answers.
        scores: (L, T, E), what the router thinks of every expert; each row sums to 1.
        tokens: (new tokens,), the numbers of the generated tokens; -1 where no model made them.
    """

    prompt_tokens: int
    index: NDArray[np.int64]
    weights: NDArray[np.float32]
    scores: NDArray[np.float32]
    tokens: NDArray[np.int64]

    @property
    def steps(self) -> int:
        """How many token steps there are, the prompt's included."""
        return len(self.tokens)

    @property
    def layers(self) -> int:
        """L, the number of layers."""
        return int(self.index.shape[0])

    def rows(self, step: int) -> slice:
        """Return the rows of a token step, 0 for the prompt."""
        if step == 0:
            return slice(0, self.prompt_tokens)
        return slice(self.prompt_tokens + step - 1, self.prompt_tokens + step)

    def routing(self, layer: int, step: int) -> Routing:
        """Return what the router of a layer chose for the tokens of a step."""
        rows = self.rows(step)
        return Routing(self.index[layer, rows], self.weights[layer, rows], self.scores[layer, rows])


@dataclass(frozen=True)
class Drawn:
    """How routing is drawn where there are no weights. A stand-in for a model, not a measurement of one.

    The logit of an expert is ``concentration * z + popularity``. ``z`` is standard normal, and correlated along the
    tokens of a request: what the token before it wanted, this one is more likely to want too. ``popularity`` is drawn
    once for each layer and expert.

    Attributes:
        concentration: How decided the router is: 0 gives all experts the same score.
        correlation: Of ``z`` from one token to the next, from 0 to below 1.
        skew: Standard deviation of the experts' popularity: 0 asks for all alike.
    """

    concentration: float = 1.0
    correlation: float = 0.3
    skew: float = 0.3

    def __post_init__(self) -> None:
        for name in ("concentration", "skew"):
            if not 0 <= getattr(self, name) <= 100:
                raise InputError(f"{name}: a number from 0 to 100 was expected, not {getattr(self, name)!r}")
        if not 0 <= self.correlation < 1:
            raise InputError(
                f"correlation: a number from 0 to below 1 was expected, not {self.correlation!r}"
            )


def drawn_settings(config: Mapping[str, Any]) -> Drawn:
    """Return how a shape's routing is drawn, by the key ``drawn_routing`` of its config.json.

    Raises:
        InputError: It holds what is no such setting.
    """
    given = config.get("drawn_routing", {})
    known = Drawn.__dataclass_fields__
    if not isinstance(given, Mapping):
        raise InputError("drawn_routing: an object was expected")
    for name, value in given.items():
        if name not in known:
            raise InputError(f"drawn_routing: unknown key {name!r}; there are: {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"drawn_routing: {name}: a number was expected, not {value!r}")
    return Drawn(**{name: float(value) for name, value in given.items()})


class _Shape(NamedTuple):
    layers: int
    experts: int
    chosen: int


def draw_routing(
    settings: Drawn,
    *,
    layers: int,
    experts: int,
    experts_per_token: int,
    lengths: Mapping[str, tuple[int, int]],
    seed: int,
) -> dict[str, Traced]:
    """Draw the routing of some requests.

    The weights are those of Mixtral: the chosen experts' scores, scaled to the sum 1.

    Args:
        settings: How it is drawn.
        layers: L, the number of layers.
        experts: E, the experts of a layer.
        experts_per_token: k, how many the router chooses for a token.
        lengths: For each request its prompt's tokens and its new tokens, both at least 1.
        seed: All draws follow from it and the request's name: a request's do not depend on the others.
    """
    shape = _Shape(layers, experts, experts_per_token)
    popularity = _generator(seed, "popularity").normal(0.0, 1.0, (layers, 1, experts)) * settings.skew
    return {
        name: _draw_request(settings, shape, popularity, prompt, new, _generator(seed, "request", name))
        for name, (prompt, new) in lengths.items()
    }


def _draw_request(
    settings: Drawn,
    shape: _Shape,
    popularity: NDArray[np.float64],
    prompt: int,
    new: int,
    generator: np.random.Generator,
) -> Traced:
    from scipy.signal import lfilter

    rows = prompt + new - 1
    scores = np.empty((shape.layers, rows, shape.experts), np.float32)
    index = np.empty((shape.layers, rows, shape.chosen), np.int64)
    weights = np.empty((shape.layers, rows, shape.chosen), np.float32)
    stay = settings.correlation
    for layer in range(shape.layers):
        noise = generator.normal(0.0, 1.0, (rows, shape.experts))
        noise[1:] *= np.sqrt(1 - stay**2)  # the first token has nothing before it
        logits = settings.concentration * lfilter([1.0], [1.0, -stay], noise, axis=0) + popularity[layer]
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        scores[layer] = odds / odds.sum(axis=1, keepdims=True)
        index[layer] = best_experts(scores[layer], shape.chosen)
        chosen = np.take_along_axis(scores[layer], index[layer], axis=1)
        weights[layer] = chosen / chosen.sum(axis=1, keepdims=True)
    return Traced(prompt, index, weights, scores, np.full(new, -1, np.int64))


def best_experts(scores: NDArray[np.float32], chosen: int) -> NDArray[np.int64]:
    """Return the ``chosen`` experts with the highest scores of each token, the best first; scores (N, E) -> (N, k)."""
    if chosen < scores.shape[1]:
        some = np.argpartition(-scores, chosen - 1, axis=1)[:, :chosen]
    else:
        some = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1).astype(np.int64)


def _generator(seed: int, *words: str) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps([seed, "routing", *words]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def write_traces(path: Path, traces: Mapping[str, Traced]) -> None:
    """Write traces into a file, whole or not at all: arrays only, nothing that could be executed when read."""
    names = list(traces)
    arrays: dict[str, Any] = {"about": np.array(json.dumps({"format": _FORMAT, "names": names}))}
    for number, trace in enumerate(traces.values()):
        arrays[f"{number}.prompt_tokens"] = np.array(trace.prompt_tokens)
        arrays[f"{number}.index"] = trace.index.astype(np.int16)
        for name in _ARRAYS[1:]:
            arrays[f"{number}.{name}"] = getattr(trace, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    unfinished.replace(path)


def read_traces(path: Path) -> dict[str, Traced] | None:
    """Read what :func:`write_traces` wrote; None where it is not there, or not whole, and is to be made anew."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            if about["format"] != _FORMAT:
                return None
            traces: dict[str, Traced] = {}
            for number, name in enumerate(about["names"]):
                index, weights, scores, tokens = (file[f"{number}.{part}"] for part in _ARRAYS)
                prompt = int(file[f"{number}.prompt_tokens"])
                traces[name] = Traced(prompt, index.astype(np.int64), weights, scores, tokens)
            return traces
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
