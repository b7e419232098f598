from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.linkd.errors import LinkdError
from payloads.linkd.found import TC_INGRESS, TC_ROOT, Found, FoundQdisc, refusal, same_as_found
from payloads.linkd.plan import ROOT_HANDLE
from payloads.linkd.state import State, StateFile


def _root(kind: str, handle: int = 0) -> FoundQdisc:
    return FoundQdisc(kind, handle, TC_ROOT, "")


PFIFO_BELOW_MQ = FoundQdisc("pfifo_fast", 0, 0x1, "")

handles = st.integers(0, 0xFFFFFFFF)
qdiscs = st.builds(FoundQdisc, st.sampled_from(["pfifo", "fq"]), handles, handles, st.binary().map(bytes.hex))


@pytest.mark.parametrize(
    "qdiscs",
    [
        [_root("noqueue")],
        [_root("pfifo_fast")],
        [_root("fq_codel", 0x80010000)],
        [_root("mq"), PFIFO_BELOW_MQ],
        [_root("mq", 0x80040000), PFIFO_BELOW_MQ],
    ],
)
def test_what_can_be_put_back_is_taken(qdiscs: list[FoundQdisc]) -> None:
    assert refusal(Found("eth0", tuple(qdiscs))) is None


@pytest.mark.parametrize(
    ("qdiscs", "filters", "words"),
    [
        ([], 0, "no queueing discipline"),
        ([_root("noop")], 0, "down"),
        ([_root("htb", 0x10000)], 0, "htb 1: as its root"),
        ([_root("netem", 0x10000)], 0, "netem 1: as its root"),
        ([_root("htb", ROOT_HANDLE)], 0, "linkd's own"),
        (
            [_root("tbf", 0x10000), FoundQdisc("pfifo", 0x20000, 0x10001, "")],
            0,
            "pfifo 2: below its root tbf 1:",
        ),
        ([_root("mq", 0x10000), FoundQdisc("fq", 0x20000, 0x10001, "")], 0, "fq 2: below its root mq 1:"),
        ([_root("noqueue"), FoundQdisc("ingress", 0xFFFF0000, TC_INGRESS, "")], 0, "ingress hook"),
        ([_root("noqueue"), FoundQdisc("clsact", 0xFFFF0000, TC_INGRESS, "")], 0, "clsact hook"),
        ([_root("fq_codel")], 2, "filters"),
        ([FoundQdisc("pfifo", 0x10000, TC_ROOT, "", ("size table",))], 0, "size table"),
    ],
)
def test_what_cannot_be_put_back_is_refused(qdiscs: list[FoundQdisc], filters: int, words: str) -> None:
    reason = refusal(Found("eth0", tuple(qdiscs), filters))
    assert reason is not None
    assert words in reason


@given(st.lists(qdiscs))
def test_the_state_file_gives_back_what_was_found(found: list[FoundQdisc]) -> None:
    before = Found("eth0", tuple(found))
    after = Found.from_json(json.loads(json.dumps(before.as_json())))
    assert after == before
    assert same_as_found(before, after)


def test_the_state_file(tmp_path) -> None:
    file = StateFile(tmp_path / "new" / "state.json")
    assert file.read() is None
    state = State(Found("eth0", (_root("noqueue"),)), "tblinkd3", "boot")
    file.write(state)
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.read() == state
    # Whoever could open the lock could keep everybody from putting things back.
    with file.lock():
        assert {path.stat().st_mode & 0o77 for path in file.path.parent.iterdir()} == {0}
    file.path.with_name("other.lock").mkdir()
    with pytest.raises(LinkdError, match="cannot be opened"), StateFile(file.path.with_name("other")).lock():
        pass
    with file.lock(), pytest.raises(LinkdError, match="another linkd"), file.lock(wait_s=0):
        pass
    file.remove()
    file.remove()
    assert file.read() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "interface": "eth0"}'])
def test_a_broken_state_file_is_named(tmp_path, text: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(LinkdError, match=r"state\.json"):
        StateFile(path).read()
