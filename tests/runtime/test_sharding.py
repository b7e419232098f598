"""A split that is cut off at any moment goes on, one that is done reads nothing; little memory."""

from __future__ import annotations

import _thread
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from testbed.artifacts import making, recipes
from testbed.artifacts.manifest import load_manifest
from testbed.artifacts.shard import shard_model
from testbed.artifacts.shard_journal import Made, ShardJournal, read_journal
from testbed.artifacts.shard_progress import ShardProgress
from testbed.cli.main import app
from testbed.errors import InputError

#: Splits again and again into one folder, each time in a child that is killed after a random while.
KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from testbed.artifacts import making
from testbed.artifacts.shard import shard_model
model, out, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
making.CHUNK_BYTES = 1 << 16
draw = random.Random(seed)
began = time.monotonic()
pid = os.fork()
if not pid:
    shard_model(model, out.with_name("whole"), workers=2)
    os._exit(0)
os.waitpid(pid, 0)
usual_s = time.monotonic() - began
survived = 0
for _ in range(20):
    pid = os.fork()
    if not pid:
        try:
            shard_model(model, out, workers=2)
        finally:
            os._exit(0)
    time.sleep(draw.uniform(0, 0.6 * usual_s))
    os.kill(pid, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        survived += 1
        shutil.rmtree(out)  # or there would be nothing left to do for those that follow
print(survived)
"""


def names_in(out: Path) -> set[str]:
    return {path.name for path in (out / "objects").iterdir() if path.is_file()}


def named_by(out: Path) -> set[str]:
    return set(load_manifest(out / "manifest.json").objects())


def test_killed_at_random_moments_a_split_ends_with_the_same_digests(checkpoints, shards, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(checkpoints["published"]), str(out), "20"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20  # some were killed in the middle, or nothing was tested
    whole = shard_model(checkpoints["published"], out, name="small")
    assert whole.path.read_bytes() == (shards["published"] / "manifest.json").read_bytes()
    assert names_in(out) == named_by(out)
    assert not list(out.glob("*.part"))


class CutOffError(Exception):
    pass


def cut_off_after(bytes_done, how):
    """Return a progress callback that ends a split once so many bytes are done, and the first numbers it was told."""
    told: list[tuple[int, int]] = []

    def tell(done, whole):
        before = told[-1][0] if told else 0
        told.append((done, whole))
        if before < bytes_done <= done:
            how()

    return tell, told


def raise_cut_off():
    raise CutOffError


@pytest.mark.parametrize("how", [raise_cut_off, _thread.interrupt_main], ids=["error", "ctrl-c"])
def test_what_is_done_is_not_read_again(checkpoints, tmp_path, monkeypatch, how):
    monkeypatch.setattr(making, "CHUNK_BYTES", 1 << 12)
    tell, told = cut_off_after(400_000, how)
    with pytest.raises((CutOffError, KeyboardInterrupt)):
        shard_model(checkpoints["published"], tmp_path, workers=1, on_progress=tell)
    threads = [thread.name for thread in threading.enumerate()]
    assert not [name for name in threads if name.startswith("shard")]
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "manifest.json").exists()
    _, noted = read_journal(tmp_path / ".journal")
    assert {made.object for made in noted.values()} == names_in(tmp_path)
    again: list[tuple[int, int]] = []
    done = shard_model(checkpoints["published"], tmp_path, on_progress=lambda *now: again.append(now))
    kept_bytes = sum(made.bytes for made in noted.values())
    assert again[0] == (kept_bytes, told[0][1])
    assert kept_bytes > 0
    assert again[-1][0] == again[-1][1] == sum(done.manifest.objects().values())
    assert done.kept == len(names_in(tmp_path)) - done.written > 0


def test_memory_is_a_few_chunks_however_large_the_tensors(tmp_path, checkpoints, monkeypatch):
    """32 MiB of experts in tensors of 4 MiB, through buffers of 64 KiB."""
    monkeypatch.setattr(making, "CHUNK_BYTES", 1 << 16)
    model = tmp_path / "model"
    model.mkdir()
    config = json.loads((checkpoints["published"] / "config.json").read_text())
    config |= {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 1, "num_local_experts": 2}
    (model / "config.json").write_text(json.dumps(config))
    start = "model.layers.0.block_sparse_moe.experts."
    tensors = {
        f"{start}{expert}.{part}.weight": torch.randn(
            (512, 4096) if part == "w2" else (4096, 512), dtype=torch.bfloat16
        )
        for expert in range(2)
        for part in ("w1", "w2", "w3")
    }
    save_file(tensors, model / "model.safetensors")
    del tensors
    for experts in (None, "int8"):
        tracemalloc.start()
        try:
            shard_model(model, tmp_path / f"out-{experts}", workers=2, experts=experts)
            assert tracemalloc.get_traced_memory()[1] < 2 << 20
        finally:
            tracemalloc.stop()


def test_who_comes_while_another_splits_says_so_and_keeps_what_that_one_made(checkpoints, tmp_path):
    first = shard_model(checkpoints["published"], tmp_path)
    with (tmp_path / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = []

        def go_on():
            said.append("waits")
            fcntl.flock(lock, fcntl.LOCK_UN)

        second = shard_model(checkpoints["published"], tmp_path, on_wait=go_on)
    assert said == ["waits"]
    assert (second.written, second.kept) == (0, first.written)
    shard_model(checkpoints["published"], tmp_path, on_wait=lambda: said.append("for nobody"))
    assert said == ["waits"]


def test_a_model_that_changed_is_split_anew_and_it_is_said(checkpoints, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(checkpoints["published"], model)
    first = shard_model(model, out)
    assert (first.anew, first.kept) == ("", 0)
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.2.block_sparse_moe.experts.7.w2.weight"
    tensors[name] = tensors[name] + 1
    save_file(tensors, model / "model.safetensors")
    second = shard_model(model, out)
    assert "have changed" in second.anew
    assert second.kept == 0
    differing = [a for a, b in zip(first.manifest.experts, second.manifest.experts, strict=True) if a != b]
    assert [(entry.layer, entry.expert) for entry in differing] == [(2, 7)]
    assert names_in(out) == named_by(out)  # what only the other one had is gone
    with pytest.raises(CutOffError):
        shard_model(model, out, experts="int8", on_progress=cut_off_after(100_000, raise_cut_off)[0])
    assert named_by(out) < names_in(out)  # the folder is whole until the new one is
    third = shard_model(model, out, experts="int8")
    assert names_in(out) == named_by(out)
    assert third.kept > 0
    third = shard_model(model, out)
    assert "held otherwise" in third.anew


def test_a_model_that_changes_while_it_is_read_is_refused(checkpoints, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(checkpoints["published"], model)
    weights = model / "model.safetensors"
    with pytest.raises(InputError, match="changed while it was read"):
        shard_model(model, out, experts="int8", on_progress=lambda *_: os.utime(weights))
    assert names_in(out)
    assert not (out / "manifest.json").exists()
    whole = weights.read_bytes()
    with pytest.raises(InputError, match=r"became shorter|changed while"):
        shard_model(model, out, on_progress=lambda *_: weights.write_bytes(whole[:5000]))
    weights.write_bytes(whole)
    done = shard_model(model, out)
    assert (done.kept, "have changed" in done.anew) == (
        0,
        True,
    )  # what may have been of either is not believed
    assert names_in(out) == named_by(out)  # nor is it left behind


def test_only_its_own_unfinished_files_are_taken_away(checkpoints, tmp_path):
    (tmp_path / "objects").mkdir()
    theirs, ours = ("film.part", "objects/film.part"), ("manifest.part", ".journal.part", "objects/3.part")
    for name in (*theirs, *ours):
        (tmp_path / name).write_bytes(b"half")
    shard_model(checkpoints["published"], tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.part")} == set(theirs)


def test_a_full_disk_is_said_before_anything_is_written(checkpoints, tmp_path, monkeypatch):
    free = os.statvfs(tmp_path)
    small = os.statvfs_result((*free[:4], 100_000_000 // free.f_frsize, *free[5:]))
    monkeypatch.setattr(making.os, "statvfs", lambda _: small)
    monkeypatch.setattr(making, "SPARE_BYTES", 99_900_000)
    with pytest.raises(InputError, match=r"objects need 0\.00 GB, but only 0\.10 GB are free"):
        shard_model(checkpoints["published"], tmp_path)
    assert names_in(tmp_path) == set()


def test_a_folder_of_the_old_format_is_split_again(checkpoints, shards, tmp_path):
    shutil.copytree(shards["published"] / "objects", tmp_path / "objects")
    old = json.loads((shards["published"] / "manifest.json").read_text())
    del old["moe_layers"], old["weights"]
    (tmp_path / "manifest.json").write_text(json.dumps({**old, "format": 1}))
    (tmp_path / "objects" / "0.part").write_bytes(b"of a split that was cut off")
    done = shard_model(checkpoints["published"], tmp_path, name="small")
    assert done.manifest == load_manifest(shards["published"] / "manifest.json")
    assert done.manifest.moe_layers == (0, 1, 2)
    assert done.manifest.weights is None
    assert names_in(tmp_path) == named_by(tmp_path)


MADE = [(f"{n}/{n}", Made(f"{n:064x}", 10 + n, 10**18 + n)) for n in range(4)]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_journal_is_believed_up_to_the_damage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / ".journal"
    with ShardJournal(path, {"source": "s"}, dict(MADE[:2])) as journal:
        for name, made in MADE[2:]:
            journal.add(name, made)
    whole = path.read_bytes()
    assert read_journal(path) == ({"source": "s"}, dict(MADE))
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
        )
    before = whole[:place].count(b"\n")  # lines in front of the damage
    head, made = read_journal(path)
    if before == 0:
        assert head is None
        assert made == {}
    else:
        assert head == {"source": "s"}
        assert made == dict(MADE[: before - 1])


def test_layers_without_experts_and_behind_the_last_one(tmp_path, checkpoints):
    """DeepSeek's: the first layer is dense, the last one guesses further tokens and is not part of the model."""
    model = tmp_path / "model"
    model.mkdir()
    config = {
        "model_type": "deepseek_v3",
        "vocab_size": 8,
        "hidden_size": 4,
        "moe_intermediate_size": 6,
        "num_hidden_layers": 3,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "first_k_dense_replace": 1,
    }
    (model / "config.json").write_text(json.dumps(config))
    tensors = {
        "model.embed_tokens.weight": torch.ones(8, 4),
        "model.layers.3.eh_proj.weight": torch.ones(4, 8),
    }
    tensors["model.layers.0.mlp.gate_proj.weight"] = torch.ones(6, 4)
    for layer in (1, 2, 3):
        tensors[f"model.layers.{layer}.mlp.shared_experts.down_proj.weight"] = torch.ones(4, 6)
        for expert in range(2):
            start = f"model.layers.{layer}.mlp.experts.{expert}."
            tensors[f"{start}gate_proj.weight"] = torch.full((6, 4), 10.0 * layer + expert)
            tensors[f"{start}up_proj.weight"] = torch.ones(6, 4)
            tensors[f"{start}down_proj.weight"] = torch.ones(4, 6)
    save_file(tensors, model / "model.safetensors")
    manifest = shard_model(model, tmp_path / "out").manifest
    assert (manifest.layers, manifest.moe_layers, manifest.dtype) == (2, (1, 2), "float32")
    assert load_manifest(tmp_path / "out" / "manifest.json") == manifest
    for entry in manifest.experts:
        held = load_file(tmp_path / "out" / "objects" / entry.object)
        assert held["gate_up_proj"][0, 0] == 10 * manifest.moe_layers[entry.layer] + entry.expert
    named = {entry.name: entry.object for entry in manifest.base_station}
    base = load_file(tmp_path / "out" / "objects" / named["model.safetensors"])
    assert set(base) == {
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.1.mlp.shared_experts.down_proj.weight",
        "model.layers.2.mlp.shared_experts.down_proj.weight",
    }
    tensors["model.layers.0.mlp.experts.0.up_proj.weight"] = torch.ones(6, 4)
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match=r"layer 0: experts, where config.json says there are none"):
        shard_model(model, tmp_path / "other")


