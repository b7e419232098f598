"""Who serves objects, and from whom each device pulls: pure plans."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import pytest

from testbed.campaigns.lab_steps import LabSteps
from testbed.campaigns.object_steps import ObjectSteps
from testbed.config.inventory import Inventory, load_inventory

HOSTS = "\n".join(f"  d{number}: {{role: device, address: 10.0.0.{10 + number}}}" for number in range(4))


@pytest.fixture
def lab(tmp_path: Path):
    def make(network: str) -> Inventory:
        path = tmp_path / "lab.yaml"
        path.write_text(
            f"lab: shelf\nnetwork: {network}\nhosts:\n  bs: {{role: base_station, address: 10.0.0.1}}\n{HOSTS}\n"
        )
        return load_inventory(path)

    return make


def phases_of(inventory: Inventory) -> dict[str, dict[str, list[str]]]:
    """Return the words of each phase's steps by host; phases without steps are left out."""
    steps = ObjectSteps(LabSteps(inventory), "shards", "~/.testbed/shards.json")
    return {
        phase.name: {step.host: shlex.split(step.shell) for step in phase.steps}
        for phase in steps.phases()
        if phase.steps
    }


def asked(words: list[str]) -> list[str]:
    """Return the servers of a pull in the order in which they are asked."""
    return [after for word, after in itertools.pairwise(words) if word in ("--open", "--from")]


def test_without_mirrors_everybody_asks_the_base_station(lab):
    phases = phases_of(lab("{}"))
    assert list(phases) == ["serve the shards", "pull the shards"]
    assert list(phases["pull the shards"]) == ["d0", "d1", "d2", "d3"]
    assert all(asked(words) == ["http://10.0.0.1:7080"] for words in phases["pull the shards"].values())
    assert "--client-mbit" not in phases["serve the shards"]["bs"]


def test_mirrors_pull_first_then_serve_and_share_the_others(lab):
    phases = phases_of(lab("{artifact_mirrors: [d2, 'http://cache.lab/jetsons', d0], artifact_mbit: 200}"))
    assert list(phases) == [
        "serve the shards",
        "pull the shards to the mirrors",
        "serve the shards at the mirrors",
        "pull the shards",
    ]
    web, bs, d0, d2 = "http://cache.lab/jetsons", *(f"http://10.0.0.{n}:7080" for n in (1, 10, 12))
    first = phases["pull the shards to the mirrors"]
    assert {host: asked(words) for host, words in first.items()} == {"d2": [web, bs], "d0": [web, bs]}
    then = phases["pull the shards"]
    assert {host: asked(words) for host, words in then.items()} == {
        "d1": [web, d2, d0, bs],
        "d3": [web, d0, d2, bs],
    }
    assert [words[words.index("--open") + 1] for words in then.values()] == [web, web]
    servers = {**phases["serve the shards"], **phases["serve the shards at the mirrors"]}
    for host, address in (("bs", "10.0.0.1"), ("d0", "10.0.0.10"), ("d2", "10.0.0.12")):
        words = servers[host]
        assert words[words.index("--listen") + 1] == f"{address}:7080"
        assert words[words.index("--client-mbit") + 1] == "200"


def test_a_mirror_that_takes_no_part_is_none(lab):
    phases = phases_of(lab("{artifact_mirrors: [d2]}").limited(["d0", "d1"]))
    assert list(phases) == ["serve the shards", "pull the shards"]
    assert asked(phases["pull the shards"]["d0"]) == ["http://10.0.0.1:7080"]
