"""What a quality pass measures equals what plain transformers says of the same text, and a true decode."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from payloads.linkd.channel import Channel, linear_channel
from payloads.linkd.rule import Rule
from payloads.station.link_state import VirtualLinks
from payloads.wdmoe.bs.heldout import Item, Window
from payloads.wdmoe.bs.quality import QualityError, QualityPass, References, distance, measure
from payloads.wdmoe.decision import Decider, decider_of
from payloads.wdmoe.gating import finish, mass_of, selector_of

from . import conftest as lab

TOP_1, TOP_2 = {"kind": "top_k", "k": 1}, {"kind": "top_k", "k": 2}
ALONE = {"kind": "scenario"}
"""Settings that leave the links alone."""


def nothing(*_):
    """Neither progress nor check."""


def windows(encode, count=2, size=48):
    tokens = encode((lab.MODEL / "held-out-austen.txt").read_text()[:4000])
    return [Window("austen", n, tuple(tokens[n * size : (n + 1) * size])) for n in range(count)]


def fading(blocks=64, seed=5):
    """Links whose rates change from token to token."""
    rates = np.exp(np.random.default_rng(seed).normal(1.0, 1.0, (2, blocks, 3))).tolist()
    return Channel(
        rule=Rule("linear", min_mbit=0.1, max_mbit=1000.0),
        devices=lab.DEVICES,
        shares_downlink=(1 / 3,) * 3,
        shares_uplink=(1 / 3,) * 3,
        t_s=tuple(0.01 * n for n in range(blocks)),
        duration_s=0.01 * blocks,
        downlink=tuple(map(tuple, rates[0])),
        uplink=tuple(map(tuple, rates[1])),
    )


def run(local, encode, asked, texts, items=(), references=None):
    model, dispatcher = local
    tables = {"quality": [], "choices": []}
    references = references or References()
    measure(model, encode, dispatcher, asked, texts, items, references, tables, nothing, nothing)
    return tables


def plain_logits(model, tokens, experts=2):
    for layer in model.model.layers:
        layer.mlp.gate.top_k = experts
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0]


def policy(latency, selection=TOP_1, bandwidth=ALONE, links=None):
    state = links.at_block(0) if links is not None else None
    return decider_of(selection, bandwidth, latency, lab.SERVING, state)


@pytest.mark.parametrize("way", ["decode", "prompt"])
def test_the_measures_are_those_of_plain_transformers(local, encode, plain, latency, way):
    texts = windows(encode)
    rows = run(local, encode, QualityPass("top-1", None, policy(latency), None, way), texts)["quality"]
    for row, window in zip(rows, texts, strict=True):
        theirs = plain_logits(plain, window.tokens, 2)[:-1].double().log_softmax(-1)
        ours = plain_logits(plain, window.tokens, 1)[:-1].double().log_softmax(-1)
        targets = torch.tensor(window.tokens[1:])
        nll = -ours.gather(1, targets[:, None]).sum()
        divergence = torch.nn.functional.kl_div(ours, theirs, reduction="sum", log_target=True)
        assert row["nll_sum"] == pytest.approx(float(nll), rel=1e-5)
        assert row["kl_sum"] == pytest.approx(float(divergence), rel=1e-4)
        assert row["agree"] == int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        assert 0 < row["agree"] < row["tokens"] == 47
        assert 0.5 < row["mass_kept"] < 0.9
        assert (row["policy"], row["scenario"], row["text"]) == ("top-1", None, "austen")


@pytest.mark.parametrize("way", ["decode", "prompt"])
def test_a_policy_that_drops_nothing_is_no_distance_from_the_model(local, encode, plain, latency, way):
    texts = windows(encode)
    rows = run(local, encode, QualityPass("top-2", None, policy(latency, TOP_2), None, way), texts)["quality"]
    for row, window in zip(rows, texts, strict=True):
        logits = plain_logits(plain, window.tokens)[:-1]
        assert (row["kl_sum"], row["agree"], row["mass_kept"]) == (0.0, row["tokens"], pytest.approx(1.0))
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(window.tokens[1:]), reduction="sum")
        assert row["nll_sum"] == pytest.approx(float(nll), rel=1e-6)


class Thrifty:
    """Drops a second expert only where the links make it dear and it has mass to spare; remembers, per layer."""

    def __init__(self):
        self.spent, self.seen, self.log = {}, {}, []

    def select(self, view):
        mass = mass_of(view.routing)
        keep = np.ones_like(mass, dtype=bool)
        spent = self.spent.get(view.layer, 0.0)
        device = view.device_of[view.routing.index]
        for row in range(len(mass)):
            spent -= 0.15
            if view.costs.pair_s[device[row, 1]] > self.seen.get(view.layer, 0.002) and spent < 0:
                keep[row, 1] = False
                spent += mass[row, 1]
        self.spent[view.layer] = spent
        self.log.append((view.layer, keep.tolist()))
        return finish(view.routing, keep, {})

    def observe(self, layer, step, loads, seconds):
        assert np.isnan(seconds[loads.pairs == 0]).all()
        assert (seconds[loads.pairs > 0] > 0).all()
        self.seen[layer] = 0.5 * self.seen.get(layer, 0.002) + 0.5 * float(np.nanmean(seconds)) / 4


def decode_with_cache(local, decider, links, texts):
    """Decode texts token by token with a cache: what a trial does, with the text's tokens in place of its own."""
    model, dispatcher = local

    class AsInATrial:
        def before_token(self, request, step, _links):
            shares = decider.before_token(request, step, links.at_block(first + step))
            if shares is not None:
                links.give(shares, "as in a trial")

        def decide(self, layer, step, routing, _links):
            decision = decider.decide(layer, step, routing, links.at_block(first + step))
            if decision.shares is not None:
                links.give(decision.shares, "as in a trial")
            if decider.observe is not None:
                seconds = np.where(decision.loads.pairs > 0, decision.predicted_s, np.nan)
                decider.observe(layer, step, decision.loads, seconds)
            return decision

        observe = None

    dispatcher.decider = AsInATrial()
    first, result = 0, []
    for window in texts:
        cache, rows = None, []
        dispatcher.request = f"{window.text}-{window.number}"
        for step, token in enumerate(window.tokens):
            dispatcher.begin_step(step)
            with torch.inference_mode():
                output = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            rows.append(output.logits[0, -1])
        result.append(torch.stack(rows[:-1]))
        first += len(window.tokens)
    dispatcher.decider = None
    return result


