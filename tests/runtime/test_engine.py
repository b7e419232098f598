"""Several requests at a time get what each would get alone; and every request ends once, whatever happens."""

from __future__ import annotations

import itertools
import threading
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    MixtralConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
)

from payloads.station.control import AbandonedError
from payloads.wdmoe.bs.asks import Ask, Sampling
from payloads.wdmoe.bs.booking import Booking
from payloads.wdmoe.bs.engine import Engine, most_rows
from payloads.wdmoe.bs.kv_cache import BatchingError
from payloads.wire.client import DeviceError, DeviceLostError
from payloads.wire.frames import MAX_FRAME_BYTES

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
}
MLA = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
SHARED = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS = {
    "full": MixtralConfig(**TINY, num_local_experts=4),
    "window": MixtralConfig(**TINY, num_local_experts=4, sliding_window=7),
    "some windows": Qwen2MoeConfig(
        **TINY, **SHARED, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "compressed": DeepseekV3Config(**{**TINY, **MLA}),
}


class Hearer:
    """A sink that keeps what it hears, in order."""

    def __init__(self, on_token=None):
        self.heard, self.tokens, self.scores, self.ended = [], [], None, None
        self.on_token = on_token

    def begun(self, handle):
        self.heard.append("begun")
        self.handle = handle

    def prompt(self, scores):
        self.heard.append("prompt")
        self.scores = scores

    def token(self, token):
        self.heard.append("token")
        self.tokens.append(token)
        if self.on_token:
            self.on_token(self)

    def end(self, reason, message):
        self.heard.append("end")
        self.ended = (reason, message)

    @property
    def ids(self):
        return [token.token for token in self.tokens]


class NoDevices:
    """The dispatcher's part that the engine needs, for a model whose experts are in this process."""

    def __init__(self):
        self.wall_ns, self.outcome, self.metrics, self.begun = 0, None, None, []
        self.request, self.iteration, self.batch, self.deadline_ns = "", 0, 1, None
        self.booking = Booking()

    def look(self):
        """There is nothing to look after."""

    def begin_step(self, step, oldest=None):
        self.begun.append((self.iteration, self.request, step, self.batch, oldest))


def nothing():
    """No check."""


def answer(model, asks, **options):
    """Have all requests answered; return what was heard of each."""
    engine = Engine(model, NoDevices(), **options)
    hearers = [Hearer() for _ in asks]
    for ask, hearer in zip(asks, hearers, strict=True):
        engine.submit(ask, hearer)
    engine.run(lambda: all(one.ended for one in hearers), nothing)
    return hearers


def ask(name, prompt, new=10, **settings):
    return Ask(name, lambda: list(prompt), new, **settings)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_batch_gives_what_each_request_gets_alone(name):
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(MODELS[name]).eval()
    prompts = [torch.randint(1, 61, (length,)).tolist() for length in (13, 29, 5, 17)]
    expected, scores = [], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=[60],
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected.append(out.sequences[0, len(prompt) :].tolist())
        scores.append([float(row.log_softmax(-1).max()) for row in out.logits])
    for options in ({}, {"max_batch": 3}, {"max_batch": 4, "prefill_chunk_tokens": 4}):
        asks = [ask(f"r{n}", p, logprobs=2, stop_tokens=[60]) for n, p in enumerate(prompts)]
        for hearer, tokens, logprobs in zip(answer(model, asks, **options), expected, scores, strict=True):
            assert hearer.ids == tokens
            assert [token.scored.logprob for token in hearer.tokens] == pytest.approx(logprobs, abs=1e-5)
            assert hearer.ended == ("stop" if tokens[-1] == 60 else "length", "")


def test_what_cannot_be_batched_is_refused():
    eager = AutoModelForCausalLM.from_config(MODELS["full"], attn_implementation="eager").eval()
    with pytest.raises(BatchingError, match="attention is eager, and only sdpa"):
        Engine(eager, NoDevices(), max_batch=2)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "short_mscale": 1.0,
        "long_mscale": 1.1,
        "original_max_position_embeddings": 32,
    }
    config = PhimoeConfig(**TINY, num_local_experts=4, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config).eval()
    asks = [ask("short", range(1, 20)), ask("long", range(1, 30))]
    short, long = answer(model, asks, max_batch=2)
    assert short.ended == ("length", "")
    assert long.ended[0] == "failed"
    assert "longrope" in long.ended[1]
    assert [one.ended[0] for one in answer(model, asks)] == ["length", "length"]
    # So clients are told, and need not find out by requests that fail.
    assert Engine(model, NoDevices(), max_batch=2).context_tokens == 32
    assert Engine(model, NoDevices(), prefill_chunk_tokens=8, context_tokens=16).context_tokens == 16
    assert Engine(model, NoDevices()).context_tokens == 96


