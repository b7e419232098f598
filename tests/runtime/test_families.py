"""Every family: a small random model in its published layout gives the same logits when its experts are elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from payloads.tensors import TensorFile
from payloads.wdmoe.bs.model_folder import ModelFolder, lay_out_model
from payloads.wdmoe.bs.station import Station
from payloads.wdmoe.decision import decider_of
from payloads.wdmoe.families import FAMILIES, Family, family_of
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from testbed.artifacts.manifest import Manifest, load_manifest
from testbed.artifacts.shard import shard_model
from testbed.simulate.recorder import Asked, _Recorder

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    # A plain initialisation hardly tells experts apart.
    "initializer_range": 0.3,
}
QWEN = {"intermediate_size": 40, "moe_intermediate_size": 24, "num_experts": 7, "num_experts_per_tok": 3}
DEEPSEEK = {
    "intermediate_size": 40,
    "moe_intermediate_size": 24,
    "n_routed_experts": 7,
    "num_experts_per_tok": 3,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
#: Family and settings of each model; three devices hold the 7 experts of a layer.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {"intermediate_size": 24, "num_local_experts": 7}),
    "olmoe": ("olmoe", {"intermediate_size": 24, "num_experts": 7, "num_experts_per_tok": 3}),
    "qwen2_moe": ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 48, "mlp_only_layers": [1]}),
    "qwen3_moe": ("qwen3_moe", {**QWEN, "norm_topk_prob": True, "head_dim": 8}),
    "deepseek_v2": ("deepseek_v2", {**DEEPSEEK, "n_shared_experts": 2}),
    "deepseek_v3": ("deepseek_v3", {**DEEPSEEK, "n_group": 1, "topk_group": 1}),
    "granitemoe": (
        "granitemoe",
        {
            "intermediate_size": 24,
            "num_local_experts": 7,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
        },
    ),
    "phimoe": (
        "phimoe",
        {"intermediate_size": 24, "num_local_experts": 7, "attention_bias": True, "lm_head_bias": True},
    ),
    # More than 64 experts, every second layer dense.
    "many": (
        "qwen3_moe",
        {**QWEN, "num_experts": 72, "num_experts_per_tok": 8, "decoder_sparse_step": 2, "head_dim": 8},
    ),
    # Routers that choose by groups.
    "groups_v2": (
        "deepseek_v2",
        {
            **DEEPSEEK,
            "n_routed_experts": 8,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
        },
    ),
    "groups_v3": ("deepseek_v3", {**DEEPSEEK, "n_routed_experts": 8, "n_group": 4, "topk_group": 2}),
}
PROMPT = list(range(5, 28))


@pytest.fixture(scope="session")
def models(checkpoints, tmp_path_factory):
    """A function that saves a model in a layout, shards it, and returns both folders; each is made once."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(name: str, layout: str) -> tuple[Path, Path]:
        if (name, layout) not in made:
            folder, shards = (
                tmp_path_factory.mktemp(f"{name}-{layout}-{kind}") for kind in ("model", "shards")
            )
            kind, settings = MODELS[name]
            torch.manual_seed(5)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **settings}))
            for parameter_name, value in [*model.named_parameters(), *model.named_buffers()]:
                if parameter_name.endswith(("e_score_correction_bias", "lm_head.bias")):
                    torch.nn.init.normal_(value, std=0.1)
            model.save_pretrained(folder, save_original_format=layout == "published")
            if kind == "deepseek_v3":
                add_draft_layer(folder / "model.safetensors")
            for file in checkpoints["published"].glob("tokenizer*"):
                shutil.copy(file, folder)
            shard_model(folder, shards, name=name)
            made[name, layout] = folder, shards
        return made[name, layout]

    return make


def add_draft_layer(path: Path) -> None:
    """Add what DeepSeek V3 publishes behind its last layer, for drafts: the model itself has no use for it."""
    tensors = load_file(path)
    extra = {
        "model.layers.3.embed_tokens.weight": torch.ones(320, 32),
        "model.layers.3.mlp.experts.0.up_proj.weight": torch.ones(24, 32),
    }
    save_file({**tensors, **extra}, path, metadata={"format": "pt"})


