"""How good the model's answers are under a policy: likelihood of held-out text, distance from the undropped model.

A quality pass measures one policy, in one scenario where its selection looks at the links. Each window of text is
read twice: once with all that the router asks for (the reference), once under the policy. The links of a pass are
virtual (:mod:`payloads.wdmoe.bs.virtual`), and the real ones carry it unshaped.

A text is read in one of two ways. ``prompt``: the whole text is one batch for the policy, as a prompt is. ``decode``:
each token is a batch of its own, as an answer's tokens are. Both take one dispatch for each layer: the policy decides
token by token within the layer, and a token sees only what comes before it. A policy that shares the band by what a
whole token step sent depends on all layers of that step: its texts are truly decoded, token by token with a cache.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch

from payloads.station.link_state import VirtualLinks
from payloads.wdmoe.bs.heldout import Item, QualityError, Window, read_items, read_windows
from payloads.wdmoe.bs.remote import Dispatcher
from payloads.wdmoe.bs.virtual import VirtualDecider
from payloads.wdmoe.decision import Decider

__all__ = [
    "Distance",
    "Item",
    "QualityError",
    "QualityPass",
    "References",
    "Window",
    "distance",
    "measure",
    "read_items",
    "read_windows",
]

#: Called with what is done, of how many, and what comes now.
Progress = Callable[[int, int, str], None]


class QualityPass(NamedTuple):
    """What one quality pass measures, and under what.

    Attributes:
        policy: The policy's name, for the records.
        scenario: The scenario whose links the selection follows; ``None`` where it does not look at links.
        decider: The policy at work, made for this pass.
        links: The scenario's links; ``None`` where nothing shapes them.
        way: One of :data:`payloads.wdmoe.bs.heldout.WAYS`.
    """

    policy: str
    scenario: Optional[str]
    decider: Decider
    links: Optional[VirtualLinks]
    way: str = "decode"


class Distance(NamedTuple):
    """How far predictions are from what comes, and from the reference's predictions. Sums over tokens.

    Attributes:
        nll_sum: Negative log-likelihood of what comes, in nats.
        kl_sum: Kullback-Leibler divergence of the predictions from the reference's, in nats: the sum over the
            vocabulary of p_reference (ln p_reference - ln p).
        agree: How many have the reference's most likely token.
    """

    nll_sum: float
    kl_sum: float
    agree: int


class References:
    """The undropped model's predictions, kept for the passes that come after; one for each base station.

    What does not fit is worked out anew in each pass: all passes read the same texts in the same order, so that
    throwing out what is oldest would throw out just what comes next.

    Args:
        cap_bytes: The most that is kept.

    Attributes:
        held_bytes: What is kept.
    """

    def __init__(self, cap_bytes: int = 512 << 20) -> None:
        self._cap_bytes = cap_bytes
        self._logits: Dict[Tuple[int, ...], torch.Tensor] = {}
        self.held_bytes = 0

    def of(self, tokens: Tuple[int, ...], work_out: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the logits of a text, those that are kept or else those that ``work_out`` returns."""
        known = self._logits.get(tokens)
        if known is not None:
            return known
        logits = work_out()
        size = logits.numel() * logits.element_size()
        if self.held_bytes + size <= self._cap_bytes:
            self._logits[tokens] = logits
            self.held_bytes += size
        return logits


def distance(reference: torch.Tensor, logits: torch.Tensor, tokens: Sequence[int]) -> Distance:
    """Return how far predictions are from what comes and from the reference.

    Args:
        reference: (T, V), the reference's logits.
        logits: (T, V), the logits to be judged.
        tokens: (T,), what comes.
    """
    ours = torch.log_softmax(logits.float(), dim=-1)
    theirs = torch.log_softmax(reference.float(), dim=-1)
    nll = torch.nn.functional.nll_loss(ours, torch.tensor(tokens), reduction="none")
    divergence = (theirs.exp() * (theirs - ours)).sum(dim=-1)
    agree = (logits.argmax(dim=-1) == reference.argmax(dim=-1)).sum()
    return Distance(float(nll.double().sum()), float(divergence.double().sum()), int(agree))


