"""What the families say of published checkpoints: numbers, layers, keys, scores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.wdmoe import families
from payloads.wdmoe.families import FAMILIES, ConfigError, ExpertKey, family_of

#: Numbers of published models: layers with experts of all layers, experts of a layer, and billions of weights in them.
PUBLISHED = [
    (
        {
            "model_type": "mixtral",
            "num_hidden_layers": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "vocab_size": 32000,
        },
        range(32),
        45.1,
        "sum",
    ),
    (
        {
            "model_type": "olmoe",
            "num_hidden_layers": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "vocab_size": 50304,
            "norm_topk_prob": False,
        },
        range(16),
        6.4,
        "none",
    ),
    (
        {
            "model_type": "qwen2_moe",
            "num_hidden_layers": 24,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "moe_intermediate_size": 1408,
            "vocab_size": 151936,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
        },
        range(24),
        12.5,
        "none",
    ),
    (
        {
            "model_type": "qwen3_moe",
            "num_hidden_layers": 48,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "vocab_size": 151936,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        range(48),
        29.0,
        "sum",
    ),
    (
        {
            "model_type": "deepseek_v2",
            "num_hidden_layers": 27,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "vocab_size": 102400,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "norm_topk_prob": False,
        },
        range(1, 27),
        14.4,
        "none",
    ),
    (
        {
            "model_type": "deepseek_v3",
            "num_hidden_layers": 61,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "vocab_size": 129280,
            "first_k_dense_replace": 3,
            "moe_layer_freq": 1,
            "norm_topk_prob": True,
        },
        range(3, 61),
        653.9,
        "sum",
    ),
    (
        {
            "model_type": "granitemoe",
            "num_hidden_layers": 24,
            "num_local_experts": 32,
            "num_experts_per_tok": 8,
            "hidden_size": 1024,
            "intermediate_size": 512,
            "vocab_size": 49155,
        },
        range(24),
        1.2,
        "sum",
    ),
    (
        {
            "model_type": "phimoe",
            "num_hidden_layers": 32,
            "num_local_experts": 16,
            "num_experts_per_tok": 2,
            "hidden_size": 4096,
            "intermediate_size": 6400,
            "vocab_size": 32064,
        },
        range(32),
        40.3,
        "none",
    ),
]


@pytest.mark.parametrize(
    ("config", "layers", "billions", "renormalise"),
    PUBLISHED,
    ids=[config["model_type"] for config, *_ in PUBLISHED],
)
def test_published_configurations_are_read(config, layers, billions, renormalise):
    family = family_of(config)
    shape = family.shape(config)
    assert shape.moe_layers == tuple(layers)
    assert (shape.depth, shape.layers) == (config["num_hidden_layers"], len(layers))
    count = shape.layers * shape.experts * 3 * shape.hidden_size * shape.intermediate_size
    assert count / 1e9 == pytest.approx(billions, abs=0.05)
    assert shape.activation == "silu"
    assert family.renormalise(config) == renormalise
    for key in ("num_experts_per_tok", "hidden_size", "num_hidden_layers"):
        without = {name: value for name, value in config.items() if name != key}
        with pytest.raises(ConfigError, match=f"{key} is missing"):
            family.shape(without)
        for wrong in (0, -1, 2.0, "2", True):
            with pytest.raises(ConfigError, match=f"{key}: expected a whole number above 0"):
                family.shape({**config, key: wrong})


def test_which_layers_have_experts_follows_the_configuration():
    config = {"num_hidden_layers": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    assert FAMILIES["qwen3_moe"].moe_layers(config) == (1, 5, 7)
    assert FAMILIES["qwen2_moe"].moe_layers({"num_hidden_layers": 3}) == (0, 1, 2)
    assert FAMILIES["deepseek_v3"].moe_layers({"num_hidden_layers": 5}) == (3, 4)
    assert FAMILIES["deepseek_v2"].moe_layers({"num_hidden_layers": 3, "first_k_dense_replace": 0}) == (
        0,
        1,
        2,
    )
    with pytest.raises(ConfigError, match="moe_layer_freq: expected 1, got 2"):
        FAMILIES["deepseek_v2"].moe_layers({"num_hidden_layers": 3, "moe_layer_freq": 2})
    with pytest.raises(ConfigError, match="first_k_dense_replace: expected a whole number, got '1'"):
        FAMILIES["deepseek_v2"].moe_layers({"num_hidden_layers": 3, "first_k_dense_replace": "1"})
    with pytest.raises(ConfigError, match="no layer has experts"):
        FAMILIES["deepseek_v3"].shape({**PUBLISHED[5][0], "first_k_dense_replace": 61})


KEYS = [
    ("mixtral", "model.layers.3.block_sparse_moe.experts.12.w1.weight", (3, 12, "gate")),
    ("mixtral", "model.layers.3.block_sparse_moe.experts.12.w3.weight", (3, 12, "up")),
    ("mixtral", "model.layers.3.mlp.experts.down_proj", (3, None, "down")),
    ("phimoe", "model.layers.3.block_sparse_moe.experts.12.w2.weight", (3, 12, "down")),
    ("olmoe", "model.layers.0.mlp.experts.63.gate_proj.weight", (0, 63, "gate")),
    ("qwen3_moe", "model.layers.47.mlp.experts.127.up_proj.weight", (47, 127, "up")),
    ("qwen2_moe", "model.layers.1.mlp.shared_expert.up_proj.weight", None),
    ("qwen2_moe", "model.layers.1.mlp.shared_expert_gate.weight", None),
    ("deepseek_v2", "model.layers.1.mlp.shared_experts.down_proj.weight", None),
    ("deepseek_v2", "model.layers.0.mlp.down_proj.weight", None),
    ("deepseek_v3", "model.layers.60.mlp.experts.255.down_proj.weight", (60, 255, "down")),
    ("deepseek_v3", "model.layers.60.mlp.experts.gate_up_proj", (60, None, "gate_up")),
    ("deepseek_v3", "model.layers.60.mlp.experts.255.down_proj.weight_scale_inv", None),
    ("deepseek_v3", "model.layers.60.mlp.gate.e_score_correction_bias", None),
    ("granitemoe", "model.layers.2.block_sparse_moe.input_linear.weight", (2, None, "gate_up")),
    ("granitemoe", "model.layers.2.block_sparse_moe.output_linear.weight", (2, None, "down")),
    ("granitemoe", "model.layers.2.block_sparse_moe.experts.gate_up_proj", (2, None, "gate_up")),
    ("granitemoe", "model.layers.2.block_sparse_moe.router.layer.weight", None),
    ("moefied_llama", "model.layers.2.mlp.experts.gate_up_proj", (2, None, "gate_up")),
    ("moefied_llama", "model.layers.2.mlp.gate_proj.weight", None),
]


@pytest.mark.parametrize(
    ("name", "key", "said"), KEYS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_keys_say_layer_expert_and_part(name, key, said):
    assert FAMILIES[name].expert_key(key) == (None if said is None else ExpertKey(*said))


@settings(max_examples=50)
@given(st.sampled_from(sorted(FAMILIES)), st.text(max_size=60) | st.sampled_from([key for _, key, _ in KEYS]))
def test_any_key_is_read(name, key):
    said = FAMILIES[name].expert_key(key)
    if said is not None:
        assert f".layers.{said.layer}." in key
        assert said.expert is None or f".experts.{said.expert}." in key
        assert said.part in (("gate_up", "down") if said.expert is None else ("gate", "up", "down"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
KNOWN = sorted({key for config, *_ in PUBLISHED for key in config} | {"mlp_only_layers", "hidden_act"})


@settings(max_examples=80)
@given(st.sampled_from([config for config, *_ in PUBLISHED]), st.dictionaries(st.sampled_from(KNOWN), VALUES))
def test_any_configuration_is_read_or_refused(config, changes):
    family = FAMILIES[config["model_type"]]
    try:
        shape = family.shape({**config, **changes})
    except ConfigError:
        return
    assert 0 < shape.layers <= shape.depth
    assert all(0 <= layer < shape.depth for layer in shape.moe_layers)
    assert 0 < shape.experts_per_token <= shape.experts


def test_layers_behind_the_last_are_not_used():
    family, config = FAMILIES["deepseek_v3"], PUBLISHED[5][0]
    shape = family.shape(config)
    assert family.unused("model.layers.61.mlp.experts.3.up_proj.weight", shape)
    assert family.unused("model.layers.61.embed_tokens.weight", shape)
    assert not family.unused("model.layers.60.mlp.experts.3.up_proj.weight", shape)
    assert not family.unused("model.embed_tokens.weight", shape)


def test_a_family_is_a_file_of_its_name():
    folder = Path(families.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "moefied"}
    assert set(FAMILIES) == names
    assert all(family.name == name for name, family in FAMILIES.items())
    assert family_of({"model_type": "base"}) is None
    assert family_of({}) is None


def test_families_need_neither_torch_nor_transformers():
    code = "import sys, payloads.wdmoe.families; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_scores_of_sigmoids_are_in_proportion_to_the_weights():
    family = FAMILIES["deepseek_v3"]
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0]], dtype=torch.bfloat16)
    scores = family.router_scores((logits, None, None))
    assert scores.dtype == torch.float32
    assert scores.sum().item() == pytest.approx(1)
    assert (scores / scores[0, 0]).allclose(logits.float().sigmoid() / logits.float().sigmoid()[0, 0])
    assert family.renormalise({}) == "sum"
    assert family.renormalise({"norm_topk_prob": False}) == "none"
