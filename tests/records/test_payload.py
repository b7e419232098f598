from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import InputError
from testbed.records import read_payload_records
from testbed.records.schema import TABLES
from testbed.records.writer import arrow_table

STARTED = 1_700_000_000.0


def put(folder: Path, name: str, *records: dict[str, Any] | str) -> None:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / name).write_text("".join(f"{line}\n" for line in lines))


CLOCK = {"t_s": STARTED + 4.25, "device": "nano", "offset_s": STARTED - 77.0, "rtt_ms": 0.2}


def test_times_become_seconds_since_the_start_and_all_else_stays(tmp_path: Path) -> None:
    put(tmp_path, "clocks.jsonl", CLOCK)
    (row,) = read_payload_records(tmp_path, "run-1", "t001", STARTED)["clocks"]
    assert row == {"t_s": 4.25, "device": "nano", "offset_s": STARTED - 77.0, "rtt_ms": 0.2}


def test_rows_get_their_trial_and_fit_their_table(tmp_path: Path, rows: dict[str, dict[str, Any]]) -> None:
    for table in ("requests", "tokens", "dispatches"):
        record = {key: value for key, value in rows[table].items() if key != "trial"}
        put(tmp_path, f"{table}.jsonl", record, record | {"trial": "t001", "run": "run-1"})
    tables = read_payload_records(tmp_path, "run-1", "t001", STARTED)
    for table, listed in tables.items():
        assert [row["trial"] for row in listed] == ["t001", "t001"]
        assert arrow_table(TABLES[table], listed).num_rows == 2


def test_files_that_are_not_there_give_no_table(tmp_path: Path) -> None:
    put(tmp_path, "clocks.jsonl", CLOCK)
    (tmp_path / "tokens.jsonl").touch()
    tables = read_payload_records(tmp_path, "run-1", "t001", STARTED)
    assert set(tables) == {"clocks", "tokens"}
    assert tables["tokens"] == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{half", "clocks.jsonl:2: expected one JSON object"),
        ("[1]", "clocks.jsonl:2: expected one JSON object"),
        (CLOCK | {"rtt_ms": "slow"}, "clocks.jsonl:2: rtt_ms: expected float64, found 'slow'"),
        (CLOCK | {"rtt_ms": True}, "clocks.jsonl:2: rtt_ms: expected float64, found True"),
        (CLOCK | {"rtt_ms": None}, "clocks.jsonl:2: rtt_ms: expected float64, found none"),
        (CLOCK | {"rtt": 1}, "clocks.jsonl:2: rtt: no such column"),
        (CLOCK | {"run": "run-2"}, "clocks.jsonl:2: run: expected 'run-1', found 'run-2'"),
    ],
)
def test_a_wrong_line_is_named_with_its_column(
    tmp_path: Path, record: dict[str, Any] | str, message: str
) -> None:
    put(tmp_path, "clocks.jsonl", CLOCK, record)
    with pytest.raises(InputError) as caught:
        read_payload_records(tmp_path, "run-1", "t001", STARTED)
    assert message in str(caught.value)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_payload_records(tmp_path / "none", "run-1", "t001", STARTED)
