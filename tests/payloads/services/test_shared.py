"""The host's lease as a record: how long it stands, whom it refuses, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import pwd
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.services import shared
from payloads.services.hold import lost_to
from payloads.services.keeper import due_notes, owner_after_boot
from payloads.services.layout import ServiceError
from payloads.services.processes import boot_id, start_ticks
from payloads.services.shared import Claim, Now, Record, left_s, standing, who_refuses

S = 1_000_000_000
HERE = Now("boot-1", 1000 * S, 1_800_000_000.0)


def claim(owner="ann@laptop", for_s=3600.0, pid=0, ticks=0, boot="boot-1"):
    return Claim(
        owner=owner,
        purpose="measure",
        token=f"token of {owner}",
        user="nvidia",
        since_unix=HERE.unix,
        since_ns=HERE.ns,
        until_unix=HERE.unix + for_s,
        until_ns=HERE.ns + int(for_s * S),
        boot=boot,
        pid=pid,
        ticks=ticks,
    )


def living(owner="ann@laptop"):
    """What holds a host: this very process."""
    return claim(owner, 0.0, os.getpid(), start_ticks(os.getpid()), boot_id())


def test_a_reservation_lasts_by_a_clock_that_nobody_can_set():
    later = Now("boot-1", HERE.ns + 600 * S, HERE.unix - 50 * 365 * 86400)  # the calendar was set meanwhile
    assert left_s(claim(), later) == 3000.0


def test_after_a_reboot_the_calendar_counts():
    assert left_s(claim(), Now("boot-2", 30 * S, HERE.unix + 600)) == 3000.0
    assert left_s(claim(), Now("boot-2", 30 * S, HERE.unix + 3601)) == -1.0


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(-(10**9), 10**9))
def test_a_board_that_wakes_up_in_the_past_is_not_reserved_for_ever(for_s, up_s, calendar_off_s):
    now = Now("boot-2", int(up_s * S), HERE.unix + calendar_off_s)
    counted_s = calendar_off_s if calendar_off_s >= 0 else up_s
    assert left_s(claim(for_s=for_s), now) == pytest.approx(for_s - counted_s, abs=1e-3)


def test_what_is_over_or_dead_does_not_stand():
    over = Now("boot-1", HERE.ns + 3601 * S, HERE.unix)
    dead = claim("bob@desk", pid=os.getpid(), ticks=1, boot=boot_id())  # another process had this number
    record = Record(reserved=claim(), held=dead, keeper=dead)
    assert standing(record, over) == Record()
    assert standing(record, HERE) == Record(reserved=claim())
    assert standing(Record(held=living()), HERE) == Record(held=living())


@pytest.mark.parametrize(
    ("record", "owner", "to_hold", "by"),
    [
        (Record(), "ann@laptop", True, None),
        (Record(reserved=claim()), "ann@laptop", True, None),
        (Record(reserved=claim()), "bob@desk", True, claim()),
        (Record(reserved=claim()), "bob@desk", False, claim()),
        (Record(held=living()), "ann@laptop", True, living()),  # one at a time, also of one's own
        (Record(held=living()), "ann@laptop", False, None),  # but one's own run may be reserved under
        (Record(held=living()), "bob@desk", False, living()),
        (Record(keeper=living()), "bob@desk", True, living()),  # the host is about to be put back
        (Record(keeper=living()), "ann@laptop", True, None),
    ],
)
def test_whom_a_lease_refuses(record, owner, to_hold, by):
    assert who_refuses(record, owner, to_hold=to_hold) == by


@pytest.mark.parametrize("key", ["reserved", "held", "keeper"])
def test_whose_keeper_it_is_at_boot(key):
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert owner_after_boot(Record()) == user
    assert owner_after_boot(Record(**{key: claim()._replace(user=user)})) == "ann@laptop"
    assert owner_after_boot(Record(**{key: claim()._replace(user=f"not {user}")})) is None


def test_why_a_host_is_lost():
    mine, reserved = living(), claim()
    assert lost_to(Record(held=mine), mine, was_reserved=False) == ""
    assert lost_to(Record(held=mine, reserved=reserved), mine, was_reserved=True) == ""
    assert "the reservation of ann@laptop ended" in lost_to(Record(held=mine), mine, was_reserved=True)
    taken = Record(held=mine, reserved=claim("bob@desk"))
    assert lost_to(taken, mine, was_reserved=True) == "taken over by bob@desk (measure)"
    assert "removed by hand" in lost_to(Record(), mine, was_reserved=False)


def test_what_is_put_back_when():
    notes = ["run", "reservation"]
    assert due_notes(notes, Record(held=living(), reserved=claim()), "ann@laptop") == []
    assert due_notes(notes, Record(reserved=claim()), "ann@laptop") == ["run"]  # its run was killed
    assert due_notes(notes, Record(), "ann@laptop") == notes
    assert (
        due_notes(notes, Record(held=living("bob@desk"), reserved=claim("bob@desk")), "ann@laptop") == notes
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TESTBED_HOME", str(tmp_path / "home"))
    return tmp_path


def write(record):
    with shared.changed_record() as changing:
        changing[0] = record


def test_a_record_is_read_back_and_one_of_nothing_leaves_nothing(home):
    record = Record(reserved=claim(), held=living(), asked="one")
    write(record)
    assert shared.read_record() == record
    file = home / "home-shared/lease.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o777  # every account of the host takes part
    write(Record())
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 60000, '{"reserved": 3}', '{"held": {"owner": "x"}}', '{"asked": 1}']
)
def test_a_record_that_is_none_is_named(home, text):
    write(Record(reserved=claim()))
    file = home / "home-shared/lease.json"
    file.write_text(text)
    with pytest.raises(ServiceError, match=r"lease\.json cannot be read: .*remove it"):
        shared.read_record()


@pytest.mark.parametrize(
    "wrong",
    [
        {"until_ns": -1},
        {"since_ns": 1 << 63},
        {"pid": 1 << 99},
        {"until_unix": 1e300},
        {"since_unix": float("nan")},
    ],
)
def test_numbers_that_could_not_be_told_are_none(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: .* was expected"):
        shared.record_from_json({"reserved": claim()._replace(**wrong)._asdict()})


def test_long_words_do_not_make_a_record_unreadable(home):
    write(Record(reserved=shared.claim_from({"owner": "a@b", "purpose": "x" * 10**6}, HERE, 60.0)))
    assert len(shared.read_record().reserved.purpose) == 200


def test_a_folder_that_was_made_half_is_opened_to_all(home):
    (home / "home-shared").mkdir(0o700)
    write(Record(reserved=claim()))
    assert stat.S_IMODE((home / "home-shared").stat().st_mode) == 0o777


def test_a_link_in_the_place_of_the_record_is_not_followed(home):
    write(Record(reserved=claim()))
    file, other = home / "home-shared/lease.json", home / "other"
    other.write_text(file.read_text())
    file.unlink()
    file.symlink_to(other)
    with pytest.raises(ServiceError, match="cannot be read"):
        shared.read_record()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from([*Claim._fields, *Record._fields]), inner, max_size=12),
                    max_leaves=20))  # fmt: skip
def test_anything_that_others_may_write_is_a_record_or_refused(value):
    try:
        record = shared.record_from_json(value)
    except ValueError:
        return
    for one in (record.reserved, record.held, record.keeper):
        assert one is None or isinstance(one.owner, str)
    json.dumps(shared.described(record.reserved, HERE)) if record.reserved else None
