"""Removing objects: what goes, in which order, and what never does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.artifacts import collect as collecting
from payloads.artifacts.collect import choose, collect, describe, in_use, is_claimed, verify
from payloads.artifacts.marks import Mark, guarded, marked
from payloads.artifacts.store import ArtifactError, Held, Store
from payloads.services.lease import write_lease
from tests.payloads.artifacts.conftest import put

ROOT = Path(__file__).parents[3]
DAY_S = 86400.0

objects = st.lists(
    st.builds(
        Held, st.text("abcdef0123", min_size=1, max_size=3), st.integers(0, 100), st.floats(0, 50, width=16)
    ),
    unique_by=lambda each: each.digest,
    max_size=12,
)


@given(objects, st.data(), st.none() | st.floats(0, 60), st.none() | st.integers(0, 600))
def test_only_what_must_go_goes_and_nothing_in_use(held, data, age, keep):
    used = {each.digest: "worker" for each in held if data.draw(st.booleans())}
    gone = {each.digest: each for each in choose(held, used, 50.0, older_than_s=age, keep_bytes=keep)}
    assert not gone.keys() & used.keys()
    stays = [each for each in held if each.digest not in gone]
    idle = [each for each in stays if each.digest not in used]
    left = sum(each.size_bytes for each in stays)
    for each in held:
        too_old = age is not None and 50.0 - each.used_unix > age and each.digest not in used
        assert not too_old or each.digest in gone
    if keep is not None:
        assert left <= keep or not idle
        # No more than needed: the one that was used last of those that went for space would not have fitted.
        for_space = [each for each in held if each.digest in gone and gone[each.digest].reason == "space"]
        if for_space:
            last = max(for_space, key=lambda each: (each.used_unix, each.digest))
            assert left + last.size_bytes > keep
            assert all(each.used_unix >= last.used_unix for each in idle)
    else:
        assert all(removal.reason == "age" for removal in gone.values())
    if age is None and keep is None:
        assert not gone


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TESTBED_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def store(home) -> Store:
    return Store()


def an_object(store: Store, content: bytes, unused_s: float = 0.0) -> str:
    digest, size = put(store, content)
    assert store.is_present(digest, size)
    then = time.time() - unused_s
    os.utime(store.path(digest), (then, then))
    store.distrust(digest)
    assert store.is_present(digest, size)
    os.utime(store.folder / f"{digest}.ok", (then, then))
    return digest


def digests(store: Store) -> set[str]:
    return {each.digest for each in store.held()}


def test_by_age_and_what_is_wanted_again_is_young_again(store):
    old, young = an_object(store, b"old", 40 * DAY_S), an_object(store, b"young", 20 * DAY_S)
    again = an_object(store, b"again", 40 * DAY_S)
    assert store.is_present(again, 5)
    said = collect(store, older_than_s=30 * DAY_S)
    assert [one["digest"] for one in said["removed"]] == [old]
    assert digests(store) == {young, again}
    assert not list(store.folder.glob(f"{old}*"))


def test_by_space_the_longest_unused_goes_first_and_a_dry_run_removes_nothing(store):
    names = [an_object(store, bytes([days]) * 100, days * DAY_S) for days in (3, 1, 2)]
    said = collect(store, keep_bytes=150, dry_run=True)
    assert [one["digest"] for one in said["removed"]] == [names[0], names[2]]
    assert len(digests(store)) == 3
    assert collect(store, keep_bytes=150)["kept_bytes"] == 100
    assert digests(store) == {names[1]}


def test_what_is_served_counts_as_used(serving, device):
    base, source = serving("base")
    digest = an_object(base, b"asked for", 9 * DAY_S)
    from payloads.artifacts.pull import Puller, pull_all
    from payloads.artifacts.wanted import Wanted

    pull_all(device, [Wanted(digest, 9)], Puller([source], device))
    assert base.held()[0].used_unix > time.time() - DAY_S


def list_of(home: Path, *names: str, unused_s: float = DAY_S) -> None:
    path = home / "shards.json"
    path.write_text(json.dumps({"experts": [{"object": name, "bytes": 1} for name in names]}))
    os.utime(path, (time.time() - unused_s,) * 2)


def test_a_list_protects_while_somebody_has_the_host_and_not_after(home, store):
    kept, gone = an_object(store, b"kept", 90 * DAY_S), an_object(store, b"gone", 90 * DAY_S)
    list_of(home, kept)
    (home / "manifest.json").write_text("[]")  # a file of another kind, however broken, stops nobody
    os.utime(home / "manifest.json", (1, 1))
    (home / "services").mkdir()
    write_lease(60.0)
    assert collect(store, keep_bytes=0)["in_use"] == 1
    assert digests(store) == {kept}
    write_lease(-60.0)
    assert not is_claimed()
    collect(store, keep_bytes=0)
    assert digests(store) == set()
    assert gone not in digests(store)


def test_a_list_that_came_a_moment_ago_protects_before_anybody_holds_the_host(home, store):
    kept = an_object(store, b"kept", 90 * DAY_S)
    list_of(home, kept, unused_s=0.0)
    assert collect(store, keep_bytes=0)["removed"] == []


def test_a_reservation_protects_what_its_owners_lists_name(home, store, monkeypatch):
    from payloads.services.shared import Record, claim_from, here_and_now

    kept = an_object(store, b"kept", 90 * DAY_S)
    list_of(home, kept)
    claim = claim_from({"owner": "ann@laptop", "purpose": "a paper"}, here_and_now(), 60.0)
    monkeypatch.setattr("payloads.services.shared.read_record", lambda: Record(reserved=claim))
    assert collect(store, keep_bytes=0)["removed"] == []


def test_a_mark_protects_for_as_long_as_its_process_lives(store):
    digest = an_object(store, b"held", 90 * DAY_S)
    script = (
        "import sys; from pathlib import Path; from payloads.artifacts.marks import Mark\n"
        f"mark = Mark('worker', [{digest!r}], Path({str(store.folder)!r})); print('up', flush=True)\n"
        "sys.stdin.read()"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes) as process:
        assert process.stdout.readline() == b"up\n"
        assert describe(store)["in_use"] == 1
        assert collect(store, keep_bytes=0)["removed"] == []
        process.kill()
    assert collect(store, keep_bytes=0)["removed_bytes"] == 4
    assert not list((store.folder / ".marks").glob("*.json"))


def test_two_marks_of_one_process_and_their_end(store):
    first, second = Mark("worker", ["a"], store.folder), Mark("worker", ["a", "b"], store.folder)
    with guarded(store.folder) as folder:
        assert marked(folder) == {"a": "worker", "b": "worker"}
    second.close()
    second.close()
    with guarded(store.folder) as folder:
        assert marked(folder) == {"a": "worker"}
        first.close()
        assert marked(folder) == {}
    with pytest.raises(ValueError, match="names no mark"):
        Mark("../worker", [], store.folder)


def test_nothing_is_removed_while_objects_come_in(store):
    an_object(store, b"old", 90 * DAY_S)
    with store.changing():
        for attempt in (lambda: collect(store, keep_bytes=0), lambda: verify(store)):
            with pytest.raises(ArtifactError, match="objects are coming in just now"):
                attempt()
    assert len(digests(store)) == 1


def test_beginnings_go_after_a_day(store):
    for name, age_s in (("a" * 64, 2 * DAY_S), ("b" * 64, 0.5 * DAY_S)):
        store.part(name).write_bytes(b"beginning")
        os.utime(store.part(name), (time.time() - age_s,) * 2)
    said = collect(store, older_than_s=DAY_S)
    assert (said["parts"], said["parts_bytes"]) == (1, 9)
    assert [path.name[0] for path in store.parts()] == ["b"]


def test_verify_finds_and_removes_a_flipped_bit_that_size_and_time_do_not_show(store):
    whole, damaged = an_object(store, b"whole"), an_object(store, b"damaged")
    path, before = store.path(damaged), store.path(damaged).stat()
    path.write_bytes(b"damageD")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.is_present(damaged, 7)
    assert verify(store, dry_run=True)["damaged"] == [damaged]
    assert len(digests(store)) == 2
    assert verify(store)["damaged"] == [damaged]
    assert digests(store) == {whole}
    assert verify(store)["damaged"] == []


def test_what_a_list_names_is_in_use_only_where_the_host_is_claimed(home, store):
    list_of(home, "c" * 64)
    assert in_use({"a": "worker"}, claimed=False) == {"a": "worker"}
    assert in_use({"a": "worker"}, claimed=True) == {"a": "worker", "c" * 64: "shards"}


def test_a_lease_that_cannot_be_read_protects(home, store, monkeypatch):
    from payloads.services.layout import ServiceError

    def broken() -> None:
        raise ServiceError("cannot be read")

    monkeypatch.setattr("payloads.services.shared.read_record", broken)
    assert collecting.is_claimed()


def test_the_commands(home, store):
    an_object(store, b"old", 40 * DAY_S)
    environment = dict(os.environ, PYTHONPATH=str(ROOT))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "payloads.artifacts", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert json.loads(run("show").stdout)["objects"] == 1
    assert json.loads(run("verify").stdout)["damaged"] == []
    assert run("gc").stderr == "gc: --older-than or --keep-bytes was expected\n"
    assert json.loads(run("gc", "--older-than", "86400", "--dry-run").stdout)["removed_bytes"] == 3
    assert json.loads(run("gc", "--older-than", "86400").stdout)["kept"] == 0
    assert run("gc", "--older-than", "-1").returncode == 2


@pytest.mark.parametrize(
    "words", [["show"], ["verify", "--dry-run"], ["gc", "--keep-bytes", "0", "--dry-run"]]
)
def test_a_look_at_a_host_without_objects_leaves_nothing_there(tmp_path, words):
    home = tmp_path / "home"
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TESTBED_HOME=str(home))
    command = [sys.executable, "-m", "payloads.artifacts", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert not any(
        json.loads(done.stdout).get(key) for key in ("objects", "removed", "kept", "in_use", "parts")
    )
    assert not home.exists()
