from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from payloads.linkd.daemon import handle
from payloads.linkd.errors import LinkdError, LinksError, RefusedError
from payloads.linkd.found import Found
from payloads.linkd.plan import Leaf, parse_links
from payloads.linkd.shaper import Shaper, restore
from payloads.linkd.state import State, StateFile, boot_id

LINKS = [
    {"device": name, "address": f"10.0.0.{n}", "port": 7070, "downlink_mbit": 8, "uplink_mbit": 8}
    for n, name in enumerate("abc", start=2)
]


@pytest.fixture
def state_file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "state.json")


def _shaper(kernel: Any, state_file: StateFile, **options: Any) -> Shaper:
    kernel.state_path = state_file.path
    return Shaper(kernel, state_file, **options)


def _leaves(kernel: Any) -> dict[tuple[str, str], int]:
    return {(i.owner, i.on): i.rate_bytes_per_s for i in kernel.there if isinstance(i, Leaf)}


def test_set_change_and_clear(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file)
    answer = shaper.set(parse_links(LINKS))
    assert (answer["interface"], answer["ifb"], len(answer["links"])) == ("eth0", "tblinkd3", 3)
    assert set(_leaves(fake_kernel).values()) == {1_000_000}

    assert shaper.set(parse_links(LINKS))["changed"] == 0
    fake_kernel.log.clear()
    assert shaper.rerate({"b": {"uplink_mbit": 2}})["changed"] == 1
    assert [action for action, _ in fake_kernel.log] == ["change", "change"]
    assert _leaves(fake_kernel)["b", "tblinkd3"] == 250_000

    shaper.set(parse_links(LINKS[1:]))
    assert {owner for owner, _on in _leaves(fake_kernel)} == {"b", "c"}
    assert shaper.clear() == {"restored": "eth0"}
    assert not fake_kernel.there
    assert not state_file.path.exists()
    assert shaper.clear() == {"restored": None}
    assert shaper.show()["links"] == []


def test_another_mtu_makes_everything_anew(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file)
    shaper.set(parse_links(LINKS))
    fake_kernel.mtu = 9000
    assert shaper.set(parse_links(LINKS))["mtu"] == 9000
    assert all(i.burst_bytes > 9000 for i in fake_kernel.there if isinstance(i, Leaf))


@pytest.mark.parametrize("fail_at", [1, 2, 9, 30])
def test_a_failure_in_the_middle_leaves_nothing(fake_kernel, state_file, fail_at: int) -> None:
    fake_kernel.fail_at = fail_at
    shaper = _shaper(fake_kernel, state_file)
    with pytest.raises(LinkdError, match="the kernel did not"):
        shaper.set(parse_links(LINKS))
    assert not fake_kernel.there
    assert not state_file.path.exists()
    assert shaper.set(parse_links(LINKS))["changed"] > 0


def test_a_failure_in_a_later_change_puts_everything_back(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file)
    shaper.set(parse_links(LINKS[:1]))
    fake_kernel.fail_at = fake_kernel.added + 3
    with pytest.raises(LinkdError):
        shaper.set(parse_links(LINKS))
    assert not fake_kernel.there
    assert shaper.show()["interface"] is None


def test_nothing_is_touched_where_it_could_not_be_put_back(with_root, state_file) -> None:
    for kernel in (with_root("htb", 0x10000), with_root("fq_codel", 0x10000, comes_out_the_same=False)):
        shaper = _shaper(kernel, state_file)
        with pytest.raises(RefusedError, match="refused"):
            shaper.set(parse_links(LINKS))
        assert not kernel.there
        assert not state_file.path.exists()


def test_a_forgotten_ifb_is_refused(fake_kernel, state_file) -> None:
    _shaper(fake_kernel, state_file).set(parse_links(LINKS))
    fake_kernel.there = fake_kernel.there[:1]
    state_file.remove()
    with pytest.raises(RefusedError, match="ip link del tblinkd3"):
        _shaper(fake_kernel, state_file).set(parse_links(LINKS))


def test_one_interface_only(fake_kernel, state_file) -> None:
    fake_kernel.routes["10.0.0.3"] = "wlan0"
    with pytest.raises(LinksError, match="reached through wlan0 and not through eth0"):
        _shaper(fake_kernel, state_file).set(parse_links(LINKS))
    with pytest.raises(LinksError, match="reached through eth0 and not through eth9"):
        _shaper(fake_kernel, state_file, interface="eth9").set(parse_links(LINKS))


def test_a_stale_state_is_restored_once(fake_kernel, state_file) -> None:
    _shaper(fake_kernel, state_file).set(parse_links(LINKS))
    assert restore(fake_kernel, state_file) == "eth0"
    assert not fake_kernel.there
    assert restore(fake_kernel, state_file) is None


def test_a_reboot_has_put_everything_back_already(fake_kernel, state_file) -> None:
    state_file.write(State(fake_kernel.found("eth0"), "tblinkd3", "an earlier boot"))
    assert restore(fake_kernel, state_file) == "eth0"
    assert fake_kernel.log == []


def test_what_came_back_is_compared(fake_kernel, state_file) -> None:
    _shaper(fake_kernel, state_file).set(parse_links(LINKS))
    state_file.write(State(Found("eth0", (replace(fake_kernel.root, kind="fq"),)), "tblinkd3", boot_id()))
    with pytest.raises(LinkdError, match="it has noqueue 0: now and had fq 0:"):
        restore(fake_kernel, state_file)
    assert not state_file.path.exists()


def test_requests(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file)

    def ask(**request: Any) -> dict[str, Any]:
        return handle(shaper, json.dumps(request).encode())

    assert ask(op="ping")["ok"]
    assert ask(op="set", links=LINKS)["ok"]
    assert ask(op="rerate", rates={"a": {"downlink_mbit": 3}})["changed"] == 1
    assert ask(op="show")["links"][0]["downlink_mbit"] == 3
    for wrong, status in (({"op": "set"}, 2), ({"op": "dance"}, 1), ({"op": "rerate", "rates": 3}, 2)):
        answer = ask(**wrong)
        assert not answer["ok"]
        assert answer["exit_status"] == status
        assert answer["error"]
    for line in (b"", b"{", b"3", b"\xff"):
        assert not handle(shaper, line)["ok"]


def test_a_kernel_that_does_not_answer_is_told_to_the_client(fake_kernel, state_file, monkeypatch) -> None:
    shaper = _shaper(fake_kernel, state_file)
    assert handle(shaper, json.dumps({"op": "set", "links": LINKS}).encode())["ok"]

    def silent(_rated: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(fake_kernel, "change", silent)
    request = {"op": "rerate", "rates": {"a": {"downlink_mbit": 3}}}
    answer = handle(shaper, json.dumps(request).encode())
    assert answer == {"ok": False, "error": "the kernel did not answer 'rerate': timed out", "exit_status": 1}
    assert not state_file.path.exists()
