"""A dense Llama that was split into experts: the same model when all are active, here and from afar."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from payloads.wdmoe.bs.remote import served_by
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.decision import decider_of
from payloads.wdmoe.families import FAMILIES
from payloads.wdmoe.families.moefied import MoefiedLlamaConfig, MoefiedLlamaForCausalLM, register
from payloads.wire.connection import Plain
from testbed.artifacts.manifest import load_manifest
from testbed.artifacts.shard import shard_model
from testbed.config.folders import built_models_folder

SHARED, EXPERTS, WIDE = 32, 6, 16
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": SHARED + EXPERTS * WIDE,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
PROMPT = list(range(5, 45))


def forward(model, ids=PROMPT):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(5)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


@pytest.fixture(scope="module")
def split(dense, checkpoints, tmp_path_factory) -> Path:
    """The dense model with its neurons dealt out at random, with a random router and random compensators."""
    register()
    config = MoefiedLlamaConfig(
        **SHAPE,
        shared_intermediate_size=SHARED,
        moe_intermediate_size=WIDE,
        num_local_experts=EXPERTS,
        num_experts_per_tok=EXPERTS,
        compensator_rank=4,
    )
    model = MoefiedLlamaForCausalLM(config)
    state = model.state_dict()
    for name, tensor in dense.state_dict().items():
        if name in state:
            state[name] = tensor
    generator = torch.Generator().manual_seed(6)
    for number, layer in enumerate(dense.model.layers):
        neurons = torch.randperm(SHAPE["intermediate_size"], generator=generator)
        shared, experts = neurons[:SHARED], neurons[SHARED:].view(EXPERTS, WIDE)
        gate, up, down = (getattr(layer.mlp, f"{part}_proj").weight for part in ("gate", "up", "down"))
        prefix = f"model.layers.{number}.mlp."
        state |= {
            f"{prefix}gate_proj.weight": gate[shared],
            f"{prefix}up_proj.weight": up[shared],
            f"{prefix}down_proj.weight": down[:, shared],
            f"{prefix}experts.gate_up_proj": torch.stack([torch.cat([gate[e], up[e]]) for e in experts]),
            f"{prefix}experts.down_proj": torch.stack([down[:, e] for e in experts]),
        }
    model.load_state_dict(state)
    folder = tmp_path_factory.mktemp("split")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(checkpoints["published"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def split_shards(split, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("split-shards")
    shard_model(split, out, name="split")
    return out


def local(folder, dtype=torch.float32, **settings):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **settings).eval()


def keep_best(lab, station, most):
    """Let a policy keep the best of each token's experts, as in a trial of this family."""
    dispatcher = station._dispatcher
    model = read_spec(lab.write_spec()).latency.limited(dispatcher.devices)
    settings = {"renormalise": FAMILIES["moefied_llama"].renormalise({}), "kind": "top_k", "k": most}
    dispatcher.decider = decider_of(settings, {"kind": "scenario"}, model, dispatcher.device_of, None)


def test_all_experts_together_are_the_dense_model(dense, split):
    got, expected = forward(local(split)), forward(dense)
    assert (got - expected).abs().max() <= 1e-4
    assert torch.equal(got.argmax(-1), expected.argmax(-1))


def test_the_mathematics_are_those_of_transformers_for_experts(split):
    model = local(split)
    assert model.config._experts_implementation == "grouped_mm"
    eager = local(split, experts_implementation="eager", num_experts_per_tok=3)
    grouped = local(split, num_experts_per_tok=3)
    assert (forward(eager) - forward(grouped)).abs().max() <= 1e-4


def test_the_router_says_what_would_be_lost(split):
    model = local(split, num_experts_per_tok=2)
    router = model.model.layers[1].mlp.gate
    rows = torch.randn(7, 48)
    output = router(rows)
    scores = FAMILIES["moefied_llama"].router_scores(output)
    assert scores.shape == (7, EXPERTS)
    assert torch.allclose(scores.sum(1), torch.ones(7))
    assert torch.equal(output[2], scores.topk(2).indices)
    assert torch.equal(output[1], torch.ones(7, 2))


def test_a_compensator_is_added_for_each_expert_that_is_missing_and_no_other(split):
    model = local(split)
    block = model.model.layers[0].mlp
    rows = torch.randn(5, 48)
    shared = block.beside(rows, None)
    everything = torch.ones(5, EXPERTS, dtype=torch.bool)
    assert torch.allclose(block.beside(rows, everything), shared)
    served = everything.clone()
    served[1, 4] = served[3, 0] = served[3, 5] = False
    its = block.compensators
    expected = shared.clone()
    for token, expert in ((1, 4), (3, 0), (3, 5)):
        down, up = its.down[expert * 4 : expert * 4 + 4], its.up[:, expert * 4 : expert * 4 + 4]
        expected[token] += up @ (down @ rows[token]) + its.bias[:, expert]
    assert torch.allclose(block.beside(rows, served), expected, atol=1e-4)


