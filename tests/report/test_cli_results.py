from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from testbed.cli import results
from testbed.errors import InputError

app = typer.Typer()
app.command()(results.runs)
app.command()(results.report)
app.command()(results.export)


def call(*args: str | Path) -> str:
    answer = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_runs_are_listed(whole_run: Path) -> None:
    assert "12 of 12" in call("runs", "--results", whole_run.parent)
    (entry,) = json.loads(call("runs", "--results", whole_run.parent, "--json"))
    assert (entry["run"], entry["completed"], entry["state"]) == ("synthetic-0001", 12, "completed")


def test_no_runs_are_no_error(tmp_path: Path) -> None:
    assert "no run" in call("runs", "--results", tmp_path / "none")
    assert json.loads(call("runs", "--results", tmp_path, "--json")) == []


def test_a_report_goes_into_the_folder_of_its_run_or_elsewhere(whole_run: Path, tmp_path: Path) -> None:
    printed = call("report", "synthetic-0001", "--results", whole_run.parent).strip()
    assert Path(printed) == whole_run / "report.html"
    assert Path(printed).is_file()
    out, trace = tmp_path / "a" / "r.html", tmp_path / "t.json"
    answer = json.loads(call("report", whole_run, "--out", out, "--trace", trace, "--json"))
    assert answer == {"report": str(out), "trace": str(trace)}
    assert out.is_file()
    assert trace.is_file()


def test_tables_are_exported(whole_run: Path, tmp_path: Path) -> None:
    call("export", "synthetic-0001", "--csv", tmp_path, "--results", whole_run.parent)
    assert (tmp_path / "dispatches.csv").read_text().startswith("trial,request,step,layer,device,")
    assert len((tmp_path / "energy.csv").read_text().splitlines()) == 1 + 12 * 4


def test_an_unknown_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        call("report", "none", "--results", tmp_path)


def test_the_verbs_are_known_without_pandas_or_plotly() -> None:
    code = "import sys, testbed.cli.results as r; print({'pandas', 'plotly', 'pyarrow', 'torch'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
