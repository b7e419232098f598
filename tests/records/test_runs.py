from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import InputError
from testbed.records import RecordWriter, find_run, list_runs, load_run, read_manifest, write_manifest
from testbed.records.manifest import LOCK_NAME
from testbed.records.outline import outline_of
from testbed.records.schema import TABLES, markdown

CAMPAIGN = """
repeats: 3
policies: [{name: top-2}, {name: top-1}]
scenarios: [{name: even}, {name: weak}]
verify: {tolerance: 0.05}
"""


def make(results: Path, name: str, started: float, **more: Any) -> Path:
    folder = results / name
    write_manifest(folder, {"run": name, "started_unix": started, "state": "completed"} | more)
    return folder


def test_runs_are_listed_newest_first_with_their_trials(tmp_path: Path, rows: dict[str, Any]) -> None:
    make(tmp_path, "old", 10.0)
    folder = make(tmp_path, "new", 20.0, campaign=CAMPAIGN, campaign_name="quick", emulated=True)
    writer = RecordWriter(folder)
    for number, state in enumerate(("completed", "failed", "completed")):
        writer.write_trial(rows["trials"] | {"trial": f"t{number}", "state": state}, {})
    (tmp_path / "not-a-run").mkdir()
    runs = list_runs(tmp_path)
    assert [entry.run for entry in runs] == ["new", "old"]
    assert (runs[0].completed, runs[0].planned, runs[0].campaign, runs[0].emulated) == (2, 12, "quick", True)
    assert runs[1].planned is None
    make(tmp_path, "sim", 30.0, campaign=CAMPAIGN, simulated=True, simulation={"repeats": 1})
    assert [entry.planned for entry in list_runs(tmp_path)] == [4, 12, None]


@pytest.mark.parametrize("wrong", [{"started_unix": "noon"}, {"started_unix": True}, {"inventory": ["bs"]}])
def test_a_manifest_with_wrong_types_is_refused_and_listed(tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = tmp_path / "odd"
    write_manifest(folder, {"run": "odd", "started_unix": 1.0, "state": "completed"} | wrong)
    with pytest.raises(InputError, match=next(iter(wrong))):
        read_manifest(folder)
    assert [entry.state for entry in list_runs(tmp_path)] == ["unreadable"]


def test_names_are_read_as_the_campaign_was() -> None:
    outline = outline_of({"campaign": "policies: [{name: no}, {name: off}]"})
    assert outline.policies == ("no", "off")


def test_a_run_runs_only_while_its_controller_lives(tmp_path: Path) -> None:
    folder = make(tmp_path, "one", 1.0, state="running")
    assert [entry.state for entry in list_runs(tmp_path)] == ["cut off"]
    with (folder / LOCK_NAME).open("w") as lock:
        assert [entry.state for entry in list_runs(tmp_path)] == ["cut off"]
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [entry.state for entry in list_runs(tmp_path)] == ["running"]


def test_a_damaged_run_is_listed_as_such(tmp_path: Path) -> None:
    (make(tmp_path, "bad", 1.0) / "manifest.json").write_text("{")
    (entry,) = list_runs(tmp_path)
    assert entry.state == "unreadable"
    assert "manifest.json" in entry.problem


def test_a_folder_that_may_not_be_entered_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, mine = make(tmp_path, "closed", 2.0), make(tmp_path, "mine", 1.0)
    is_file = Path.is_file

    def entered(path: Path) -> bool:
        if closed in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", entered)
    assert [(entry.run, entry.state) for entry in list_runs(tmp_path)] == [
        ("mine", "completed"),
        ("closed", "unreadable"),
    ]
    assert find_run(tmp_path, "latest") == mine


def test_a_copy_is_listed_by_the_name_that_it_is_found_by(tmp_path: Path) -> None:
    make(tmp_path, "one", 1.0).rename(tmp_path / "kept")
    (entry,) = list_runs(tmp_path)
    assert find_run(tmp_path, entry.run) == tmp_path / "kept"


def test_a_run_is_found_by_name_by_folder_and_as_the_latest(tmp_path: Path) -> None:
    old, new = make(tmp_path, "old", 10.0), make(tmp_path, "new", 20.0)
    assert find_run(tmp_path, "old") == old
    assert find_run(tmp_path / "elsewhere", str(old)) == old
    assert find_run(tmp_path, "latest") == new
    with pytest.raises(InputError, match="no such run") as caught:
        find_run(tmp_path, "odl")
    assert "new, old" in caught.value.hint


def test_a_manifest_is_replaced_whole_and_checked(tmp_path: Path) -> None:
    folder = make(tmp_path, "run", 1.0)
    write_manifest(folder, read_manifest(folder) | {"state": "failed"})
    assert read_manifest(folder)["state"] == "failed"
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    with pytest.raises(InputError, match="missing: state"):
        write_manifest(folder, {"run": "run", "started_unix": 1.0})
    assert read_manifest(folder)["state"] == "failed"
    with pytest.raises(InputError, match="this is no run"):
        read_manifest(tmp_path)


def test_the_outline_of_a_campaign_is_what_its_text_says() -> None:
    outline = outline_of({"campaign": CAMPAIGN})
    assert outline.policies == ("top-2", "top-1")
    assert outline.trials == 12
    assert outline.tolerance == 0.05
    for text in ("", "a: [", "- just\n- a list", None):
        assert outline_of({"campaign": text}).trials is None


def test_devices_come_in_inventory_order_with_those_only_recorded(
    tmp_path: Path, rows: dict[str, Any]
) -> None:
    hosts = {"b": {"role": "device"}, "bs": {"role": "base_station"}, "a": {"role": "device"}}
    folder = make(tmp_path, "run", 1.0, inventory={"hosts": hosts})
    RecordWriter(folder).write("power", "extra", [rows["power"] | {"device": "extra"}])
    assert load_run(folder).devices == ["b", "a", "extra"]


def test_csv_has_all_tables_and_the_energy(tmp_path: Path, rows: dict[str, Any]) -> None:
    folder = make(tmp_path, "run", 1.0)
    RecordWriter(folder).write("clocks", "one", [rows["clocks"]])
    paths = load_run(folder).export_csv(tmp_path / "csv")
    assert {path.stem for path in paths} == {*TABLES, "energy"}
    assert (tmp_path / "csv" / "clocks.csv").read_text() == "t_s,device,offset_s,rtt_ms\n1.5,a,1.5,1.5\n"


def test_the_page_about_records_shows_the_tables_as_declared() -> None:
    page = Path(__file__).parents[2] / "docs" / "records.md"
    assert markdown() in page.read_text(encoding="utf-8")