class Counting:
    """A model whose next token is a sum over all tokens before it: it needs every one of them, at its place."""

    def __init__(self):
        self.config = SimpleNamespace(max_position_embeddings=64, vocab_size=97, _attn_implementation="slots")
        self.widths = []

    def __call__(self, input_ids, past_key_values, use_cache, logits_to_keep, position_ids=None):
        past = past_key_values.get_query_offset()
        new = input_ids.shape[1]
        self.widths.append(tuple(input_ids.shape))
        keys, values = past_key_values.update(
            input_ids[:, None, :, None].float(), input_ids[:, None, :, None].double(), 0
        )
        logits = torch.zeros(len(input_ids), new, 97)
        for row in range(len(input_ids)):
            begin = int(past[row]) if isinstance(past, torch.Tensor) else past
            for place in range(new):
                seen = keys[row, 0, : begin + place + 1, 0].tolist()
                assert seen == values[row, 0, : begin + place + 1, 0].tolist()
                logits[row, place, self.next_token(seen)] = 1.0
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])

    @staticmethod
    def next_token(seen):
        return int(sum(token * place for place, token in enumerate(seen, 1))) % 97


def alone(prompt, new, stop):
    seen = list(prompt)
    for _ in range(new):
        seen.append(Counting.next_token(seen))
        if seen[-1] in stop:
            break
    return seen[len(prompt) :]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 96), min_size=1, max_size=12),
            st.integers(0, 9),  # new tokens
            st.integers(0, 12),  # given up after so many
            st.booleans(),  # whether the prompt's likelihoods are wanted
        ),
        min_size=1,
        max_size=7,
    ),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_requests_of_all_shapes_never_mix(shapes, max_batch, chunk):
    # A cache that has no room to spare is lengthened all the time.
    with (
        mock.patch("payloads.wdmoe.bs.engine._AHEAD_TOKENS", 0),
        mock.patch("payloads.wdmoe.bs.kv_cache._GRAIN_TOKENS", 1),
    ):
        never_mix(shapes, max_batch, chunk)


def never_mix(shapes, max_batch, chunk):
    model, dispatcher = Counting(), NoDevices()
    engine = Engine(model, dispatcher, max_batch=max_batch, prefill_chunk_tokens=chunk)
    stop = range(90, 97)
    hearers = []
    for number, (prompt, new, leave, echo) in enumerate(shapes):
        hearer = Hearer(lambda one, leave=leave: len(one.tokens) == leave and one.handle.cancel())
        hearers.append(hearer)
        engine.submit(
            ask(str(number), prompt, new, stop_tokens=stop, logprobs=1 if echo else None, echo=echo), hearer
        )
    assert engine.load == (0, len(shapes))
    engine.run(lambda: all(one.ended for one in hearers), nothing)
    assert engine.load == (0, 0)
    for hearer, (prompt, new, leave, echo) in zip(hearers, shapes, strict=True):
        whole = alone(prompt, new, stop)
        left = 0 < leave < len(whole)
        assert hearer.ids == (whole[:leave] if left else whole)
        reason = "abandoned" if left else "stop" if whole and whole[-1] in stop else "length"
        assert hearer.ended[0] == reason
        assert hearer.heard == ["begun"] + ["prompt"] * echo + ["token"] * len(hearer.ids) + ["end"]
        assert len(hearer.handle.nlls) == len(hearer.ids)
        if echo:
            assert [one and one.token for one in hearer.scores] == [None, *prompt[1:]]
            nexts = [Counting.next_token(prompt[:end]) for end in range(1, len(prompt))]
            assert [one.top[0][0] for one in hearer.scores[1:]] == nexts
    assert all(rows <= max_batch for rows, _ in model.widths)
    assert all(width <= (chunk or 12) for _, width in model.widths)
    # Each pass has its own number and says who is in it, and a policy hears who was there first.
    assert (
        [one[0] for one in dispatcher.begun]
        == list(range(engine.iterations))
        == list(range(len(model.widths)))
    )
    assert [one[3] for one in dispatcher.begun] == [rows for rows, _ in model.widths]
    assert [int(one[4]) for one in dispatcher.begun] == sorted(int(one[4]) for one in dispatcher.begun)


