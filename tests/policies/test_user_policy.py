"""A policy of the user's own: read from a file, checked with its line, and only that very file is run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from payloads.wdmoe.gating import selector_of
from payloads.wdmoe.user_policy import (
    UserPolicyError,
    check_user_policy,
    follows_links,
    make_user_selector,
    read_user_policy,
)
from testbed.cli.main import app
from testbed.errors import InputError
from testbed.policies import check_selector, random_view
from testbed.policies.resolve import resolve_kind
from testbed.simulate.session import execute, target

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
        ("import sys\nsys.exit(3)\nclass Mine: ...\n", ":2: SystemExit: 3"),
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


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("return 1 / 0", ":3: ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", ":3: SystemExit: 0"),
        ("view.routing.weights[:] = 1", ":3: ValueError: assignment destination is read-only"),
        ("return None", "Mine: in layer 2, step 5: a Selection was expected, not NoneType"),
        (
            "return chosen(view, keep=whole[:1])",
            r"keep: an array \(9, 2\) of kind b was expected, not bool \(1, 2\)",
        ),
        ("return chosen(view, keep=~whole)", "token 0 has none left"),
        ("return chosen(view, index=view.routing.index + 8)", r"expert \d+ was asked for, and there are 8"),
        ("return chosen(view, index=view.routing.index * 0)", r"token 0 asks for one expert twice: \[0, 0\]"),
        ("return chosen(view, weights=view.routing.weights * np.nan)", "weights from nan to nan"),
    ],
)
def test_what_it_does_wrong_at_work_is_said_as_its_own_fault(tmp_path: Path, body: str, problem: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        f"class Mine:\n    def select(self, view):\n        {body}\n"
        "import numpy as np\nfrom payloads.wdmoe.routing import Selection\n"
        "whole = np.ones((9, 2), bool)\n"
        "def chosen(view, index=None, keep=whole, weights=None):\n"
        "    index = view.routing.index if index is None else index\n"
        "    return Selection(index, keep, view.routing.weights if weights is None else weights)\n"
    )
    selector = selector_of({"kind": f"{file}:Mine"})
    view = random_view(np.random.default_rng(3), tokens=9, layer=2, step=5)
    with pytest.raises(UserPolicyError, match=problem) as caught:
        selector.select(view)
    assert str(file) in str(caught.value)


def test_a_choice_in_other_numbers_is_taken_and_what_is_the_routers_stays_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\nfrom payloads.wdmoe.routing import Selection\n"
        "class Mine:\n    def select(self, view):\n        r = view.routing\n"
        "        if view.step:\n            return Selection(r.index, np.ones(r.index.shape, bool), r.weights)\n"
        "        turned = r.index.astype(np.int32)[:, ::-1]\n"
        "        return Selection(turned, np.ones(turned.shape, bool), r.weights[:, ::-1])\n"
    )
    selector = selector_of({"kind": f"{file}:Mine"})
    view = random_view(np.random.default_rng(3), tokens=4)
    same = selector.select(view)
    assert same.index is view.routing.index
    assert same.weights is view.routing.weights
    turned = selector.select(view._replace(step=0))
    assert (turned.index == view.routing.index[:, ::-1]).all()
    assert turned.index.dtype == np.int64
    assert all(array.flags.writeable and array.flags.c_contiguous for array in turned)
    assert getattr(selector, "observe", None) is None


@pytest.mark.parametrize("observe", ["", "    observe = None\n"])
def test_a_policy_that_does_not_learn_is_told_nothing(tmp_path: Path, observe: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import numpy as np\nfrom payloads.wdmoe.gating import finish\n"
        f"class Mine:\n{observe}    def select(self, view):\n"
        "        return finish(view.routing, np.ones(view.routing.index.shape, bool), {})\n"
    )
    settings = {"kind": f"{file}:Mine"}
    assert selector_of(settings).observe is None
    for make in (selector_of, make_user_selector):
        assert [c for c in check_selector(lambda make=make: make(settings), rounds=2) if not c.holds] == []


def test_a_simulation_says_what_a_policy_did_wrong_and_ends_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = EXAMPLE.parents[2]
    (tmp_path / "mine.py").write_text("class Mine:\n    def select(self, view):\n        return 1 / 0\n")
    (tmp_path / "lab.yaml").write_text(
        "lab: big\nhosts:\n"
        "  bs: {role: base_station, address: 10.0.0.1}\n"
        "  one: {role: device, address: 10.0.0.2, board: jetson-agx-orin-64gb}\n"
    )
    (tmp_path / "own.yaml").write_text(
        "campaign: own\ninventory: lab.yaml\nmodel: tiny-mixtral\n"
        f"prompts: {{file: {root}/payloads/prompts/quickstart.jsonl, count: 1, max_new_tokens: 2}}\n"
        "policies:\n  - {name: own, selection: {kind: 'mine.py:Mine'}}\n"
        "scenarios:\n  - name: even\n    links:\n      default: {downlink_mbit: 8, uplink_mbit: 8}\n"
    )
    wanted = target(tmp_path / "own.yaml", tmp_path / "results")
    with pytest.raises(InputError, match=r"mine\.py:3: ZeroDivisionError") as caught:
        execute(wanted, jobs=1, say=lambda _: None)
    assert caught.value.exit_code == 2
    (manifest,) = (tmp_path / "results").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["state"] == "failed"


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
    file.write_text("class Mine:\n    def select(self, view):\n        return view.nothing\n")
    run = CliRunner().invoke(app, ["policy", "check", f"{file}:Mine"])
    assert run.exit_code == 1
    assert run.stdout.count(f"{file}:3: AttributeError: ") == 1  # every check fails so, and it is said once
    run = CliRunner().invoke(app, ["policy", "check", "top-k"])
    assert "did you mean top_k" in str(run.exception)
    run = CliRunner().invoke(app, ["policy", "kinds"])
    assert "top_k  (the baseline of WDMoE" in run.stdout
    # As a campaign file would have it, not as Python writes it.
    assert "replace: true or false; default false." in run.stdout
    assert "None" not in run.stdout
    run = CliRunner().invoke(app, ["policy", "check", "budget"])
    assert str(run.exception) == "tau: expected a share from 0 to 1, and it is missing"
    run = CliRunner().invoke(app, ["policy", "check", str(file)])
    assert isinstance(run.exception, InputError)
    assert "FILE:CLASS" in run.exception.hint


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
    run = CliRunner().invoke(app, ["policy", "check", ":mine", "--json"])
    assert run.exit_code == 1  # its `select` returns nothing
    assert json.loads(run.stdout)["policy"]["kind"] == f"{tmp_path / 'their_policies.py'}:Mine"


def test_kinds_are_resolved_from_the_campaigns_folder(tmp_path: Path) -> None:
    assert resolve_kind("top_k", tmp_path) == "top_k"
    assert resolve_kind("policies/a.py:B", tmp_path) == f"{tmp_path / 'policies/a.py'}:B"
    with pytest.raises(UserPolicyError, match="did you mean top_k"):
        resolve_kind("topk", tmp_path)
