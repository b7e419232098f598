from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from payloads.linkd.capabilities import KINDS, backends_of, choose_leaf
from payloads.linkd.errors import LinkdError, LinksError, RefusedError
from payloads.linkd.found import Found
from payloads.linkd.in_path import InPath
from payloads.linkd.links import Link
from payloads.linkd.plan import Class, Cutter, Ifb, Ingress, Leaf, Match, Netem, parse_links
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
    return Shaper(kernel, state_file, **{"leaf": "tbf", **options})


def _rerate(shaper: Shaper, rates: dict[str, dict[str, float]]) -> int:
    rows = shaper.show()["links"]
    links = parse_links([{key: row[key] for key in Link.__dataclass_fields__} for row in rows])
    return shaper.rerate([replace(link, **rates.get(link.device, {})) for link in links])


def _leaves(kernel: Any) -> dict[tuple[str, str], int]:
    return {(i.owner, i.on): i.rate_bytes_per_s for i in kernel.there if isinstance(i, Leaf)}


def test_set_change_and_clear(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file)
    answer = shaper.set(parse_links(LINKS))
    assert (answer["interface"], answer["ifb"], len(answer["links"])) == ("eth0", "tblinkd3", 3)
    assert set(_leaves(fake_kernel).values()) == {1_000_000}

    assert shaper.set(parse_links(LINKS))["changed"] == 0
    fake_kernel.log.clear()
    assert _rerate(shaper, {"b": {"uplink_mbit": 2}}) == 1
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