def test_reading_and_decoding_take_turns():
    model = Counting()
    asks = [ask("a", [1] * 4, 6), ask("b", [2] * 9, 2)]
    answer(model, asks, max_batch=2, prefill_chunk_tokens=3)
    reads, decodes = [(1, 3), (1, 1)], [(1, 1), (1, 3), (1, 1), (1, 3), (1, 1), (1, 3), (2, 1), (1, 1)]
    assert model.widths == reads + decodes


def test_who_waits_or_runs_too_long_ends_by_its_deadline():
    counting, clock = Counting(), itertools.count(0, 10_000_000)  # 10 ms from one look at it to the next
    passes = []

    def slow(*arguments, **settings):
        passes.append([next(clock) for _ in range(5)])
        return counting(*arguments, **settings)

    slow.config = counting.config
    ticking = SimpleNamespace(monotonic_ns=lambda: next(clock))
    with (
        mock.patch("payloads.wdmoe.bs.engine.time", ticking),
        mock.patch("payloads.wdmoe.bs.asks.time", ticking),
    ):
        runs, waits, patient = answer(
            slow,
            [
                ask("runs", [1], 50, deadline_s=0.3),
                ask("waits", [1], 5, deadline_s=0.01),
                ask("patient", [1], 2, deadline_s=60.0),
            ],
        )
    assert runs.ended == ("deadline", "its time of 0.3 s is up")
    assert runs.ids == alone([1], 50, ())[: len(runs.ids)]
    assert len(runs.ids) == len(passes) - 2 == 4
    assert waits.heard == ["begun", "end"]
    assert waits.ended[0] == "deadline"
    assert patient.ended[0] == "length"


def test_numbers_that_overflow_fail_their_request_and_reach_no_other():
    class Overflowing(Counting):
        def __call__(self, input_ids, past_key_values, **settings):
            out = super().__call__(input_ids, past_key_values, **settings)
            for row in (input_ids == 90).any(dim=1).nonzero().flatten().tolist():
                out.logits[row] = float("nan")
                past_key_values.layers[0].values[past_key_values.span.first + row] = float("nan")
            caches.append(past_key_values)
            return out

    caches, model = [], Overflowing()
    asks = [
        ask("answers with a 90", [88, 1], 3),  # in a batch, before one that takes its place
        ask("good", [4, 5], 9),
        ask("drawn", [3, 90], 3, sampling=Sampling(1.0)),
        ask("good, too", [7], 9),
    ]
    engine = Engine(model, NoDevices(), max_batch=3)
    hearers = [Hearer() for _ in asks]
    for one, hearer in zip(asks, hearers, strict=True):
        engine.submit(one, hearer)
    engine.run(lambda: all(one.ended for one in hearers), nothing)
    assert [one.ended[0] for one in hearers] == ["failed", "length", "failed", "length"]
    assert "no numbers (NaN)" in hearers[0].ended[1]
    assert [one.ids for one in hearers] == [[90], alone([4, 5], 9, ()), [], alone([7], 9, ())]
    assert (2, 1) in model.widths
    assert not caches[-1].layers[0].values.isnan().any()


