"""Pulls that are cut off at random, bits that flip on the way, and placements that change."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from payloads.artifacts.pull import Puller, pull_all
from payloads.artifacts.server import Paces
from tests.payloads.artifacts.conftest import put

ROOT = Path(__file__).parents[3]


def contents(count: int, size: int, seed: int = 0) -> list[bytes]:
    generator = random.Random(seed)
    return [generator.getrandbits(8 * size).to_bytes(size, "big") for _ in range(count)]


def pull(device, wanted, source, **options):
    options = {"attempts": 3, "sleep": lambda _: None, **options}
    return pull_all(device, wanted, Puller([source], device, **options))


@pytest.mark.parametrize("seed", range(5))
def test_ten_cuts_at_random_cost_less_than_one_object(serving, between, device, seed):
    base, source = serving("base")
    wanted = [put(base, content) for content in contents(6, 700_000)]
    total = sum(each.size_bytes for each in wanted)
    generator = random.Random(seed)
    cuts = sorted(generator.randrange(total) for _ in range(10))

    def meddle(passed: int, data: bytes) -> bytes | None:
        if cuts and passed >= cuts[0]:
            cuts.pop(0)
            return None
        return data

    # Each of them may hit the same lane before it has one more byte.
    done = pull(device, wanted, between(source, meddle), attempts=11)
    assert not cuts
    assert all(
        device.path(each.digest).read_bytes() == base.path(each.digest).read_bytes() for each in wanted
    )
    assert done.bytes == total
    assert done.again == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_bit_that_flips_on_the_way_costs_that_object_once_more(serving, between, device, seed):
    base, source = serving("base")
    wanted = [put(base, content) for content in contents(4, 300_000)]
    generator = random.Random(seed)
    left = [generator.randrange(100_000, 1_000_000)]

    def meddle(passed: int, data: bytes) -> bytes:
        if left and len(data) > 20_000 and passed >= left[0]:  # within a body, not in the lines before it
            left.pop()
            flipped = bytearray(data)
            flipped[-generator.randrange(1, 10_000)] ^= 1 << generator.randrange(8)
            return bytes(flipped)
        return data

    done = pull(device, wanted, between(source, meddle))
    assert not left
    assert done.again == 1
    assert done.bytes == 5 * 300_000
    assert all(
        device.path(each.digest).read_bytes() == base.path(each.digest).read_bytes() for each in wanted
    )


def test_a_puller_that_was_killed_leaves_what_it_had(serving, between, device, tmp_path, key_file):
    base, source = serving("base")
    wanted = [put(base, content) for content in contents(2, 3_000_000)]
    list_file = tmp_path / "wanted.json"
    list_file.write_text(
        json.dumps({"objects": [{"object": w.digest, "bytes": w.size_bytes} for w in wanted]})
    )
    home = tmp_path / "home"
    home.mkdir()
    (home / "objects").symlink_to(device.folder)
    holder: list[subprocess.Popen[str]] = []

    def meddle(passed: int, data: bytes) -> bytes:
        if passed > 2_000_000 and holder:
            holder.pop().kill()
        return data

    command = [sys.executable, "-m", "payloads.artifacts", "pull", "--from", between(source, meddle).url]
    command += ["--wanted", str(list_file), "--key-file", str(key_file)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TESTBED_HOME=str(home))
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)
    holder.append(process)
    assert process.wait(60) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()
    begun = sum(path.stat().st_size for path in device.parts())
    done = pull(device, wanted, source)
    assert done.bytes == 6_000_000 - begun
    assert all(
        device.path(each.digest).read_bytes() == base.path(each.digest).read_bytes() for each in wanted
    )


def test_another_placement_brings_only_what_is_new(serving, device):
    base, source = serving("base")
    first = [put(base, content) for content in contents(6, 50_000)]
    pull(device, first[:4], source)
    moved = pull(device, first[2:], source)
    assert (moved.pulled, moved.bytes, moved.present) == (2, 100_000, 2)
    # Another model that shares two of its objects with the first.
    other = [*first[:2], put(base, b"its own")]
    assert pull(device, other, source).bytes == len(b"its own")
    assert pull(device, first, source).bytes == 0


def test_lanes_that_wait_for_the_disk_do_not_hold_up_the_others(serving, device, monkeypatch):
    base, source = serving("base")
    wanted = [put(base, content) for content in contents(4, 1000)]
    all_at_the_disk = threading.Barrier(4)
    settle = device.settle

    def slow(part: Path, digest: str) -> None:
        all_at_the_disk.wait(30)
        settle(part, digest)

    monkeypatch.setattr(device, "settle", slow)
    assert pull(device, wanted, source).pulled == 4


class Told:
    """A connection that only remembers what it was told."""


def test_a_clients_bandwidth_is_shared_by_its_connections(monkeypatch):
    rates: dict[object, float | None] = {}
    monkeypatch.setattr(
        "payloads.artifacts.server.set_pace", lambda each, mbit: rates.__setitem__(each, mbit)
    )
    paces, one, two, other = Paces(90.0), Told(), Told(), Told()
    with paces.sending("10.0.0.1", one), paces.sending("10.0.0.2", other):
        assert rates == {one: 90.0, other: 90.0}
        with paces.sending("10.0.0.1", two):
            assert rates == {one: 45.0, two: 45.0, other: 90.0}
        assert rates[one] == 90.0


def test_a_pull_within_a_bandwidth_is_whole(serving, device):
    base, source = serving("base", 800.0)
    wanted = [put(base, content) for content in contents(5, 200_000)]
    assert pull(device, wanted, source).bytes == 1_000_000