def test_a_kernel_that_refuses_a_rate_leaves_nothing_shaped(fake_kernel, state_file, monkeypatch) -> None:
    shaper = _shaper(fake_kernel, state_file)
    shaper.set(parse_links(LINKS))

    def silent(_rated: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(fake_kernel, "change", silent)
    with pytest.raises(TimeoutError):
        _rerate(shaper, {"a": {"downlink_mbit": 3}})
    assert not shaper.links_set
    assert not state_file.path.exists()
    assert not fake_kernel.there


def test_a_direction_that_is_left_alone_has_no_class(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file)
    answer = shaper.set(parse_links([{**LINKS[0], "uplink_mbit": None}, LINKS[1]]))
    assert answer["links"][0]["backends"] == {"downlink": "bs-htb-tbf", "uplink": "none"}
    assert set(_leaves(fake_kernel)) == {("a", "eth0"), ("b", "eth0"), ("b", "tblinkd3")}
    assert not any(
        isinstance(item, Match) and item.on == "tblinkd3" and item.address == LINKS[0]["address"]
        for item in fake_kernel.there
    )
    assert shaper.show()["links"][0]["uplink"] is None


def test_downlinks_alone_need_no_ifb(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file)
    answer = shaper.set(parse_links([{**link, "uplink_mbit": None} for link in LINKS]))
    assert answer["ifb"] is None
    assert not any(isinstance(item, (Ifb, Ingress)) for item in fake_kernel.there)
    # And from there to both directions and back, from nothing each time.
    assert shaper.set(parse_links(LINKS))["ifb"] == "tblinkd3"
    assert shaper.set(parse_links([{**link, "uplink_mbit": None} for link in LINKS]))["ifb"] is None
    assert not any(isinstance(item, (Ifb, Ingress)) for item in fake_kernel.there)


def test_a_device_shapes_what_it_sends_to_the_base_station(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file, side="device")
    with pytest.raises(LinksError, match="downlink_mbit must be null"):
        shaper.set(parse_links(LINKS[:1]))
    answer = shaper.set(parse_links([{**LINKS[0], "downlink_mbit": None}]))
    assert answer["links"][0]["backends"] == {"downlink": "none", "uplink": "device-htb-tbf"}
    assert not any(isinstance(item, (Ifb, Ingress)) for item in fake_kernel.there)
    matches = [item for item in fake_kernel.there if isinstance(item, Match)]
    assert {(m.on, m.destination, m.port_of_sender, m.port) for m in matches} == {
        ("eth0", True, True, 7070), ("eth0", True, True, 7071),
    }  # fmt: skip
    assert _rerate(shaper, {"a": {"uplink_mbit": 2}}) == 1
    assert _leaves(fake_kernel) == {("a", "eth0"): 250_000}


IMPAIRED = {**LINKS[0], "delay_ms": 20, "jitter_ms": 5, "loss_percent": 1}


def test_with_netem_each_frame_is_cut_first_and_the_class_only_counts(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file, leaf="auto", able=_able())
    answer = shaper.set(parse_links([IMPAIRED]))
    assert answer["backend"] == "bs-htb-netem"
    for on in ("eth0", "tblinkd3"):
        (klass,) = (i for i in fake_kernel.there if isinstance(i, Class) and (i.on, i.owner) == (on, "a"))
        (cutter,) = (i for i in fake_kernel.there if isinstance(i, Cutter) and i.on == on)
        (netem,) = (i for i in fake_kernel.there if isinstance(i, Netem) and i.on == on)
        assert klass.rate_bytes_per_s > 10**10
        assert 1514 < cutter.frame_bytes < 2 * 1514
        assert (netem.rate_bytes_per_s, netem.delay_ns, netem.jitter_ns) == (10**6, 20_000_000, 5_000_000)
        assert netem.loss == pytest.approx(0.01)
        assert netem.limit_frames * 1514 > (4 << 20) + 10**6 * 0.025
    fake_kernel.log.clear()
    assert _rerate(shaper, {"a": {"downlink_mbit": 3}}) == 1
    ((action, changed),) = fake_kernel.log
    assert action == "change"
    assert (changed.rate_bytes_per_s, changed.delay_ns) == (375_000, 20_000_000)


def _able(**missing: str) -> Any:
    kinds = {kind: missing.get(kind) for kind in KINDS}
    return lambda: {"root": True, "kinds": kinds, "backends": backends_of(kinds, None)}


@pytest.mark.parametrize(
    ("missing", "links", "gives"),
    [
        ({}, LINKS[0], "line"),
        ({"tun": "no"}, LINKS[0], "tbf"),
        ({}, {**LINKS[0], "uplink_mbit": 150}, "tbf"),
        ({"tun": "no"}, IMPAIRED, "netem"),
    ],
)
def test_where_rates_vary_no_frame_keeps_the_time_of_an_earlier_rate(missing, links, gives) -> None:
    assert choose_leaf("auto", parse_links([links]), "bs", _able(**missing), varies=True) == gives


@pytest.mark.parametrize(
    ("leaf", "side", "missing", "links", "gives"),
    [
        ("auto", "bs", {}, [LINKS[0]], "netem"),
        ("auto", "bs", {"netem": "no"}, [LINKS[0]], "line"),
        ("auto", "bs", {"netem": "no", "tun": "no"}, [LINKS[0]], "tbf"),
        ("auto", "bs", {"netem": "no"}, [{**LINKS[0], "uplink_mbit": 150}], "tbf"),
        ("auto", "bs", {"netem": "no"}, [IMPAIRED], "line"),
        ("auto", "device", {"netem": "no"}, [LINKS[0]], "tbf"),
        ("auto", "device", {"ifb": "no"}, [IMPAIRED], "netem"),
        ("tbf", "bs", {}, [LINKS[0]], "tbf"),
        ("line", "bs", {}, [LINKS[0]], "line"),
        ("netem", "bs", {}, [LINKS[0]], "netem"),
    ],
)
def test_the_leaf_follows_from_what_is_asked_and_what_there_is(leaf, side, missing, links, gives) -> None:
    assert choose_leaf(leaf, parse_links(links), side, _able(**missing)) == gives


@pytest.mark.parametrize(
    ("leaf", "side", "missing", "links", "words"),
    [
        ("tbf", "bs", {}, [IMPAIRED], "delay cannot be given by the leaf tbf"),
        ("netem", "bs", {"netem": "not in this kernel"}, [LINKS[0]], "netem: not in this kernel"),
        ("line", "bs", {"tun": "no"}, [LINKS[0]], "the leaf line needs what .*tun: no"),
        ("line", "device", {}, [LINKS[0]], "at the base station"),
        ("auto", "device", {"netem": "no"}, [IMPAIRED], "delay on the device needs sch_netem"),
        ("auto", "bs", {"netem": "no", "tun": "none"}, [{**LINKS[0], "loss_percent": 3}],
         r"loss needs sch_netem, or /dev/net/tun for the user-space line, and .* has neither "
         r"\(netem: no; tun: none\)"),
        ("auto", "bs", {"ifb": "gone"}, [IMPAIRED], "can give neither .*ifb: gone"),
    ],
)  # fmt: skip
def test_what_nobody_can_give_is_refused_with_what_is_missing(leaf, side, missing, links, words) -> None:
    with pytest.raises(RefusedError, match=words):
        choose_leaf(leaf, parse_links(links), side, _able(**missing))


def test_a_refusal_leaves_what_is_in_force(fake_kernel, state_file) -> None:
    shaper = _shaper(fake_kernel, state_file)
    shaper.set(parse_links(LINKS))
    before = list(fake_kernel.there)
    with pytest.raises(RefusedError):
        shaper.set(parse_links([IMPAIRED]))
    assert fake_kernel.there == before
    assert shaper.links_set


class NoLineHere(InPath):
    """The user-space line on an interface that is no Ethernet."""

    def lacks(self, interface: Any) -> str:
        return f"{interface.name} is no Ethernet interface"


def test_where_the_interface_takes_no_line_another_leaf_is_found(fake_kernel, state_file) -> None:
    options = {"able": _able(netem="no"), "in_path": NoLineHere()}
    assert _shaper(fake_kernel, state_file, leaf="auto", **options).set(parse_links(LINKS))["backend"] == (
        "bs-htb-tbf"
    )
    for leaf, links in (("line", LINKS[0]), ("auto", IMPAIRED)):
        shaper = _shaper(fake_kernel, StateFile(state_file.path.with_name("other")), leaf=leaf, **options)
        with pytest.raises(RefusedError, match="eth0 is no Ethernet interface"):
            shaper.set(parse_links([links]))


@pytest.mark.parametrize("on", ["eth0", "tblinkd3"])
def test_classes_that_somebody_took_away_are_told_and_made_again_by_the_next_set(
    fake_kernel, state_file, on: str
) -> None:
    shaper = _shaper(fake_kernel, state_file)
    shaper.set(parse_links(LINKS))
    fake_kernel.there = [item for item in fake_kernel.there if getattr(item, "on", "") != on]
    for ask in (shaper.show, lambda: shaper.sample(0.0)):
        with pytest.raises(LinkdError, match=r"the class of a's \w+link is gone: .* set the links again"):
            ask()
    assert shaper.set(parse_links(LINKS))["changed"] > 0
    assert len(_leaves(fake_kernel)) == 6
    assert shaper.show()["links"][0]["uplink"]["bytes"] == 0