def local_model(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config._experts_implementation == "grouped_mm"
    return model


@torch.inference_mode()
def answers(model: Any) -> list[torch.Tensor]:
    """What a model says to a prompt, to one token, and to a batch of two with masks of its own and a second step."""
    one = model(input_ids=torch.tensor([PROMPT])).logits
    single = model(input_ids=torch.tensor([PROMPT[:1]])).logits
    # Two requests of different lengths: the shorter one's first five places are empty.
    ids = torch.tensor([PROMPT[:12], [0] * 5 + PROMPT[12:19]])
    places = torch.tensor([list(range(12)), [0] * 5 + list(range(7))])
    seen = torch.ones(12, 12, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    seen[1, :, 5:, :5] = False
    lowest = torch.finfo(torch.float32).min
    mask = torch.zeros(seen.shape).masked_fill(~seen, lowest)
    first = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True)
    seen = torch.ones(2, 1, 1, 13, dtype=torch.bool)
    seen[1, :, :, :5] = False
    second = model(
        input_ids=torch.tensor([[40], [41]]),
        attention_mask=torch.zeros(seen.shape).masked_fill(~seen, lowest),
        position_ids=torch.tensor([[12], [7]]),
        past_key_values=first.past_key_values,
    )
    assert model(input_ids=torch.tensor([PROMPT[12:19]])).logits.allclose(first.logits[1:, 5:], atol=1e-4)
    return [one, single, first.logits, second.logits]


def replicated(manifest: Manifest) -> dict[int, dict[int, tuple[str, ...]]]:
    """Two of three experts on two devices."""
    names = ("big", "middle", "small")
    return {
        layer: {
            expert: (names[expert % 3], names[(expert + 1) % 3])[: 1 + (expert % 3 < 2)]
            for expert in range(manifest.experts_per_layer)
        }
        for layer in range(manifest.layers)
    }


def base_only(shards: Path, folder: Path) -> ModelFolder:
    """A base station's model from a folder in which there is no expert at all."""
    manifest = load_manifest(shards / "manifest.json")
    (folder / "objects").mkdir(parents=True)
    shutil.copy(shards / "manifest.json", folder)
    for entry in manifest.base_station:
        shutil.copy(shards / "objects" / entry.object, folder / "objects")
    assert not {entry.object for entry in manifest.experts} & {e.name for e in (folder / "objects").iterdir()}
    return lay_out_model(folder / "manifest.json")


def expert_parameters(model: Any, family: Family) -> int:
    """The parameters of a local model's experts, by its classes."""
    experts = (module for module in model.modules() if type(module).__name__ == family.experts_class)
    return sum(parameter.numel() for module in experts for parameter in module.parameters())


def speeds_of(station: Station) -> LatencyModel:
    """A latency model of a station's devices; a policy needs one."""
    devices = station._dispatcher.devices
    return LatencyModel(devices, ExpertShape(32, 24, 4), (DeviceSpeed(1e9, None, 0.0),) * len(devices))


LAYOUTS = [(name, "published") for name in MODELS]
LAYOUTS += [(name, "fused") for name in ("qwen2_moe", "deepseek_v3", "granitemoe")]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=lambda value: value)
def test_logits_equal_the_local_model(make_lab, models, tmp_path, monkeypatch, name, layout):
    folder, shards = models(name, layout)
    family = FAMILIES[MODELS[name][0]]
    with TensorFile(folder / "model.safetensors") as file:
        parts = {key.part for text in file.tensors if (key := family.expert_key(text)) and key.expert is None}
    assert bool(parts) == (layout == "fused" or family.name == "granitemoe")

    lab = make_lab(source=shards, place=replicated)
    station = lab.station(base_only(shards, tmp_path / "base"))
    station.ping()
    local = local_model(folder)
    expected = answers(local)
    beside: dict[int, bool] = {}
    layer = station._dispatcher.layer

    def watched(number: int, *given: Any) -> torch.Tensor:
        beside[number] = given[4] is not None
        return layer(number, *given)

    monkeypatch.setattr(station._dispatcher, "layer", watched)
    shape = family.shape(json.loads((folder / "config.json").read_text()))
    for placed in ("replicated", "once"):
        if placed == "once":
            # The same workers; now each expert is asked of one of them only.
            placement = json.loads((lab.home / "placement.json").read_text())
            one_each = {n: {e: names[:1] for e, names in row.items()} for n, row in placement.items()}
            (lab.home / "placement.json").write_text(json.dumps(one_each))
            lab.write_devices()
            station.ping()
        for got, wanted in zip(answers(station.model), expected, strict=True):
            assert (got - wanted).abs().max() <= 1e-5
    # Shared experts run beside the devices, in every layer that has some; layers are numbered without the dense ones.
    assert beside == dict.fromkeys(range(shape.layers), family.shared is not None)
    # No parameter of an expert was created.
    base, everything = (sum(p.numel() for p in model.parameters()) for model in (station.model, local))
    assert everything - base == expert_parameters(local, family) > 0


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3", "phimoe"])
def test_in_bfloat16_logits_have_the_same_bits(make_lab, models, name):
    """Where routers' weights are float32 (DeepSeek) and where they are not."""
    folder, shards = models(name, "published")
    station = make_lab(source=shards, dtype="bfloat16").station()
    station.ping()
    local = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        got, wanted = (model(input_ids=torch.tensor([PROMPT])).logits for model in (station.model, local))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe", "many", "deepseek_v2", "granitemoe"])
