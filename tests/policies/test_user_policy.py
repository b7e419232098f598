"""A policy of the user's own: read from a file, checked with its line, and only that very file is run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from payloads.wdmoe.user_policy import (
    UserPolicyError,
    check_user_policy,
    follows_links,
    make_user_selector,
    read_user_policy,
)
from testbed.cli.main import app
from testbed.policies import check_selector, random_view
from testbed.policies.resolve import resolve_kind

EXAMPLE = Path(__file__).parents[2] / "campaigns/policies/thrifty.py"


def test_the_example_keeps_the_contract_and_drops_what_it_says() -> None:
    settings = {"kind": f"{EXAMPLE}:Thrifty", "share": 0.5, "times": 1.0}
    assert [c for c in check_selector(lambda: make_user_selector(settings)) if not c.holds] == []
    view = random_view(np.random.default_rng(5), tokens=50)
    keep = make_user_selector(settings).select(view).keep
    assert 0 < (~keep).sum() < keep.size
    seconds = view.costs.fixed_s + view.costs.pair_s
    slow = seconds > np.median(seconds)
    assert slow[view.device_of[view.routing.index[~keep]]].all()


def test_settings_reach_the_class_and_unknown_ones_are_named() -> None:
    (line,) = check_user_policy({"kind": f"{EXAMPLE}:Thrifty", "shard": 1})
    assert "unexpected keyword argument 'shard'" in line
    assert "share" in line.partition("it takes")[2]
    (line,) = check_user_policy({"kind": f"{EXAMPLE}:Thrifty", "share": 7})
    assert "share: 0 to 1 was expected, not 7" in line


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f(:\n", ":1: "),
        ("x = 1\n", "has no class Mine; it has no class at all"),
        ("class Yours:\n    pass\n", "there are: Yours"),
        ("\nimport there_is_no_such_module\nclass Mine: ...\n", ":2: ModuleNotFoundError"),
        ("class Mine:\n    pass\n", "no method select"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    (line,) = check_user_policy({"kind": f"{file}:Mine"})
    assert problem in line
    assert str(file) in line


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    def select(self, view): ...\n")
    checked = read_user_policy(file, "Mine").sha256
    make_user_selector({"kind": f"{file}:Mine", "sha256": checked})
    file.write_text("class Mine:\n    def select(self, view): raise SystemExit\n")
    with pytest.raises(UserPolicyError, match="not the file that the campaign was checked with"):
        make_user_selector({"kind": f"{file}:Mine", "sha256": checked})


def test_whether_it_follows_the_links_is_its_own_word(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    follows_links = False\n    def select(self, view): ...\n")
    assert not follows_links({"kind": f"{file}:Mine"})
    assert follows_links({"kind": f"{EXAMPLE}:Thrifty"})


def test_the_command_checks_a_file_and_says_what_failed(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["policy", "check", f"{EXAMPLE}:Thrifty", "--set", "share=0.3", "--json"])
    assert run.exit_code == 0
    said = json.loads(run.stdout)
    assert said["policy"]["share"] == 0.3
    assert all(check["holds"] for check in said["checks"])
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    def select(self, view):\n        return None\n")
    run = CliRunner().invoke(app, ["policy", "check", f"{file}:Mine"])
    assert run.exit_code == 1
    assert "a Selection was expected, not NoneType" in run.stdout
    run = CliRunner().invoke(app, ["policy", "kinds"])
    assert "top_k  (the baseline of WDMoE" in run.stdout


def test_an_installed_entry_point_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_policies.py").write_text("class Mine:\n    def select(self, view): ...\n")
    about = tmp_path / "their_policies-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-policies\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[testbed.policies]\nmine = their_policies:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_kind(":mine", tmp_path) == f"{tmp_path / 'their_policies.py'}:Mine"
    with pytest.raises(UserPolicyError, match=r"no entry point 'yours' .* there are: mine"):
        resolve_kind(":yours", tmp_path)


def test_kinds_are_resolved_from_the_campaigns_folder(tmp_path: Path) -> None:
    assert resolve_kind("top_k", tmp_path) == "top_k"
    assert resolve_kind("policies/a.py:B", tmp_path) == f"{tmp_path / 'policies/a.py'}:B"
    with pytest.raises(UserPolicyError, match="did you mean top_k"):
        resolve_kind("topk", tmp_path)