def test_a_pass_is_as_long_as_its_rows_fit_a_frame():
    model = SimpleNamespace(
        config=SimpleNamespace(hidden_size=4096, num_experts_per_tok=8), dtype=torch.bfloat16
    )
    assert most_rows(model, None) == most_rows(model, "int8") == most_rows(model, "bfloat16")
    for activations, row_bytes in ((None, 8192), ("float32", 16384)):
        assert most_rows(model, activations) * 8 * row_bytes <= MAX_FRAME_BYTES
        assert (most_rows(model, activations) + 200) * 8 * row_bytes > MAX_FRAME_BYTES


def test_failures_that_are_survived_end_the_requests_of_their_pass_only():
    model, dispatcher = Counting(), NoDevices()
    engine = Engine(model, dispatcher, max_batch=2, survives=(DeviceError,))
    hearers = [Hearer(), Hearer(), Hearer(), Hearer()]

    def begin_step(step, oldest=None):
        if dispatcher.batch == 2 and not hearers[0].ended:
            raise DeviceLostError("big", "connection closed")

    def no_prompt():
        raise DeviceError("big", "x", "no prompt")

    dispatcher.begin_step = begin_step
    engine.submit(ask("one", [1, 2], 9), hearers[0])
    engine.submit(Ask("bad", no_prompt, 3), hearers[1])
    engine.submit(ask("two", [3], 9), hearers[2])
    engine.submit(ask("three", [4, 5], 4), hearers[3])
    engine.run(lambda: all(one.ended for one in hearers), nothing)
    assert [one.ended[0] for one in hearers] == ["failed", "failed", "failed", "length"]
    assert "device big lost" in hearers[0].ended[1]
    assert hearers[1].ended[1] == "no prompt"
    assert hearers[3].ids == alone([4, 5], 4, ())


def test_who_waits_to_be_read_does_not_suffer_from_a_pass_that_fails_before_its_slot_is_there():
    dispatcher = NoDevices()
    engine = Engine(Counting(), dispatcher, max_batch=3, survives=(DeviceError,))
    hearers = [Hearer(), Hearer(), Hearer()]

    def begin_step(step, oldest=None):
        if dispatcher.batch == 2 and not hearers[0].ended:
            raise DeviceLostError("big", "connection closed")

    dispatcher.begin_step = begin_step
    engine.submit(ask("one", [1, 2], 9), hearers[0])
    engine.submit(ask("two", [3], 9), hearers[1])
    engine.submit(ask("three", [4, 5], 4), hearers[2])
    engine.run(lambda: all(one.ended for one in hearers), nothing)
    assert [one.ended[0] for one in hearers] == ["failed", "failed", "length"]
    assert hearers[2].ids == alone([4, 5], 4, ())


@pytest.mark.parametrize("words", [None, "DefaultCPUAllocator: can't allocate memory: you tried to"])
def test_memory_that_is_not_had_fails_its_pass_and_is_given_back(words):
    class Short(Counting):
        """Has room for 50 tokens in all slots together; where there is none, its keys have grown already."""

        def __call__(self, input_ids, past_key_values, **settings):
            if past_key_values.slots * past_key_values.length > 50:
                layer = past_key_values.layers[0] if past_key_values.layers else None
                if layer is not None:
                    layer.keys = layer._roomy(layer.keys, layer.keys)
                raise MemoryError if words is None else RuntimeError(words)
            return super().__call__(input_ids, past_key_values, **settings)

    with (
        mock.patch("payloads.wdmoe.bs.engine._AHEAD_TOKENS", 0),
        mock.patch("payloads.wdmoe.bs.kv_cache._GRAIN_TOKENS", 1),
    ):
        engine = Engine(Short(), NoDevices(), max_batch=2, survives=(MemoryError,))
        asks = [ask("good", [4, 5], 9), ask("long", range(1, 40), 3), ask("then", [7] * 5, 9)]
        hearers = [Hearer() for _ in asks]
        for one, hearer in zip(asks, hearers, strict=True):
            engine.submit(one, hearer)
        engine.run(lambda: all(one.ended for one in hearers), nothing)
        keys = engine._cache.layers[0].keys
        nobody_left = Hearer()
        engine.submit(ask("alone", range(1, 60), 3), nobody_left)
        engine.run(lambda: nobody_left.ended, nothing)
    assert [one.ended[0] for one in [*hearers, nobody_left]] == ["length", "failed", "length", "failed"]
    assert keys.shape[0] * keys.shape[2] <= 50
    assert (engine._cache.slots, engine._cache.length) == (0, 0)
    assert hearers[1].ended[1].startswith("the base station is short of memory: ")
    assert [hearers[0].ids, hearers[2].ids] == [alone([4, 5], 9, ()), alone([7] * 5, 9, ())]
    fails = Engine(Short(), NoDevices())  # where it is not survived, it ends all
    last = Hearer()
    fails.submit(ask("long", range(1, 60), 3), last)
    with pytest.raises(RuntimeError if words else MemoryError):
        fails.run(lambda: last.ended, nothing)


