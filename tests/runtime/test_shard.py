"""Splitting a checkpoint: nothing lost, nothing twice, the same each time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from payloads.tensors import TensorFile, TensorFileError
from payloads.wdmoe.bs.model_folder import StationError, lay_out_model
from payloads.wdmoe.bs.remote import Dispatcher
from payloads.wdmoe.bs.remote_model import load_model
from payloads.wdmoe.families import FAMILIES
from payloads.wire.client import Exchange
from testbed.artifacts.manifest import load_manifest
from testbed.artifacts.shard import shard_model
from testbed.errors import InputError


def test_both_layouts_give_the_same_experts(shards):
    one, two = (load_manifest(shards[layout] / "manifest.json") for layout in ("published", "fused"))
    assert one.experts == two.experts
    assert one.base_parameters == two.base_parameters
    assert len(one.experts) == len({entry.object for entry in one.experts}) == 24


def test_objects_hold_the_checkpoints_tensors_under_their_digests(shards, checkpoints):
    manifest = load_manifest(shards["published"] / "manifest.json")
    source = load_file(checkpoints["published"] / "model.safetensors")
    fused = load_file(checkpoints["fused"] / "model.safetensors")
    for entry in manifest.experts:
        path = shards["published"] / "objects" / entry.object
        assert path.stat().st_size == entry.bytes
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.object
        held = load_file(path)  # the real package reads what ours wrote
        prefix = f"model.layers.{entry.layer}.block_sparse_moe.experts.{entry.expert}."
        gate_up = torch.cat([source[f"{prefix}w1.weight"], source[f"{prefix}w3.weight"]])
        assert torch.equal(held["gate_up_proj"], gate_up)
        assert torch.equal(held["down_proj"], source[f"{prefix}w2.weight"])
        assert torch.equal(
            fused[f"model.layers.{entry.layer}.mlp.experts.gate_up_proj"][entry.expert], gate_up
        )
    names = {entry.name: entry for entry in manifest.base_station}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(names)
    base = load_file(shards["published"] / "objects" / names["model.safetensors"].object)
    assert set(base) == {name for name in source if ".experts." not in name}
    assert all(torch.equal(base[name], source[name]) for name in base)
    assert manifest.base_parameters == sum(tensor.numel() for tensor in base.values())
    everything = sum(tensor.numel() for tensor in source.values())
    assert manifest.parameters == everything
    assert manifest.dtype == "float16"


def test_a_second_run_writes_nothing_and_repairs_what_is_damaged(checkpoints, tmp_path):
    first = shard_model(checkpoints["published"], tmp_path)
    assert first.kept == 0
    text = first.path.read_bytes()
    second = shard_model(checkpoints["published"], tmp_path)
    assert (second.written, second.kept) == (0, first.written)
    assert second.path.read_bytes() == text
    assert hashlib.sha256(text).hexdigest() == second.manifest.digest()
    victim = tmp_path / "objects" / first.manifest.experts[5].object
    victim.write_bytes(b"x" * victim.stat().st_size)
    assert shard_model(checkpoints["published"], tmp_path).written == 1
    assert hashlib.sha256(victim.read_bytes()).hexdigest() == victim.name
    assert not list(tmp_path.rglob("*.part"))


def test_several_at_once_in_one_folder_write_each_object_once(checkpoints, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        split = [pool.submit(shard_model, checkpoints["published"], tmp_path) for _ in range(4)]
    done = [future.result() for future in split]
    assert sorted(each.written for each in done)[:3] == [0, 0, 0]
    assert len({each.manifest.digest() for each in done}) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_a_checkpoint_in_several_files(checkpoints, tmp_path, shards):
    tensors = load_file(checkpoints["published"] / "model.safetensors")
    model = tmp_path / "model"
    shutil.copytree(checkpoints["published"], model)
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, model / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    done = shard_model(model, tmp_path / "out", name="small")
    assert done.manifest == load_manifest(shards["published"] / "manifest.json")
    (model / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors is missing"):
        shard_model(model, tmp_path / "out")


def broken(checkpoints, tmp_path, change):
    model = tmp_path / "model"
    shutil.copytree(checkpoints["published"], model)
    change(model)
    return model


def change_config(**values):
    def change(model):
        config = json.loads((model / "config.json").read_text())
        for key, value in values.items():
            if value is None:
                del config[key]
            else:
                config[key] = value
        (model / "config.json").write_text(json.dumps(config))

    return change


def change_tensors(edit):
    def change(model):
        tensors = load_file(model / "model.safetensors")
        edit(tensors)
        save_file(tensors, model / "model.safetensors")

    return change


PREFIX = "model.layers.1.block_sparse_moe.experts.3."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: shutil.rmtree(m), "no model at .*config.json"),
        (lambda m: (m / "config.json").write_text("{"), "is not JSON"),
        (change_config(model_type="gpt2"), "family 'gpt2' is not known; known: deepseek_v2"),
        (change_config(quantization_config={"quant_method": "fp8"}), r"its weights are quantised \(fp8\)"),
        (change_config(num_local_experts=None), "num_local_experts is missing"),
        (lambda m: (m / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda m: (m / "model.safetensors").write_bytes(b"abc"), "not a safetensors file"),
        (change_tensors(lambda t: t.pop(f"{PREFIX}w2.weight")), "layer 1, expert 3: down is missing"),
        (
            change_config(intermediate_size=81),
            r"layer 0, expert 0: gate has shape \(80, 48\), expected \(81, 48\)",
        ),
        (
            change_tensors(
                lambda t: t.update({f"{PREFIX}w2.weight": t[f"{PREFIX}w2.weight"].to(torch.int8)})
            ),
            "experts of type F16, I8",
        ),
        (change_config(num_local_experts=7), "layer 0: expert 7, where config.json says there are 7"),
        (
            change_tensors(
                lambda t: t.update({f"{PREFIX}w2.weight".replace("block_sparse_moe", "mlp"): torch.ones(3)})
            ),
            "layer 1: model.layers.1.mlp.experts.3.w2.weight is there under another name too",
        ),
        (
            change_tensors(lambda t: t.update({"model.layers.2.mlp.experts.down_proj": torch.ones(3)})),
            "layer 2: experts one by one, and all of them in one tensor",
        ),
    ],
)
def test_what_is_wrong_with_a_model_is_said(checkpoints, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        shard_model(broken(checkpoints, tmp_path, change), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_base_station_does_without_none_of_its_tensors(checkpoints, tmp_path):
    lacking = "model.layers.1.self_attn.o_proj.weight"
    model = broken(checkpoints, tmp_path, change_tensors(lambda t: t.pop(lacking)))
    made = shard_model(model, tmp_path / "out")
    folder = lay_out_model(made.path)
    with (
        contextlib.closing(Exchange()) as exchange,
        pytest.raises(StationError, match=f"lacks 1 .*{lacking}"),
    ):
        load_model(folder.path, FAMILIES["mixtral"], "float32", Dispatcher(exchange))


@pytest.mark.parametrize(
    ("place", "name"),
    [("small", "small"), ("hub/models--someone--small-8x7B/snapshots/0123abcd", "small-8x7B")],
)
def test_a_model_has_the_name_that_people_know(checkpoints, tmp_path, place, name):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).symlink_to(checkpoints["published"])
    assert shard_model(tmp_path / place, tmp_path / "out").manifest.model == name


def test_a_damaged_manifest_is_said(shards, tmp_path):
    good = json.loads((shards["published"] / "manifest.json").read_text())
    path = tmp_path / "manifest.json"
    for text, message in [
        ("", "is not JSON"),
        ("[]", "format 2"),
        (json.dumps({**good, "format": 1}), "format 2"),
        (json.dumps({**good, "extra": 2}), "damaged"),
        (json.dumps({**good, "experts": good["experts"][1:]}), "does not list every expert"),
        (json.dumps({**good, "layers": "3"}), "damaged"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_manifest(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_manifest(tmp_path / "none.json")


def test_the_small_reader_agrees_with_the_package_and_refuses_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "c": torch.tensor([[1], [2]], dtype=torch.int64),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    with TensorFile(path) as file:
        for name, tensor in tensors.items():
            assert torch.equal(file.tensor(name), tensor)
        assert file.tensor("a", torch.bfloat16).dtype == torch.bfloat16
        assert file.tensor("c").shape == (2, 1)
        with pytest.raises(TensorFileError, match="does not hold d"):
            file.tensor("d")
    whole = path.read_bytes()
    for damaged, message in [
        (b"", "empty"),
        (whole[:-3], "reaches behind the end"),
        (whole[:20], "its end is missing"),
        (b"\xff" * 8 + whole[8:], "not a safetensors file"),
        (whole[:8] + b"[" + whole[9:], "damaged"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "damaged"),
        (whole.replace(b'"F32"', b'"F99"'), "damaged"),
        (whole.replace(b"[2,3]", b"[2,4]"), "damaged"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(TensorFileError, match=message):
            TensorFile(path)