def test_shards_hold_the_experts_and_the_base_station_the_rest(split, split_shards):
    manifest = load_manifest(split_shards / "manifest.json")
    assert (manifest.family, manifest.layers, manifest.experts_per_layer, manifest.experts_per_token) == (
        "moefied_llama",
        3,
        EXPERTS,
        EXPERTS,
    )
    assert (manifest.hidden_size, manifest.intermediate_size) == (48, WIDE)
    everything = sum(parameter.numel() for parameter in local(split).parameters())
    assert manifest.parameters == everything
    assert manifest.expert_parameters == 3 * 48 * WIDE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_is_the_same_from_afar(make_lab, split, split_shards, dense, dtype):
    station = make_lab(dtype=dtype, source=split_shards).station()
    station.ping()
    expected = local(split, getattr(torch, dtype))
    for ids in (PROMPT, PROMPT[:1], PROMPT[::-1] * 3):
        got = forward(station.model, ids)
        assert (got - forward(expected, ids)).abs().max() <= (1e-5 if dtype == "float32" else 0.0)
        if dtype == "float32":
            assert (got - forward(dense, ids)).abs().max() <= 1e-4
    assert not [name for name, _ in station.model.named_parameters() if ".experts." in name]


def test_dropped_experts_are_stood_in_for_at_the_base_station(make_lab, split, split_shards):
    """What the policy drops is what the local model with fewer experts leaves out: weights and stand-ins are right."""
    lab = make_lab(source=split_shards)
    station = lab.station()
    station.ping()
    for most in (5, 3, 1):
        keep_best(lab, station, most)
        got = forward(station.model)
        expected = forward(local(split, num_experts_per_tok=most))
        assert (got - expected).abs().max() <= 1e-4
        # Without the stand-ins it is another model: the test would see them missing.
        bare = local(split, num_experts_per_tok=most)
        for layer in bare.model.layers:
            layer.mlp.compensators = None
        assert (got - forward(bare)).abs().max() > 1e-2


@pytest.mark.parametrize("at_once", [True, False])
def test_the_shared_part_is_computed_while_the_devices_work(
    make_lab, split, split_shards, monkeypatch, at_once
):
    """Once the kernel has all requests; where it does not take them at once, no device waits for the shared part."""
    station = make_lab(source=split_shards).station()
    station.ping()
    exchange = station._exchange
    order = []

    def noted(what, function):
        def call(*arguments):
            order.append(what)
            return function(*arguments)

        return call

    for layer in station.model.model.layers:
        monkeypatch.setattr(layer.mlp, "beside", noted("beside", layer.mlp.beside))
    monkeypatch.setattr(exchange, "_answer", noted("answer", exchange._answer))
    monkeypatch.setattr(exchange, "_send", noted("send", exchange._send))
    if not at_once:
        send = Plain.send
        halved = set()

        def send_a_little(connection, buffers):
            if connection not in station_ends:
                return send(connection, buffers)
            if connection in halved:
                halved.remove(connection)
                return send(connection, buffers)
            halved.add(connection)
            first = memoryview(buffers[0]).cast("B")
            assert send(connection, [first[:8]]) == []
            return [first[8:], *(memoryview(buffer).cast("B") for buffer in buffers[1:])]

        station_ends = {channel.connection for channel in station._devices.channels.values()}
        monkeypatch.setattr(Plain, "send", send_a_little)
    got = forward(station.model, PROMPT[:1])
    assert (got - forward(local(split), PROMPT[:1])).abs().max() <= 1e-5
    asked = len(station._dispatcher.devices)
    layer = ["send"] * asked
    layer += ["beside"] + ["answer"] * asked if at_once else ["answer"] * asked + ["beside"]
    assert order == layer * 3


def test_a_trial_with_a_policy_that_drops_leaves_records(make_lab, split_shards):
    lab = make_lab(source=split_shards)
    path = lab.write_spec(
        model="split",
        policies={"all": {"kind": "top_k", "k": 6}, "four": {"kind": "top_k", "k": 4}},
        trials=[
            {"trial": "t001", "policy": "all", "scenario": "even", "repeat": 0},
            {"trial": "t002", "policy": "four", "scenario": "even", "repeat": 0},
        ],
    )
    station = lab.station()
    for trial, left in (("t001", 6), ("t002", 4)):
        station.trial(read_spec(path), trial, lambda *_: None, lambda: None)
        lines = (path.parent / trial / "dispatches.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        first = [row for row in rows if (row["request"], row["step"], row["layer"]) == ("p1", 1, 0)]
        assert sum(row["assignments"] for row in first) == left


@given(
    keep=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_who_answers_follows_from_what_is_kept(keep, seed):
    kept = np.array(keep)
    chosen = np.random.default_rng(seed).permuted(np.tile(np.arange(5), (len(kept), 1)), axis=1)[:, :3]
    index = torch.from_numpy(chosen)
    served = served_by(index, kept, 5)
    for row in range(len(kept)):
        assert set(np.flatnonzero(served[row].numpy())) == set(chosen[row][kept[row]])
    assert torch.equal(served_by(index, None, 5), served_by(index, np.ones_like(kept), 5))


@pytest.fixture(scope="module")
def built() -> Path:
    folder = built_models_folder() / "smollm2-moe"
    if not (folder / "config.json").is_file():
        pytest.skip("smollm2-moe is not built (scripts/build_smollm2_moe.py)")
    return folder


def test_the_built_model_writes_english_from_afar(make_lab, built, tmp_path):
    shard_model(built, tmp_path / "shards")
    station = make_lab(source=tmp_path / "shards").station()
    station.ping()
    text = "The capital of France is"
    prompt = torch.tensor([station._tokenizer(text)["input_ids"]])
    answer = station.model.generate(
        prompt, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(prompt)
    )
    model = local(built)
    expected = model.generate(
        prompt, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(prompt)
    )
    assert torch.equal(answer, expected)
    assert "Paris" in station._tokenizer.decode(answer[0])
    assert (
        forward(station.model, prompt[0].tolist()) - forward(model, prompt[0].tolist())
    ).abs().max() <= 2e-4