def test_an_index_that_does_not_fit_its_files_is_said(checkpoints, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoints["published"], model)
    tensors = load_file(model / "model.safetensors")
    index = model / "model.safetensors.index.json"
    for weight_map, message in [
        (dict.fromkeys([*tensors, "model.more.weight"], "model.safetensors"), "such as model.more.weight"),
        ({}, "names no file"),
        ([], "weight_map is missing"),
        ({**dict.fromkeys(tensors, "model.safetensors"), "lm_head.weight": "twice.safetensors"}, "stands in"),
    ]:
        index.write_text(json.dumps({"weight_map": weight_map}))
        save_file({"model.norm.weight": tensors["model.norm.weight"]}, model / "twice.safetensors")
        with pytest.raises(InputError, match=message):
            shard_model(model, tmp_path / "out")


def test_the_bar_shows_on_a_terminal_and_nowhere_else(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # a dumb one shows none
    shown, hidden = io.StringIO(), io.StringIO()
    for file, terminal in ((shown, True), (hidden, False)):
        with ShardProgress("small", Console(file=file, force_terminal=terminal, width=100)) as progress:
            shard_model(checkpoints["published"], tmp_path / str(terminal), on_progress=progress)
    assert "splitting small" in shown.getvalue()
    assert hidden.getvalue() == ""
    quiet = io.StringIO()
    with ShardProgress("small", Console(file=quiet, force_terminal=True)) as progress:
        shard_model(
            checkpoints["published"], tmp_path / "True", on_progress=progress
        )  # nothing is left to do
    assert "splitting" not in quiet.getvalue()


def test_on_the_command_line(checkpoints, tmp_path):
    arguments = ["shard", str(checkpoints["published"]), "--out", str(tmp_path), "--experts"]
    done = CliRunner().invoke(app, [*arguments, "int8", "--json"])
    facts = json.loads(done.stdout)
    assert (facts["weights"], facts["moe_layers"], facts["kept"]) == ("int8", [0, 1, 2], 0)
    assert done.stderr == ""
    assert facts["object_bytes"] == sum(
        (tmp_path / "objects" / name).stat().st_size for name in names_in(tmp_path)
    )
    done = CliRunner().invoke(app, [*arguments, "int8"])
    assert "of 11,520 parameters, held as int8" in done.stdout
    assert isinstance(CliRunner().invoke(app, [*arguments, "int4"]).exception, InputError)
    done = CliRunner().invoke(app, arguments[:-1])
    assert "made anew: the experts' weights were held otherwise" in done.stderr


def test_the_recipes_chunk_is_the_makers(monkeypatch):
    assert making.CHUNK_BYTES == recipes.CHUNK_BYTES
