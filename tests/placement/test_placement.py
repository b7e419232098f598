"""Placement is whole, fits, follows the speeds, and is always the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.artifacts.manifest import ExpertObject, Manifest
from testbed.artifacts.placement import (
    DeviceCapacity,
    parse_capacity,
    place_auto,
    place_explicit,
    placement_json,
    wanted_list,
)
from testbed.errors import InputError

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


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=6), st.integers(1, 16))
def test_with_memory_to_spare_shares_are_the_speeds_to_less_than_one(speeds, experts):
    devices = [DeviceCapacity(f"d{i}", 10**9, speed) for i, speed in enumerate(speeds)]
    placement = place_auto(manifest(2, experts), devices, "float32")
    for layer in (0, 1):
        for count, speed in zip(counts(placement, layer, devices), speeds, strict=True):
            assert abs(count - experts * speed / sum(speeds)) < 1 + 1e-6


def test_largest_remainder_and_a_small_board():
    devices = [
        DeviceCapacity("a", 10**9, 205),
        DeviceCapacity("b", 10**9, 102),
        DeviceCapacity("c", 10**9, 68),
    ]
    assert counts(place_auto(manifest(), devices, "float32"), 0, devices) == [4, 2, 2]
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
