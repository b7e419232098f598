from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from testbed.errors import InputError, TestbedError
from testbed.records import RecordWriter, load_run, write_manifest
from testbed.records.run import read_table
from testbed.records.schema import TABLES, Table
from testbed.records.writer import arrow_table

Rows = dict[str, dict[str, Any]]


def open_run(folder: Path) -> RecordWriter:
    write_manifest(folder, {"run": folder.name, "started_unix": 0.0, "state": "running"})
    return RecordWriter(folder)


@pytest.mark.parametrize("name", TABLES)
def test_every_table_comes_back_as_it_was_written(tmp_path: Path, rows: Rows, name: str) -> None:
    open_run(tmp_path).write(name, "one", [rows[name]])
    frame = getattr(load_run(tmp_path), name)
    assert frame.to_dict("records") == [rows[name]]


def test_an_empty_run_has_all_tables_with_the_types_of_a_full_one(tmp_path: Path, rows: Rows) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    open_run(empty)
    writer = open_run(full)
    for name, row in rows.items():
        writer.write(name, "one", [row])
    for (name, nothing), (_, something) in zip(
        load_run(empty).tables(), load_run(full).tables(), strict=True
    ):
        assert len(nothing) == 0
        assert nothing.dtypes.to_dict() == something.dtypes.to_dict(), name


def test_missing_values_keep_the_type_of_their_column(tmp_path: Path, rows: Rows) -> None:
    probe = rows["links"]
    setting = {key: value for key, value in probe.items() if not TABLES["links"].column(key).nullable}
    open_run(tmp_path).write("links", "one", [probe, setting])
    links = load_run(tmp_path).links
    assert str(links["message_bytes"].dtype) == "Int64"
    assert links["message_bytes"].isna().tolist() == [False, True]
    assert links["ok"].isna().tolist() == [False, True]


def test_parts_are_read_together_in_the_order_of_running(tmp_path: Path, rows: Rows) -> None:
    writer = open_run(tmp_path)
    for order in (2, 0, 1):
        writer.write_trial(
            rows["trials"] | {"trial": f"t{order}", "order": order}, {"requests": [rows["requests"]]}
        )
    run = load_run(tmp_path)
    assert run.trials["trial"].tolist() == ["t0", "t1", "t2"]
    assert len(run.requests) == 3


def test_a_repeated_trial_replaces_what_it_wrote_before(tmp_path: Path, rows: Rows) -> None:
    writer = open_run(tmp_path)
    writer.write_trial(rows["trials"] | {"state": "failed"}, {})
    writer.write_trial(rows["trials"] | {"state": "completed"}, {"tokens": [rows["tokens"]] * 2})
    writer.write_trial(rows["trials"] | {"state": "completed"}, {"tokens": [rows["tokens"]]})
    run = load_run(tmp_path)
    assert run.trials["state"].tolist() == ["completed"]
    assert len(run.tokens) == 1


def test_what_was_cut_off_while_writing_is_not_read(tmp_path: Path, rows: Rows) -> None:
    path = open_run(tmp_path).write("power", "one", [rows["power"]])
    assert path is not None
    path.with_name("two.parquet.part").write_bytes(path.read_bytes()[:20])
    assert len(load_run(tmp_path).power) == 1


def test_the_row_of_a_trial_is_written_last(tmp_path: Path, rows: Rows) -> None:
    writer = open_run(tmp_path)
    with pytest.raises(InputError):
        writer.write_trial(rows["trials"], {"requests": [rows["requests"]], "tokens": [{"position": 1}]})
    run = load_run(tmp_path)
    assert run.trials.empty
    assert len(run.requests) == 1


def test_frames_are_taken_as_rows_are(tmp_path: Path, rows: Rows) -> None:
    frame = pd.DataFrame([rows["power"]] * 3)
    open_run(tmp_path).write("power", "one", frame)
    assert load_run(tmp_path).power.to_dict("records") == [rows["power"]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mw": "much"}, "mw: expected float64"),
        ({"mw": None}, "mw: expected a value"),
        ({"t_s": float("nan")}, "t_s: expected a value"),
        ({"watt": 3}, "no such column: watt"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(rows: Rows, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        arrow_table(TABLES["power"], [rows["power"] | change])


def test_a_part_cannot_leave_its_folder(tmp_path: Path, rows: Rows) -> None:
    with pytest.raises(TestbedError, match="cannot name a part"):
        open_run(tmp_path).write("power", "../elsewhere", [rows["power"]])


def test_a_column_that_an_older_run_has_not_is_null(tmp_path: Path, rows: Rows) -> None:
    writer = open_run(tmp_path)
    writer.write("requests", "one", [rows["requests"]])
    new = TABLES["requests"].columns[0]
    later = Table("requests", "", (*TABLES["requests"].columns, type(new)("later", "float64", "", "", True)))
    assert read_table(tmp_path, later)["later"].isna().all()
    wrong = Table("requests", "", (*TABLES["requests"].columns, type(new)("later", "float64", "", "", False)))
    with pytest.raises(TestbedError, match="older than this testbed"):
        read_table(tmp_path, wrong)


def test_a_run_of_the_first_schema_still_loads(tmp_path: Path, rows: Rows) -> None:
    writer = open_run(tmp_path)
    later = {
        "links": ["cause", "why", "state", "delay_ms"],
        "traffic": ["retransmitted_bytes"],
        "trials": ["links_error"],
    }
    for name, columns in later.items():
        path = writer.write(name, "one", [rows[name]])
        assert path is not None
        pq.write_table(pq.ParquetFile(path).read().drop_columns(columns), path)
    run = load_run(tmp_path)
    for name, columns in later.items():
        frame = getattr(run, name)
        assert len(frame) == 1
        assert frame[columns].isna().all(axis=None), name
    assert run.throughput.empty
    assert run.radio.empty
    assert len(list(run.export_csv(tmp_path / "csv"))) == len(TABLES) + 1


def test_damaged_parts_are_named(tmp_path: Path, rows: Rows) -> None:
    path = open_run(tmp_path).write("power", "one", [rows["power"]])
    assert path is not None
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"one\.parquet: cannot be read"):
        load_run(tmp_path)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"t_s": st.floats(allow_nan=False), "device": st.text(), "key": st.text()},
            optional={"value": st.none() | st.floats(allow_nan=False)},
        ),
        min_size=1,
    )
)
def test_any_text_and_number_survives(listed: list[dict[str, Any]]) -> None:
    data = arrow_table(TABLES["boards"], listed)
    assert data.to_pylist() == [{"value": None} | row for row in listed]