def test_any_other_failure_ends_all_and_is_raised():
    engine = Engine(Counting(), NoDevices())
    hearers = [Hearer(), Hearer()]
    for hearer in hearers:
        engine.submit(ask("r", [1], 9), hearer)
    calls = itertools.count()

    def leave():
        if next(calls) == 3:
            raise AbandonedError("gone")

    with pytest.raises(AbandonedError):
        engine.run(lambda: False, leave)
    assert [one.ended for one in hearers] == [("abandoned", "gone")] * 2
    assert hearers[0].heard == ["begun", "token", "token", "token", "end"]
    assert hearers[1].heard == ["begun", "end"]
    too_long = Hearer()
    engine.submit(ask("long", [1] * 60, 9), too_long)
    engine.run(lambda: too_long.ended, nothing)
    assert too_long.ended == (
        "failed",
        "the prompt has 60 tokens; expected 1 to 55 beside 9 new ones",
    )
    strange = Hearer()
    engine.submit(ask("strange", [1, 97], 9), strange)
    engine.run(lambda: strange.ended, nothing)
    assert strange.ended == ("failed", "the prompt has the token 97; the model knows 0 to 96")
    engine.close()
    late = Hearer()
    engine.submit(ask("late", [1]), late)
    assert late.ended == ("abandoned", "the engine is closed")


def test_a_sink_that_fails_disturbs_nobody_else(capsys):
    def fail(_):
        raise ValueError("too narrow")

    engine = Engine(Counting(), NoDevices(), max_batch=2)
    bad, good = Hearer(fail), Hearer()
    engine.submit(ask("bad", [1], 9), bad)
    engine.submit(ask("good", [2], 9), good)
    engine.run(lambda: good.ended, nothing)
    assert bad.ended[0] == "abandoned"
    assert len(bad.ids) == 1
    assert good.ids == alone([2], 9, ())
    assert "request bad: its sink failed: ValueError: too narrow" in capsys.readouterr().err


def test_an_idle_engine_wakes_for_a_request_from_another_thread(monkeypatch):
    monkeypatch.setattr("payloads.wdmoe.bs.engine._KEPT_TOKENS", 1)  # and has given its cache back meanwhile
    monkeypatch.setattr("payloads.wdmoe.bs.engine._IDLE_POLL_S", 60)  # it would not look by itself
    engine, done = Engine(Counting(), NoDevices()), threading.Event()
    thread = threading.Thread(target=engine.run, args=(done.is_set, nothing))
    thread.start()
    try:
        for number in range(3):
            ended = threading.Event()
            hearer = Hearer()
            hearer.end = lambda *_, ended=ended: ended.set()
            engine.submit(ask(str(number), [number + 1], 3), hearer)
            assert ended.wait(20)
            assert hearer.ids == alone([number + 1], 3, ())
    finally:
        done.set()
        engine.submit(ask("last", [1], 1), Hearer())
        thread.join()