def measure(
    model: Any,
    encode: Callable[[str], List[int]],
    dispatcher: Dispatcher,
    asked: QualityPass,
    windows: Sequence[Window],
    items: Sequence[Item],
    references: References,
    tables: Mapping[str, List[Dict[str, Any]]],
    progress: Progress,
    check: Callable[[], None],
) -> None:
    """Measure one pass: append its rows to the tables ``quality`` and ``choices``.

    Args:
        model: A causal language model of transformers whose experts ask ``dispatcher``.
        encode: Returns a text's tokens.
        dispatcher: Its ``decider`` is set while the pass reads, and then as it was. Without one everything goes out
            as the router has it.
        asked: The policy and what it sees.
        windows: The windows.
        items: The questions.
        references: What the undropped model says, as far as it is known.
        tables: Where the rows go.
        progress: Told what is done.
        check: Called before every text, and before every token of one that is decoded; raises to stop.

    Raises:
        QualityError: A question does not fit the model.
    """
    reader = _Reader(model, dispatcher, asked, check)
    named = {"policy": asked.policy, "scenario": asked.scenario}
    of = len(windows) + len(items)
    for done, window in enumerate(windows):
        progress(done, of, f"text {window.text}, window {window.number}")
        reference = references.of(window.tokens, partial(reader.undropped, window.tokens))
        logits, mass = reader.read(f"{window.text}-{window.number}", window.tokens)
        tables["quality"].append(
            {
                **named,
                "text": window.text,
                "window": window.number,
                "tokens": len(window.tokens) - 1,
                **distance(reference, logits, window.tokens[1:])._asdict(),
                "mass_kept": mass,
            }
        )
    for done, item in enumerate(items, len(windows)):
        progress(done, of, f"questions {item.set}, {item.id}")
        nlls = reader.answers(item, encode)
        chosen = min(range(len(nlls)), key=nlls.__getitem__)
        tables["choices"].append(
            {
                **named,
                "set": item.set,
                "item": item.id,
                "choices": len(nlls),
                "answer": item.answer,
                "chosen": chosen,
                "nll_answer": nlls[item.answer],
                "nll_chosen": nlls[chosen],
            }
        )


class _Reader:
    """Reads texts under one policy."""

    def __init__(
        self, model: Any, dispatcher: Dispatcher, asked: QualityPass, check: Callable[[], None]
    ) -> None:
        self._model = model
        self._dispatcher = dispatcher
        self._check = check
        self._passes = 0
        self._decodes = asked.way == "decode" and _shares_by_step(asked.decider)
        self._policy = VirtualDecider(asked.decider, asked.links, tokenwise=asked.way == "decode")

    def undropped(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits (T - 1, V) of a text where every token gets all experts that the router asks for."""
        with _deciding(self._dispatcher, None, "reference"):
            return self._at_once(tokens)

    def read(self, name: str, tokens: Sequence[int]) -> Tuple[torch.Tensor, float]:
        """Return the logits (T - 1, V) of a text under the policy, and the share of the gate mass that was sent."""
        self._policy.begin_text(len(tokens))
        with _deciding(self._dispatcher, self._policy, name):
            logits = (self._token_by_token if self._decodes else self._at_once)(tokens)
        return logits, self._policy.kept / self._policy.asked

    def answers(self, item: Item, encode: Callable[[str], List[int]]) -> List[float]:
        """Return the negative log-likelihood of each choice, a token: long answers are no worse for being long.

        A question that is too long loses its beginning.
        """
        most = int(self._model.config.max_position_embeddings)
        question = encode(item.question)
        result = []
        for number, choice in enumerate(item.choices):
            answer = encode(f" {choice}")
            if not question or len(answer) >= most:
                raise QualityError(
                    f"questions {item.set}: {item.id}: choice {number} has {len(answer)} tokens; "
                    f"at most {most - 1} beside the question were expected"
                )
            tokens = [*question[-(most - len(answer)) :], *answer]
            logits, _ = self.read(f"{item.set}-{item.id}-{number}", tokens)
            ours = logits[-len(answer) :].float()
            result.append(float(torch.nn.functional.cross_entropy(ours, torch.tensor(answer))))
        return result

    def _begin_pass(self, step: int) -> None:
        self._check()
        self._dispatcher.iteration = self._passes
        self._passes += 1
        self._dispatcher.begin_step(step)

    def _at_once(self, tokens: Sequence[int]) -> torch.Tensor:
        self._begin_pass(0)
        with torch.inference_mode():
            logits: torch.Tensor = self._model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits
        return logits[0, :-1]

    def _token_by_token(self, tokens: Sequence[int]) -> torch.Tensor:
        cache: Any = None
        rows: List[torch.Tensor] = []
        with torch.inference_mode():
            for step, token in enumerate(tokens):
                self._begin_pass(step)
                output = self._model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                rows.append(output.logits[0, -1])
        return torch.stack(rows[:-1])


def _shares_by_step(decider: Decider) -> bool:
    """Return whether the policy shares the band by what came before the layer: other layers, other tokens."""
    return decider.allocator is not None and decider.allocator.period in ("token", "trial")


@contextmanager
def _deciding(dispatcher: Dispatcher, decider: Optional[VirtualDecider], request: str) -> Iterator[None]:
    """Let ``decider`` decide what a text's tokens are sent to; the reference leaves no dispatches behind."""
    before, rows = (dispatcher.decider, dispatcher.activations), len(dispatcher.booking.rows)
    dispatcher.decider = decider
    dispatcher.activations = None if decider is None else decider.activations
    dispatcher.request, dispatcher.step = request, 0
    try:
        yield
    finally:
        dispatcher.decider, dispatcher.activations = before
        if decider is None:
            del dispatcher.booking.rows[rows:]