def test_reading_as_decode_equals_a_true_decode_under_a_policy_that_remembers(local, encode, plain, latency):
    texts = windows(encode)
    links = VirtualLinks(fading(), lab.DEVICES)
    logs = []
    deciders = []
    for _ in range(2):
        selector = Thrifty()
        logs.append(selector.log)
        deciders.append(Decider(selector, None, latency, lab.SERVING))
    decoded = decode_with_cache(local, deciders[0], links, texts)
    local[1].passes.clear()
    rows = run(local, encode, QualityPass("thrifty", "fading", deciders[1], links), texts)["quality"]
    # One dispatch a layer for the reference and one for the policy, not one a token.
    assert [size for _, _, size in local[1].passes] == [48] * (4 * 2 * len(texts))
    # Token by token or layer by layer: each layer saw the same.
    one, other = (sorted(log, key=lambda entry: entry[0]) for log in logs)
    assert one == other
    dropped = sum(not pair for _, keep in logs[1] for row in keep for pair in row)
    assert 0.1 < dropped / (len(texts) * 48 * 4) < 0.9
    for row, logits, window in zip(rows, decoded, texts, strict=True):
        expected = distance(plain_logits(plain, window.tokens)[:-1], logits, window.tokens[1:])
        assert row["nll_sum"] == pytest.approx(expected.nll_sum, rel=1e-4)
        assert row["kl_sum"] == pytest.approx(expected.kl_sum, rel=1e-3)
        assert abs(row["agree"] - expected.agree) <= 1  # two nearly equal tokens may change places


@pytest.mark.parametrize(
    ("scope", "per"),
    [("block", None), ("block", "layer"), *(("running", per) for per in (None, "layer", "token", "trial"))],
)
def test_a_budget_is_spent_as_in_a_true_decode(local, encode, plain, latency, scope, per):
    texts = windows(encode, size=32)
    bandwidth = {"kind": "minmax", "per": per} if per else ALONE
    selection = {"kind": "budget", "tau": 0.85, "scope": scope}
    both = [VirtualLinks(fading(), lab.DEVICES) for _ in range(2)]
    deciders = [policy(latency, selection, bandwidth, links) for links in both]
    decoded = decode_with_cache(local, deciders[0], both[0], texts)
    rows = run(local, encode, QualityPass("ours", "fading", deciders[1], both[1]), texts)["quality"]
    for row, logits, window in zip(rows, decoded, texts, strict=True):
        expected = distance(plain_logits(plain, window.tokens)[:-1], logits, window.tokens[1:])
        assert row["nll_sum"] == pytest.approx(expected.nll_sum, rel=1e-4)
        assert row["kl_sum"] == pytest.approx(expected.kl_sum, rel=1e-3)
    # A window may spend what the one before has saved.
    assert 0.85 <= np.mean([row["mass_kept"] for row in rows]) < 0.99


def test_reading_as_prompt_is_one_batch_in_the_block_of_its_text(local, encode, latency):
    links = VirtualLinks(fading(), lab.DEVICES)
    selector = Thrifty()
    decider = Decider(selector, None, latency, lab.SERVING)
    run(local, encode, QualityPass("thrifty", "fading", decider, links, "prompt"), windows(encode))
    assert [len(keep) for _, keep in selector.log] == [48] * 8


