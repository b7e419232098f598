"""`testbed bundle` for a board that answers, with a stand-in for pip."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from testbed.cli import main
from testbed.errors import ConnectError, TestbedError
from testbed.hosts import facts as facts_module
from testbed.hosts.facts import Environment, Facts, Jtop
from testbed.hosts.fake import FakeTransport
from testbed.hosts.fleet import Fleet
from testbed.provision import bundle_make
from testbed.provision.bundle import MANIFEST

LAB = """\
lab: shelf
hosts:
  bs: {role: base_station, address: 10.0.0.1}
  nano: {role: device, address: 10.0.0.2, python: {packages: [smbus2], system_packages: SEES}}
"""
FRESH = Environment(error="not made yet", base_version="3.10.12", glibc="2.35")
JTOP = Jtop("jtop", service_version="4.3.2")
NANO = Facts("nano", machine="aarch64", jetpack="6.2", environment=FRESH, jtop=JTOP)

Run = Callable[[bool], tuple[int, str]]


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Make a bundle where there is no wheel of jetson-stats; return the exit code and what was said."""

    def ask(host: object, transport: FakeTransport, **_: object) -> Facts:
        if transport.host == "bs":
            raise ConnectError("bs", "it is off")
        return NANO

    def pip(_markers: Mapping[str, str], arguments: Sequence[str]) -> None:
        if any("jetson-stats" in word for word in arguments):
            raise TestbedError("pip: no wheel of jetson-stats==4.3.2")
        (Path(arguments[arguments.index("--dest") + 1]) / "smbus2-0.5-py3-none-any.whl").touch()

    monkeypatch.setattr(facts_module, "gather_facts", ask)
    monkeypatch.setattr(bundle_make, "_run_pip", pip)
    monkeypatch.setattr(Fleet, "transport", lambda _self, name: FakeTransport(name))
    lab = tmp_path / "lab.yaml"

    def run(sees: bool) -> tuple[int, str]:
        lab.write_text(LAB.replace("SEES", str(sees).lower()))
        words = ["bundle", str(tmp_path / "bundle"), "--no-debs", "-i", str(lab)]
        monkeypatch.setattr(sys, "argv", ["testbed", *words])
        with pytest.raises(SystemExit) as ended:
            main.run()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def test_what_may_not_be_needed_is_left_out_where_there_is_no_wheel(bundle: Run, tmp_path: Path) -> None:
    code, said = bundle(True)
    assert "warning: left out: pip: no wheel of jetson-stats==4.3.2" in said
    assert "smbus2" in (tmp_path / "bundle" / MANIFEST).read_text()
    assert (code, "has nothing for the hosts that could not be asked" in said) == (1, True)  # bs is off
    (tmp_path / "bundle" / MANIFEST).unlink()
    (tmp_path / "bundle" / ".bundle").touch()
    code, said = bundle(False)
    assert code == 1
    assert "error: pip: no wheel of jetson-stats==4.3.2" in said
    assert not (tmp_path / "bundle" / MANIFEST).exists()