def test_one_expert_fewer_equals_a_local_model_whose_router_picks_one_fewer(make_lab, models, name):
    folder, shards = models(name, "published")
    lab = make_lab(source=shards)
    station = lab.station()
    station.ping()
    config = json.loads((folder / "config.json").read_text())
    family = family_of(config)
    fewer = config["num_experts_per_tok"] - 1
    latency = speeds_of(station)
    selection = {"kind": "top_k", "k": fewer, "renormalise": family.renormalise(config)}
    station._dispatcher.decider = decider_of(
        selection, {"kind": "scenario"}, latency, station._dispatcher.device_of, None
    )
    local = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, num_experts_per_tok=fewer)
    for got, wanted in zip(answers(station.model), answers(local.eval()), strict=True):
        assert (got - wanted).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2_moe"])
def test_routing_is_recorded_by_the_order_of_layers_with_experts(make_lab, models, name):
    folder, shards = models(name, "published")
    family = FAMILIES[name]
    trace = _Recorder(folder, family, "float32").record("one", Asked("It is a truth", (40, 41)), 2)
    shape = family.shape(json.loads((folder / "config.json").read_text()))
    tokens = trace.prompt_tokens + 1
    assert shape.layers == 2
    assert trace.index.shape == (2, tokens, shape.experts_per_token)
    assert trace.scores.shape == (2, tokens, shape.experts)
    # The base station overhears the same.
    station = make_lab(source=shards).station()
    station.ping()
    station._dispatcher.decider = decider_of(
        {"kind": "top_k", "k": 3},
        {"kind": "scenario"},
        speeds_of(station),
        station._dispatcher.device_of,
        None,
    )
    station._dispatcher.decided = []
    ids = station._tokenizer("It is a truth")["input_ids"] + [40]
    with torch.inference_mode():
        station.model(input_ids=torch.tensor([ids]))
    assert [one.layer for one in station._dispatcher.decided] == [0, 1]
    for one in station._dispatcher.decided:
        assert np.array_equal(one.routing.index, trace.index[one.layer])
        assert np.allclose(one.routing.scores, trace.scores[one.layer], atol=1e-6)


def test_int8_experts_equal_a_local_model_with_their_weights(make_lab, models, tmp_path):
    folder, _ = models("qwen2_moe", "published")
    shard_model(folder, tmp_path / "int8", experts="int8")
    lab = make_lab(source=tmp_path / "int8")
    station = lab.station()
    station.ping()
    assert {held["weights"] for held in station._devices.descriptions.values()} == {"int8"}
    local = local_model(folder)
    exact = answers(local)
    layers = [m for m in local.modules() if type(m).__name__ == FAMILIES["qwen2_moe"].experts_class]
    for entry in load_manifest(tmp_path / "int8" / "manifest.json").experts:
        with TensorFile(tmp_path / "int8" / "objects" / entry.object) as file:
            for part in ("gate_up", "down"):
                whole, scale = file.tensor(f"{part}_proj"), file.tensor(f"{part}_scale")
                assert whole.dtype == torch.int8
                getattr(layers[entry.layer], f"{part}_proj").data[entry.expert] = whole * scale[:, None]
    for got, wanted, before in zip(answers(station.model), answers(local), exact, strict=True):
        assert (got - wanted).abs().max() <= 1e-5
        assert (got - before).abs().max() > 1e-3