@pytest.mark.parametrize("per", ["token", "trial"])
def test_a_policy_that_shares_by_token_steps_is_truly_decoded(local, encode, latency, per):
    links = VirtualLinks(linear_channel(dict.fromkeys(lab.DEVICES, (2.0, 2.0))), lab.DEVICES)
    decider = policy(latency, {"kind": "top_k", "k": 1}, {"kind": "proportional", "per": per}, links)
    texts = windows(encode, size=16)
    local[1].passes.clear()
    rows = run(local, encode, QualityPass("shared", "even", decider, links), texts)["quality"]
    sizes = [size for request, _, size in local[1].passes if request != "reference"]
    assert sizes == [1] * (4 * 16 * 2)
    assert len(rows) == 2
    # The shares followed what was sent, on paper.
    assert links.changes >= 1
    assert not np.allclose(links.shares, 1 / 3)


def test_the_links_that_a_token_sees_go_on_through_the_texts(local, encode, latency):
    seen = []

    class Spy:
        def select(self, view):
            if view.layer == 0:
                seen.append(round(float(view.costs.pair_s[0]), 9))
            return selector_of(TOP_2).select(view)

    links = VirtualLinks(fading(blocks=40), lab.DEVICES)
    run(
        local,
        encode,
        QualityPass("spy", "fading", Decider(Spy(), None, latency, lab.SERVING), links),
        windows(encode, size=30),
    )
    expected = [
        round(float(latency.costs(*links.at_block(token % 40).rates_mbit()).pair_s[0]), 9)
        for token in range(60)
    ]
    assert seen == expected
    assert len(set(seen)) == 40


def test_the_reference_is_read_once_and_leaves_no_dispatches(local, encode, latency):
    texts, references = windows(encode), References()
    for name in ("one", "two"):
        run(local, encode, QualityPass(name, None, policy(latency), None), texts, references=references)
    read = [request for request, _, _ in local[1].passes]
    assert read.count("reference") == 4 * len(texts)
    assert read.count("austen-0") == 8
    assert {request for request, _ in local[1].booking.rows} == {"austen-0", "austen-1"}
    assert local[1].decider is None
    assert references.held_bytes == 2 * 47 * 2048 * 4


def test_references_that_do_not_fit_are_read_again_and_say_the_same(local, encode, latency):
    texts, references = windows(encode), References(cap_bytes=47 * 2048 * 4)
    tables = [
        run(local, encode, QualityPass("one", None, policy(latency), None), texts, references=references)
        for _ in range(2)
    ]
    assert tables[0] == tables[1]
    read = [request for request, _, _ in local[1].passes]
    assert read.count("reference") == 4 * 3
    assert references.held_bytes <= 47 * 2048 * 4


def test_a_question_is_answered_by_the_likelihood_of_its_words(local, encode, plain, latency):
    item = Item(
        "set",
        "q1",
        "It is a truth universally acknowledged, that a single man must be in want of a",
        ("wife", "zebra crossing", "thousand"),
        0,
    )
    row = run(local, encode, QualityPass("top-2", None, policy(latency, TOP_2), None), (), [item])["choices"][
        0
    ]
    expected = []
    for choice in item.choices:
        question, answer = encode(item.question), encode(f" {choice}")
        logits = plain_logits(plain, [*question, *answer])[len(question) - 1 : -1]
        expected.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer))))
    assert row == {
        "policy": "top-2",
        "scenario": None,
        "set": "set",
        "item": "q1",
        "choices": 3,
        "answer": 0,
        "chosen": int(np.argmin(expected)),
        "nll_answer": pytest.approx(expected[0], rel=1e-5),
        "nll_chosen": pytest.approx(min(expected), rel=1e-5),
    }


def test_a_question_that_is_too_long_loses_its_beginning(local, encode, plain, latency):
    # The model reads 2,048 tokens; the window is made small so that the test is.
    plain.config.max_position_embeddings = local[0].config.max_position_embeddings = 12
    try:
        item = Item("set", "q1", "word " * 40, ("wife", "man"), 1)
        row = run(local, encode, QualityPass("top-2", None, policy(latency, TOP_2), None), (), [item])[
            "choices"
        ][0]
        answer = encode(" man")
        tokens = [*encode(item.question)[-(12 - len(answer)) :], *answer]
        logits = plain_logits(plain, tokens)[-len(answer) - 1 : -1]
        nll = float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))
        assert row["nll_answer"] == pytest.approx(nll, rel=1e-5)
        endless = Item("set", "q2", "word", ("wife " * 20, "man"), 1)
        with pytest.raises(QualityError, match="q2: choice 0 has"):
            run(local, encode, QualityPass("top-2", None, policy(latency, TOP_2), None), (), [endless])
    finally:
        plain.config.max_position_embeddings = local[0].config.max_position_embeddings = 2048
