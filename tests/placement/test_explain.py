"""What a placement means in loads and waiting, who serves what several hold, and where the frequency comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.wdmoe.holders import serving_devices
from payloads.wdmoe.latency import DeviceSpeed, LatencyModel
from payloads.wdmoe.pace import ExpertShape
from testbed.artifacts.manifest import ExpertObject, Manifest
from testbed.config.inventory import Host
from testbed.errors import InputError
from testbed.hosts.facts import Facts
from testbed.placement.explain import explain
from testbed.placement.frequency import routing_frequency
from testbed.placement.memory import RESERVE_BYTES, capacity
from testbed.placement.place import DeviceCapacity, place_auto

LAYERS, EXPERTS, HIDDEN, INNER = 3, 6, 64, 256
MANIFEST = Manifest(
    model="m",
    family="mixtral",
    dtype="float16",
    layers=LAYERS,
    experts_per_layer=EXPERTS,
    experts_per_token=2,
    hidden_size=HIDDEN,
    intermediate_size=INNER,
    vocabulary=100,
    activation="silu",
    base_parameters=1000,
    expert_parameters=3 * HIDDEN * INNER,
    experts=tuple(
        ExpertObject(layer, e, f"{layer}-{e}", 9) for layer in range(LAYERS) for e in range(EXPERTS)
    ),
    base_station=(),
)
DEVICES = [DeviceCapacity("fast", 10**9, 40.0), DeviceCapacity("slow", 10**9, 10.0)]


def latency(*bytes_per_s: float) -> LatencyModel:
    speeds = tuple(DeviceSpeed(1e18, value, None) for value in bytes_per_s)
    return LatencyModel(("fast", "slow"), ExpertShape(HIDDEN, INNER, 2), speeds)


def test_loads_add_up_and_the_overloaded_device_is_the_bottleneck() -> None:
    everything_slow = {
        layer: {e: ("slow",) if e else ("fast",) for e in range(EXPERTS)} for layer in range(LAYERS)
    }
    found = explain(MANIFEST, everything_slow, DEVICES, "float16", latency(40e9, 10e9))
    fast, slow = found.devices
    assert (fast.experts, slow.experts) == (LAYERS, LAYERS * (EXPERTS - 1))
    assert fast.load + slow.load == pytest.approx(1)
    assert slow.load == pytest.approx(5 / 6)
    assert fast.slowest + slow.slowest == pytest.approx(1)
    assert found.bottleneck == "slow"
    assert slow.busiest_layers == LAYERS
    assert slow.slowest > 0.9
    assert slow.held_bytes == slow.experts * 3 * HIDDEN * INNER * 2
    # A better placement is foreseen as a better one.
    placed = place_auto(MANIFEST, DEVICES, "float16")
    assert explain(MANIFEST, placed, DEVICES, "float16", latency(40e9, 10e9)).layer_ms < found.layer_ms


def test_a_copy_is_served_by_who_is_done_first() -> None:
    first, several = np.array([1, 1, 0]), {0: (0, 1), 1: (0, 1)}
    unlimited = np.full(2, np.inf)
    costs = latency(40e9, 10e9).costs(unlimited, unlimited)
    # One token: the fast device takes what both hold, though the slow one is named first.
    assert serving_devices(first, several, np.array([[0]]), costs).tolist() == [0, 1, 0]
    # What only the fast device holds keeps it busy for so many tokens that the slow one is done earlier.
    busy = np.array([[2, 0]] + [[2, 2]] * 4000)
    assert serving_devices(first, several, busy, costs)[0] == 1


@given(st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=2), min_size=1, max_size=9))
def test_whoever_serves_an_expert_holds_it(index: list[list[int]]) -> None:
    first = np.arange(8) % 3
    several = {1: (1, 2), 4: (1, 0), 6: (0, 2)}
    serving = serving_devices(first, several, np.array(index))
    assert all(serving[e] in several.get(e, (first[e],)) for e in range(8))


def test_a_device_is_never_given_more_than_is_free() -> None:
    host = Host(name="d", role="device", address="10.0.0.1", board="jetson-orin-nano-8gb")
    whole = capacity(host, Facts("d", memory_bytes=8 << 30, memory_free_bytes=8 << 30))
    assert (whole.memory_bytes, whole.why) == (int(0.6 * (8 << 30)), "0.6 of its 8.0 GiB")
    tight = capacity(host, Facts("d", memory_bytes=8 << 30, memory_free_bytes=3 << 30))
    assert tight.memory_bytes == (3 << 30) - RESERVE_BYTES
    assert tight.why.startswith("3.0 GiB are free")
    assert capacity(host, Facts("d", memory_bytes=8 << 30, memory_free_bytes=5)).memory_bytes == 0
    assert capacity(host, Facts("d", memory_bytes=8 << 30)).memory_bytes == whole.memory_bytes
    assert capacity(host, Facts("d")).why == "nobody knows how much memory it has"


def test_the_frequency_comes_from_the_routing_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorded:
        manifest = {"model": {"name": "m"}}  # noqa: RUF012
        routing = pd.DataFrame({"layer": [0, 0, 2], "expert": [1, 1, 5], "pairs": [30, 14, 4]})

    monkeypatch.setattr("testbed.records.load_run", lambda folder: Recorded)
    shares = routing_frequency(tmp_path, MANIFEST)
    assert shares.sum(axis=1) == pytest.approx(np.ones(LAYERS))
    assert shares[0].tolist() == pytest.approx([0.02, 0.9, 0.02, 0.02, 0.02, 0.02])
    assert shares[1].tolist() == pytest.approx([1 / 6] * 6)
    assert shares[2, 5] == pytest.approx(0.5)
    Recorded.manifest = {"model": {"name": "other"}}
    with pytest.raises(InputError, match="routed other, and the model is m"):
        routing_frequency(tmp_path, MANIFEST)
    Recorded.manifest = {"model": {"name": "m"}}
    Recorded.routing = Recorded.routing.iloc[:0]
    with pytest.raises(InputError, match="no routing in its records"):
        routing_frequency(tmp_path, MANIFEST)
    Recorded.routing = pd.DataFrame({"layer": [0], "expert": [6], "pairs": [1]})
    with pytest.raises(InputError, match="another shape"):
        routing_frequency(tmp_path, MANIFEST)
