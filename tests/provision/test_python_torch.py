"""The aspects python and torch: pure plans, findings and the way back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from testbed.config.inventory import Host
from testbed.hosts.facts import Environment, Facts
from testbed.hosts.steps import Command, Put
from testbed.provision.aspect import Change, Finding
from testbed.provision.aspects.python import Python, recipe_of
from testbed.provision.aspects.torch import Torch, torch_recipe

JP6 = "https://wheels.example/jp6"
PYTHON, TORCH = Python(), Torch()


def device(**changes: Any) -> Host:
    settings = {"name": "nano", "role": "device", "address": "x", "user": "nvidia"}
    return Host.model_validate(settings | changes)


def facts(host: Host, **changes: Any) -> Facts:
    """Return the facts of a device whose environment is as it should be, with torch on its GPU."""
    source = host.torch.source("6.2")
    about = {
        "version": "3.10.12",
        "modules": {"torch": "2.5.0"},
        "recipe": recipe_of(host),
        "torch_recipe": torch_recipe(source) if source else None,
        "torch_built": "12.6",
        "torch_right": True,
        "base_version": "3.10.12",
    }
    environment = Environment(**about | changes.pop("environment", {}))
    settings = {"l4t": "36.4.3", "jetpack": "6.2", "machine": "aarch64", "torch": "2.5.0", "cuda": "12.6"}
    return Facts("nano", environment=environment, **settings | {"capability": "8.7"} | changes)


def shells(change: Change) -> list[str]:
    return [step.shell if isinstance(step, Command) else step.line() for step in change.steps]


def findings(aspect: Python | Torch, host: Host, found: Facts) -> list[Finding]:
    changes = [*PYTHON.changes(host, found), *TORCH.changes(host, found)]
    return list(aspect.findings(host, found, changes))


@pytest.fixture
def host() -> Host:
    return device(python={"packages": ["smbus2"], "index": JP6}, board="jetson-orin-nano-8gb")


@pytest.fixture
def sourced() -> Host:
    return device(
        torch={"5": {"wheels": ["https://x/torch-2.1-cp38-cp38-linux_aarch64.whl"]}, "6": {"index": JP6}}
    )


def test_an_environment_as_it_should_be_is_left_alone(host: Host, sourced: Host) -> None:
    for each in (host, sourced):
        assert [*PYTHON.changes(each, facts(each)), *TORCH.changes(each, facts(each))] == []
        assert findings(PYTHON, each, facts(each)) == findings(TORCH, each, facts(each)) == []


def test_an_environment_is_made_from_its_recipe(host: Host) -> None:
    (change,) = PYTHON.changes(host, Facts("nano", environment=Environment(error="not made yet")))
    make, install = shells(change)[:2]
    assert make.endswith('python3 -m venv --clear --system-site-packages "$HOME/.testbed/venv"')
    assert install.endswith(f"--index-url {JP6} smbus2")
    assert isinstance(change.steps[-1], Put)  # the note comes last: what was cut off before is made anew
    assert (change.before, change.recorded) == ("none", {"there": False})


def test_an_environment_is_made_anew_when_its_recipe_changes(host: Host) -> None:
    other = device(python={"packages": ["smbus2==0.5"], "index": JP6})
    (change,) = PYTHON.changes(other, facts(host))
    assert (change.before, change.after) == (
        f"python3 with smbus2 from {JP6}",
        f"python3 with smbus2==0.5 from {JP6}",
    )
    assert change.recorded == {"there": True}


def test_an_environment_of_ones_own_is_never_touched(host: Host) -> None:
    own = device(python={"manage": False, "interpreter": "/opt/py"}, torch={"any": {"index": JP6}})
    broken = facts(own, environment={"error": "/opt/py: not found"})
    assert [*PYTHON.changes(own, broken), *TORCH.changes(own, broken)] == []
    (finding,) = findings(PYTHON, own, broken)
    assert (finding.level, finding.text) == ("failure", "/opt/py: not found")
    assert "python.interpreter" in finding.hint


def test_only_an_environment_that_was_made_goes_again(host: Host) -> None:
    found = facts(host)
    (step,) = PYTHON.undo(host, found, {"there": False})
    assert step.line() == 'nano: rm -rf "$HOME/.testbed/venv"'
    assert list(PYTHON.undo(host, found, {"there": True})) == []


def test_torch_comes_from_the_source_of_its_jetpack_alone(sourced: Host) -> None:
    fresh = facts(sourced, environment={"torch_recipe": None, "modules": {}, "errors": {"torch": "no"}})
    (change,) = TORCH.changes(sourced, fresh)
    first, rest = [shell for shell in shells(change) if " pip install" in shell]
    assert first.endswith(f"--no-deps --index-url {JP6} --force-reinstall torch")
    assert rest.endswith("--quiet torch")  # which is there by then: only what it needs is fetched
    (change,) = TORCH.changes(sourced, replace(fresh, jetpack="5.1.2"))
    first = next(shell for shell in shells(change) if " pip install" in shell)
    assert first.endswith("--no-deps --force-reinstall https://x/torch-2.1-cp38-cp38-linux_aarch64.whl")
    assert change.after == "torch-2.1-cp38-cp38-linux_aarch64.whl"
    assert list(TORCH.changes(sourced, replace(fresh, jetpack="7.0"))) == []


def test_versions_in_a_source_do_not_reach_the_general_index() -> None:
    host = device(
        torch={"any": {"find_links": "https://x/page", "packages": ["torch==2.5.0", "torchvision>=0.2,<1"]}}
    )
    (change,) = TORCH.changes(host, facts(host, environment={"torch_recipe": None}))
    first, rest = [shell for shell in shells(change) if " pip install" in shell]
    assert (
        "--no-index --find-links https://x/page --force-reinstall torch==2.5.0 'torchvision>=0.2,<1'" in first
    )
    assert rest.endswith("--quiet torch torchvision")


def test_torch_follows_an_environment_that_is_made_anew(sourced: Host) -> None:
    other = sourced.model_copy(update={"python": sourced.python.model_copy(update={"packages": ("distro",)})})
    assert [change.item for change in PYTHON.changes(other, facts(sourced))] == ["python"]
    assert [change.item for change in TORCH.changes(other, facts(sourced))] == ["torch"]


def test_torch_that_went_missing_is_installed_again(sourced: Host) -> None:
    lost = facts(sourced, environment={"modules": {}, "errors": {"torch": "ModuleNotFoundError: no"}})
    assert [change.item for change in TORCH.changes(sourced, lost)] == ["torch"]


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"environment": {"version": "3.6.9"}}, "failure", "Python 3.6.9 is too old"),
        (
            {"environment": {"modules": {}, "errors": {"torch": "ModuleNotFoundError: no"}}, "torch": None},
            "failure",
            "torch cannot be imported: ModuleNotFoundError: no",
        ),
        ({"environment": {"torch_right": False}}, "failure", "does not compute on the GPU: a product"),
        (
            {"environment": {"torch_right": False, "torch_error": "RuntimeError: no kernel image"}},
            "failure",
            "torch 2.5.0 does not compute on the GPU: RuntimeError: no kernel image",
        ),
        ({"capability": "7.2"}, "failure", "capability 7.2, and a jetson-orin-nano-8gb has 8.7"),
        ({"cuda": None}, "warning", "is built for CUDA 12.6 and finds no GPU: the device runs on its CPU"),
        ({"cuda": None, "environment": {"torch_built": None}}, "note", "the device runs on its CPU"),
    ],
)
def test_what_only_a_person_can_change_is_said_with_a_hint(
    changes: dict[str, Any], level: str, text: str, host: Host
) -> None:
    found = facts(host, **changes)
    (finding,) = [*findings(PYTHON, host, found), *findings(TORCH, host, found)]
    assert finding.level == level
    assert text in finding.text
    assert finding.hint


def test_torch_of_a_board_from_the_general_index_is_warned_of() -> None:
    hosts = [
        device(python={"packages": ["torch==2.5.0"]}),
        device(torch={"any": {"packages": ["torch"]}}),
    ]
    for host in hosts:
        found = facts(host, cuda=None, environment={"torch_built": None})
        warning = findings(TORCH, host, found)[0]
        assert (warning.level, "general index" in warning.text) == ("warning", True)
        assert "`torch: {6: {index: ...}}`" in warning.hint
        # A build that has found the GPU came from somewhere else, whatever the inventory says.
        assert findings(TORCH, host, facts(host)) == []
    # torchvision is not torch.
    other = device(python={"packages": ["torchvision"]})
    assert [
        f.level for f in findings(TORCH, other, facts(other, cuda=None, environment={"torch_built": None}))
    ] == ["note"]


def test_an_interpreter_that_is_too_old_is_said_before_an_environment_is_made(host: Host) -> None:
    fresh = Facts("nano", environment=Environment(error="not made yet", base_version="3.6.9"))
    (finding,) = findings(PYTHON, host, fresh)
    assert (finding.level, finding.text) == ("failure", "Python 3.6.9 is too old; 3.8 or newer is needed")
