"""The experts of a device: products with int8 weights, and what a wanted list and its objects must say."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payloads.artifacts.store import Store
from payloads.board.pace import Pace
from payloads.tensors import encode_header
from payloads.wdmoe.bs.remote_model import _use_cores
from payloads.wdmoe.pace import ExpertShape
from payloads.wdmoe.wire_rows import encode_rows
from payloads.wdmoe.worker import compute, products
from payloads.wdmoe.worker.compute import ExpertBank
from payloads.wdmoe.worker.products import Matrix, Products
from payloads.wdmoe.worker.shards import ExpertWeights, ShardError, describe, load_experts, read_wanted
from payloads.wire.frames import HEADER_BYTES, pack_dispatch, pack_lists, unpack_dispatch

CPU = torch.device("cpu")
HIDDEN, INNER = 6, 10


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["float32", "bfloat16", "float16"]),
    st.integers(1, 300),
    st.integers(0, 2**32),
)
def test_int8_products_are_those_of_the_scaled_weights(tokens, inputs, outputs, dtype, block, seed):
    draw = torch.Generator().manual_seed(seed)
    element = getattr(torch, dtype)
    whole = torch.randint(-127, 128, (outputs, inputs), generator=draw, dtype=torch.int8)
    scale = torch.rand(outputs, generator=draw) * 0.01
    scale[0] = 0.0
    rows = torch.randn(tokens, inputs, generator=draw).to(element)
    out = torch.full((tokens, outputs), torch.nan, dtype=element)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(products._BLOCK_WEIGHTS, "cpu", block)
        Products().multiply(rows, Matrix(whole.t(), scale), out)
    weights = whole.double() * scale.double()[:, None]
    exact = rows.double() @ weights.t()
    # Each of a few roundings is one of the element type, against the sum of what was added.
    allowed = (rows.double().abs() @ weights.abs().t()) * 4 * torch.finfo(element).eps
    assert ((out.double() - exact).abs() <= allowed + torch.finfo(element).tiny).all()


def test_int8_products_in_float16_do_not_leave_its_range():
    rows = torch.full((1, 64), 40.0, dtype=torch.float16)
    whole = torch.full((8, 64), 127, dtype=torch.int8)
    out = torch.empty(1, 8, dtype=torch.float16)
    Products().multiply(rows, Matrix(whole.t(), torch.full((8,), 1e-4)), out)
    assert out.float().allclose(torch.tensor(40.0 * 64 * 127e-4), rtol=2e-3)


def test_memory_for_blocks_is_kept():
    kept = Products()
    matrix = Matrix(torch.ones(INNER, HIDDEN, dtype=torch.int8).t(), torch.ones(INNER))
    for _ in range(3):
        kept.multiply(torch.ones(2, HIDDEN), matrix, torch.empty(2, INNER))
    assert len(kept._blocks) == 1


def dispatch_of(rows, wanted, wire):
    """A dispatch of rows, given which of them each expert gets."""
    numbers = [number for of_expert in wanted.values() for number in of_expert]
    head = pack_dispatch(0, wire, 1, len(rows), HIDDEN, len(wanted), len(numbers), 1)
    lists = pack_lists(list(wanted), [len(of_expert) for of_expert in wanted.values()], numbers)
    frame = b"".join((head, encode_rows(rows, wire).numpy().tobytes(), lists))
    return unpack_dispatch(memoryview(bytearray(frame[HEADER_BYTES:])))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["float32", "int8"]), st.booleans())
def test_dispatches_of_all_sizes_share_memory_and_not_numbers(data, wire, narrow):
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    scales = (torch.full((2 * INNER,), 0.01), torch.full((HIDDEN,), 0.01)) if narrow else (None, None)

    def matrix(outputs, inputs, scale):
        weight = torch.randint(-9, 10, (outputs, inputs), generator=draw, dtype=torch.int8)
        return Matrix((weight if narrow else weight.float()).t(), scale)

    held = {
        (0, expert): ExpertWeights(matrix(2 * INNER, HIDDEN, scales[0]), matrix(HIDDEN, INNER, scales[1]))
        for expert in range(3)
    }
    made = held, "float32", HIDDEN, INNER, "silu", CPU
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "_KEPT_PAIRS", 4)
        patch.setattr(compute, "_KEPT_MOST", 3)
        bank = ExpertBank(*made)
        for _ in range(data.draw(st.integers(2, 6))):
            rows = torch.randn(data.draw(st.integers(1, 3)), HIDDEN, generator=draw)
            of_expert = st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=3)
            wanted = data.draw(st.dictionaries(st.integers(0, 2), of_expert, min_size=1))
            asked = dispatch_of(rows, dict(sorted(wanted.items())), wire)
            fresh = ExpertBank(*made)
            assert bank.run(asked, bank.find(asked)) == fresh.run(asked, fresh.find(asked))
        assert len(bank._kept) <= 3
        assert {part.gated.untyped_storage().data_ptr() for part in bank._kept.values()} <= {
            bank._memory.untyped_storage().data_ptr()
        }


def test_the_output_layer_gives_its_threads_back_and_one_row_keeps_its_bits(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: range(3))
    head, row, seen = torch.nn.Linear(64, 5000), torch.randn(1, 1, 64), []
    before = torch.get_num_threads()
    alone = head(row)
    _use_cores(head)
    head.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()), prepend=True)
    assert torch.equal(head(row), alone)
    with pytest.raises(RuntimeError):
        head(torch.randn(1, 1, 63))
    assert seen == [max(3, before)]
    assert torch.get_num_threads() == before


def test_int8_weights_are_a_quarter_of_the_bytes_of_float32():
    whole, narrow = ExpertShape(HIDDEN, INNER, 4), ExpertShape(HIDDEN, INNER, 4, 1)
    assert whole.weights_bytes == 4 * 3 * HIDDEN * INNER
    assert narrow.weights_bytes == 3 * HIDDEN * INNER + 4 * (2 * INNER + HIDDEN)
    activations = whole.traffic_bytes(5) - whole.traffic_bytes(0)
    assert narrow.traffic_bytes(5) == narrow.weights_bytes + activations
    assert narrow.seconds(Pace(None, 1.0), [5]) == narrow.traffic_bytes(5)
    assert narrow.operations(3) == whole.operations(3)


def write_object(folder, tensors):
    data = encode_header({name: (kind, tuple(value.shape)) for name, (kind, value) in tensors.items()}, {})
    data += b"".join(value.contiguous().numpy().tobytes() for _, value in tensors.values())
    shutil.rmtree(folder / "objects", ignore_errors=True)
    (folder / "objects").mkdir()
    (folder / "objects" / hashlib.sha256(data).hexdigest()).write_bytes(data)


def int8_tensors():
    return {
        "gate_up_proj": ("I8", torch.ones(2 * INNER, HIDDEN, dtype=torch.int8)),
        "gate_up_scale": ("F32", torch.ones(2 * INNER)),
        "down_proj": ("I8", torch.ones(HIDDEN, INNER, dtype=torch.int8)),
        "down_scale": ("F32", torch.ones(HIDDEN)),
    }


def write_wanted(folder, **changes):
    held = [path.name for path in (folder / "objects").glob("*")]
    value = {
        "model": "m",
        "manifest": "d",
        "dtype": "bfloat16",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "activation": "silu",
        "weights": "int8",
        "experts": [{"layer": 0, "expert": 3, "object": name} for name in held],
        **changes,
    }
    (folder / "shards.json").write_text(json.dumps(value))
    return folder / "shards.json"


def test_int8_weights_stay_int8_in_memory(tmp_path):
    write_object(tmp_path, int8_tensors())
    wanted = read_wanted(write_wanted(tmp_path))
    experts = load_experts(wanted, tmp_path / "objects", CPU)
    (held,) = experts.values()
    assert held.gate_up.weight.dtype == held.down.weight.dtype == torch.int8
    assert held.gate_up.weight.shape == (HIDDEN, 2 * INNER)
    assert wanted.shape() == ExpertShape(HIDDEN, INNER, 2, 1)
    said = describe(wanted, experts)
    assert (said["weights"], said["parameters"], said["experts"]) == ("int8", 3 * HIDDEN * INNER, [[0, 3]])


def test_a_wanted_list_from_before_there_was_int8_is_read(tmp_path):
    path = write_wanted(tmp_path)
    value = json.loads(path.read_text())
    del value["weights"]
    path.write_text(json.dumps(value))
    assert read_wanted(path).weights is None


def test_unknown_weights_are_refused(tmp_path):
    with pytest.raises(ShardError, match="unknown weights: 'int3'"):
        read_wanted(write_wanted(tmp_path, weights="int3"))


def test_objects_that_are_not_what_the_list_says_are_refused(tmp_path):
    objects = tmp_path / "objects"
    write_object(tmp_path, int8_tensors())
    with pytest.raises(ShardError, match="gate_up_proj is int8, the wanted list says bfloat16; deploy again"):
        load_experts(read_wanted(write_wanted(tmp_path, weights=None)), objects, CPU)
    floats = {
        "gate_up_proj": ("F32", torch.ones(2 * INNER, HIDDEN)),
        "down_proj": ("F32", torch.ones(HIDDEN, INNER)),
    }
    write_object(tmp_path, floats)
    with pytest.raises(ShardError, match="gate_up_proj is F32, the wanted list says int8"):
        load_experts(read_wanted(write_wanted(tmp_path)), objects, CPU)
    write_object(tmp_path, {k: v for k, v in int8_tensors().items() if k != "down_scale"})
    with pytest.raises(ShardError, match="does not hold down_scale"):
        load_experts(read_wanted(write_wanted(tmp_path)), objects, CPU)
    write_object(tmp_path, {**int8_tensors(), "down_scale": ("F32", torch.ones(HIDDEN + 1))})
    with pytest.raises(ShardError, match="another shape"):
        load_experts(read_wanted(write_wanted(tmp_path)), objects, CPU)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_bit_that_flipped_on_the_disk_is_found_and_the_object_is_not_taken_for_whole_again(
    tmp_path, at, bit
):
    write_object(tmp_path, int8_tensors())
    wanted = read_wanted(write_wanted(tmp_path))
    digest = wanted.experts[0].object
    store = Store(tmp_path / "objects")
    path = store.path(digest)
    data = bytearray(path.read_bytes())
    assert store.is_present(digest, len(data))
    before = path.stat()
    data[int(at * len(data))] ^= 1 << bit
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.is_present(digest, len(data))
    with pytest.raises(ShardError, match=r"layer 0 expert 3 is damaged: .*; deploy again"):
        load_experts(wanted, tmp_path / "objects", CPU)
    assert not store.is_present(digest, len(data))
