"""Placement is whole, fits, follows the speeds, and is always the same."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.artifacts.manifest import ExpertObject, Manifest
from testbed.errors import InputError
from testbed.placement.place import (
    DeviceCapacity,
    expert_bytes,
    parse_capacity,
    place_auto,
    place_explicit,
    placement_json,
    wanted_list,
)
from testbed.placement.solve import Demand, serving_shares, solve

EXPERT_BYTES = 2 * 3 * 8 * 16


def manifest(layers=4, experts=8):
    return Manifest(
        model="m",
        family="mixtral",
        dtype="float16",
        layers=layers,
        experts_per_layer=experts,
        experts_per_token=2,
        hidden_size=8,
        intermediate_size=16,
        vocabulary=100,
        activation="silu",
        base_parameters=1000,
        expert_parameters=3 * 8 * 16,
        experts=tuple(
            ExpertObject(layer, e, f"{layer}-{e}", 9) for layer in range(layers) for e in range(experts)
        ),
        base_station=(),
    )


def counts(placement, layer, devices):
    owners = [holder for holders in placement[layer].values() for holder in holders]
    return [owners.count(device.name) for device in devices]


@st.composite
def fleets(draw):
    rooms = draw(st.lists(st.integers(0, 60), min_size=1, max_size=5))
    speeds = draw(st.lists(st.floats(0.01, 1000), min_size=len(rooms), max_size=len(rooms)))
    return [
        DeviceCapacity(f"d{i}", room * EXPERT_BYTES + draw(st.integers(0, EXPERT_BYTES - 1)), speed)
        for i, (room, speed) in enumerate(zip(rooms, speeds, strict=True))
    ]


@given(fleets(), st.integers(1, 5), st.integers(1, 9))
def test_every_expert_has_a_place_and_no_device_too_many(devices, layers, experts):
    model = manifest(layers, experts)
    if sum(device.memory_bytes // EXPERT_BYTES for device in devices) < layers * experts:
        with pytest.raises(InputError, match=f"does not fit: {layers * experts} experts"):
            place_auto(model, devices, "bfloat16")
        return
    placement = place_auto(model, devices, "bfloat16")
    assert {(layer, e) for layer, row in placement.items() for e in row} == {
        (layer, e) for layer in range(layers) for e in range(experts)
    }
    for device in devices:
        held = sum(device.name in holders for row in placement.values() for holders in row.values())
        assert held * EXPERT_BYTES <= device.memory_bytes
    assert placement == place_auto(model, devices, "bfloat16")
    # A placement that was made is one that is accepted when written by hand.
    assert place_explicit(model, placement_json(placement), devices, "bfloat16") == placement
    wanted = [wanted_list(model, placement, device.name, "bfloat16")["experts"] for device in devices]
    assert sorted(e["object"] for one in wanted for e in one) == sorted(e.object for e in model.experts)


def heaviest(frequency, holds, speeds):
    """What the most loaded device weighs, where each expert has one holder."""
    return max(frequency @ holds / (np.asarray(speeds) / max(speeds)))


@st.composite
def demands(draw):
    devices = draw(st.integers(1, 3))
    speeds = draw(st.lists(st.floats(0.1, 10), min_size=devices, max_size=devices))
    wanted = np.array(draw(st.lists(st.integers(1, 50), min_size=1, max_size=6)), dtype=float)
    return wanted / wanted.sum(), speeds


@given(demands())
def test_the_most_loaded_device_is_near_the_best_of_all_placements(demand):
    frequency, speeds = demand
    (holds,) = solve(Demand(frequency[None]), [99] * len(speeds), speeds)
    assert (holds.sum(axis=1) == 1).all()
    best = min(
        heaviest(frequency, np.eye(len(speeds))[list(owners)], speeds)
        for owners in itertools.product(range(len(speeds)), repeat=len(frequency))
    )
    assert best * (1 - 1e-9) <= heaviest(frequency, holds, speeds) <= 4 / 3 * best


@given(demands())
def test_no_move_and_no_swap_of_the_most_loaded_device_would_help(demand):
    frequency, speeds = demand
    (holds,) = solve(Demand(frequency[None]), [99] * len(speeds), speeds)
    owner = holds.argmax(axis=1)
    now = heaviest(frequency, holds, speeds)
    for expert, device in itertools.product(range(len(owner)), range(len(speeds))):
        moved = owner.copy()
        moved[expert] = device
        assert heaviest(frequency, np.eye(len(speeds))[moved], speeds) >= now * (1 - 1e-6)
    for one, other in itertools.combinations(range(len(owner)), 2):
        swapped = owner.copy()
        swapped[[one, other]] = owner[[other, one]]
        assert heaviest(frequency, np.eye(len(speeds))[swapped], speeds) >= now * (1 - 1e-6)


@given(fleets(), st.integers(1, 3), st.integers(1, 6), st.integers(1, 3), st.integers(0, 4))
def test_copies_lie_on_different_devices_and_fit(devices, layers, experts, copies, hot):
    model = manifest(layers, experts)
    # A device holds an expert once, so that more room than there are experts is of no use to it.
    room = sum(min(device.memory_bytes // EXPERT_BYTES, layers * experts) for device in devices)
    if len(devices) < copies or room < layers * experts * copies:
        with pytest.raises(InputError):
            place_auto(model, devices, "bfloat16", copies=copies, hot_copies=hot)
        return
    placement = place_auto(model, devices, "bfloat16", copies=copies, hot_copies=hot)
    for row in placement.values():
        assert all(len(set(holders)) == len(holders) >= copies for holders in row.values())
        assert sum(map(len, row.values())) <= experts * copies + hot
    for device in devices:
        held = sum(device.name in holders for row in placement.values() for holders in row.values())
        assert held * EXPERT_BYTES <= device.memory_bytes


def test_what_is_wanted_most_goes_where_it_is_served_fastest():
    devices = [DeviceCapacity("slow", 10**9, 1.0), DeviceCapacity("fast", 10**9, 3.0)]
    frequency = np.array([[0.75, 0.05, 0.05, 0.05, 0.05, 0.05]])
    placement = place_auto(manifest(1, 6), devices, "bfloat16", frequency=frequency)
    assert placement[0][0] == ("fast",)
    assert counts(placement, 0, devices) == [5, 1]
    # Wanted alike, the counts follow the speeds and the numbers the devices' order.
    even = place_auto(manifest(1, 8), devices, "bfloat16")
    assert even[0] == {e: ("slow",) if e < 2 else ("fast",) for e in range(8)}


def test_a_hot_copy_halves_what_one_device_is_asked_for():
    frequency = np.array([[0.7, 0.1, 0.1, 0.1]])
    speeds = [1.0, 1.0]
    (alone,) = solve(Demand(frequency), [9, 9], speeds)
    (copied,) = solve(Demand(frequency, hot_copies=1), [9, 9], speeds)
    assert copied.sum() == alone.sum() + 1
    assert copied[0].all()
    loads = frequency[0] @ serving_shares(frequency[0], copied, np.ones(2))
    assert loads == pytest.approx([0.5, 0.5])
    # A copy that would help nobody is not made.
    (useless,) = solve(Demand(np.array([[0.5, 0.5]]), hot_copies=3), [9, 9], speeds)
    assert useless.sum() == 2


def test_speeds_of_the_emulated_boards_and_a_small_board():
    devices = [
        DeviceCapacity("a", 10**9, 205),
        DeviceCapacity("b", 10**9, 102),
        DeviceCapacity("c", 10**9, 68),
    ]
    assert counts(place_auto(manifest(), devices, "float32"), 0, devices) == [5, 2, 1]
    # Room for three experts over four layers: one in each of three layers, the others take over the rest.
    small = [DeviceCapacity("a", 3 * EXPERT_BYTES, 1000.0), *devices[1:]]
    placement = place_auto(manifest(), small, "float16")
    assert [counts(placement, layer, small)[0] for layer in range(4)] == [0, 1, 1, 1]


def test_what_does_not_fit_says_how_much_is_missing_where():
    devices = [DeviceCapacity("a", 10 * EXPERT_BYTES, 1.0), DeviceCapacity("b", 0, 1.0)]
    with pytest.raises(
        InputError, match=r"32 experts of 1,536 bytes in float32.*room for 5 \(a 5, b 0\)"
    ) as caught:
        place_auto(manifest(), devices, "float32")
    assert caught.value.exit_code == 2
    assert "memory" in caught.value.hint
    with pytest.raises(InputError, match="no device"):
        place_auto(manifest(), [], "float32")
    with pytest.raises(InputError, match="speed of a"):
        place_auto(manifest(), [DeviceCapacity("a", 10**9, 0)], "float32")
    with pytest.raises(InputError, match="dtype: expected one of"):
        place_auto(manifest(), devices, "int4")
    why = [replace(devices[0], why="0.6 of its 8.0 GiB"), devices[1]]
    with pytest.raises(InputError, match=r"room for 10 \(a 10, 0.6 of its 8.0 GiB, b 0\)"):
        place_auto(manifest(), why, "bfloat16")
    with pytest.raises(InputError, match="3 copies of each expert need 3 devices, and there are 2"):
        place_auto(manifest(), devices, "bfloat16", copies=3)


def test_experts_of_8_bits_need_a_byte_a_weight_and_their_scales():
    small = replace(manifest(1, 2), weights="int8")
    assert expert_bytes(small, "bfloat16") == 3 * 8 * 16 + 4 * (2 * 16 + 8)
    devices = [DeviceCapacity("a", 2 * expert_bytes(small, "bfloat16"), 1.0)]
    assert place_auto(small, devices, "bfloat16")[0] == {0: ("a",), 1: ("a",)}
    assert expert_bytes(manifest(1, 2), "bfloat16") == EXPERT_BYTES
    with pytest.raises(InputError, match="544 bytes in int8"):
        place_auto(small, [DeviceCapacity("a", 10, 1.0)], "bfloat16")


def test_a_placement_by_hand_lists_every_mistake():
    devices = [DeviceCapacity("a", 10**9, 1.0), DeviceCapacity("b", EXPERT_BYTES, 1.0)]
    wanted = {0: {0: "a", 1: ["a", "b", "a"], 2: "c", 9: "a"}, 1: dict.fromkeys(range(3), "b"), 7: {}}
    with pytest.raises(InputError) as caught:
        place_explicit(manifest(2, 3), wanted, devices, "bfloat16")
    assert list(caught.value.problems) == [
        "layer 7: m has layers 0 to 1",
        "layer 0: there is no expert 9, only 0 to 2",
        "layer 0, expert 2: unknown device c; known: a, b",
        f"b: 4 experts need {4 * EXPERT_BYTES:,} bytes in bfloat16, there are {EXPERT_BYTES:,}",
    ]
    with pytest.raises(InputError, match="layer 1, expert 0: placed on no device"):
        place_explicit(manifest(2, 1), {0: {0: "a"}}, devices, "bfloat16")
    good = place_explicit(manifest(1, 2), {"0": {"0": ["a", "b"], "1": "a"}}, devices, "bfloat16")
    assert good == {0: {0: ("a", "b"), 1: ("a",)}}


def test_a_capacity_is_read_from_a_word():
    assert parse_capacity("orin-nano=4:68") == DeviceCapacity("orin-nano", 4_000_000_000, 68.0)
    for text in ("orin", "orin=4", "=4:1", "orin=x:1", "orin=-1:1", "orin=inf:1"):
        with pytest.raises(InputError, match="NAME=MEMORY_GB:SPEED"):
            parse_capacity(text)
