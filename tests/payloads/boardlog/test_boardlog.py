"""The loggers of a board, against a small sysfs and a stand-in for the jtop client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.boardlog import power as power_module
from payloads.boardlog.power import BoardLogError, Sampler
from payloads.boardlog.rails import find_rails, total_rule
from payloads.boardlog.ticks import Lines, next_tick, ticks

ROOT = Path(__file__).parents[3]
AGX = {
    "1-0040": {1: ("VDD_GPU_SOC", 20000, 180), 2: ("VDD_CPU_CV", 20000, 50), 3: ("VIN_SYS_5V0", 5000, 740)},
    "1-0041": {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 140), 3: ("NC", 0, 0)},
}
NX = {"1-0040": {1: ("VDD_IN", 5000, 1001), 2: ("VDD_CPU_GPU_CV", 5000, 300), 3: ("VDD_SOC", 5000, 200)}}


def test_rails_are_found_and_traps_are_not(sysfs):
    rails = find_rails(sysfs(AGX))
    assert [rail.name for rail in rails] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]


def test_a_sample_is_the_product_in_milliwatts(sysfs):
    lines = Sampler(find_rails(sysfs(NX, ina238_microwatts=12_345_678))).sample().splitlines()
    values = {line.split(",")[1]: line.split(",")[2] for line in lines}
    assert values == {
        "VDD_IN": "5005.000",
        "VDD_CPU_GPU_CV": "1500.000",
        "VDD_SOC": "1000.000",
        "VIN": "12345.678",
    }
    assert len({line.split(",")[0] for line in lines}) == 1


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], "VDD_IN"),
        (["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"], "POM_5V_IN"),
        (["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"], "VIN"),
        (
            ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"],
            "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0",
        ),
        (["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"], "GPU+CPU+SOC+CV+VDDRQ+SYS5V"),
    ],
)
def test_the_total_of_each_kind_of_board(names, rule):
    assert total_rule(names).rule == rule


def test_the_double_count_is_noted():
    assert (
        "VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0" in total_rule(["A", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]).note
    )


def test_two_rails_of_one_name_stay_apart(sysfs):
    rails = find_rails(sysfs({"1-0040": {1: ("CPU", 1, 1)}, "1-0041": {1: ("CPU", 1, 1)}}))
    assert [rail.name for rail in rails] == ["CPU", "CPU@1-0041"]


def test_changed_and_replaced_files_are_read_anew(sysfs):
    root = sysfs(NX)
    sampler = Sampler(find_rails(root)[:1])
    current = root / "bus/i2c/devices/1-0040/hwmon/hwmon0/curr1_input"
    current.write_text("7\n")
    assert sampler.sample().endswith("VDD_IN,35.000\n")
    other = current.with_name("other")
    other.write_text("9\n")
    other.replace(current)
    assert sampler.sample().endswith("VDD_IN,45.000\n")


def test_a_rail_that_fails_is_named_and_the_others_go_on(sysfs, capsys, monkeypatch):
    root = sysfs(NX)
    sampler = Sampler(find_rails(root))
    (root / "bus/i2c/devices/1-0040/hwmon/hwmon0/curr1_input").write_text("garbage")
    assert [line.split(",")[1] for line in sampler.sample().splitlines()] == ["VDD_CPU_GPU_CV", "VDD_SOC"]
    assert capsys.readouterr().err.startswith("VDD_IN: not read: ")
    sampler.sample()
    assert capsys.readouterr().err == ""  # once is enough
    for channel in (2, 3):
        (root / f"bus/i2c/devices/1-0040/hwmon/hwmon0/in{channel}_input").write_text("")
    assert sampler.sample() == ""
    monkeypatch.setattr(power_module, "_SILENT_S", 0.0)
    with pytest.raises(BoardLogError, match="no power rail has answered"):
        sampler.sample()


@given(st.integers(0, 1000), st.integers(0, 10**11), st.integers(10**6, 10**9))
def test_ticks_never_burst_and_never_drift(tick, elapsed_ns, period_ns):
    after = next_tick(tick, elapsed_ns, period_ns)
    assert after > tick
    assert after == tick + 1 or after * period_ns >= elapsed_ns > (after - 1) * period_ns


def test_ticks_end_when_told():
    waits: list[float] = []

    def stopped(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > 3

    assert len(list(ticks(50.0, stopped))) == 3


def test_what_was_left_of_a_line_is_cut_off(tmp_path):
    path = tmp_path / "runs" / "power.csv"
    for _ in range(2):
        lines = Lines(path, "mono_ns,rail,mw")
        lines.write("1,A,2.000\n1,B,")
        lines.close()
    assert path.read_text() == "mono_ns,rail,mw\n1,A,2.000\n1,A,2.000\n1,B,"


@pytest.fixture
def logger(tmp_path) -> Iterator[object]:
    """Begin a logger as the supervisor would and end it afterwards."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, path: str = "") -> subprocess.Popen[str]:
        environment = dict(os.environ, PYTHONPATH=f"{ROOT}:{path}", TESTBED_READY=str(tmp_path / "ready"))
        command = [sys.executable, "-m", "payloads.boardlog", *arguments]
        begun.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def eventually(holds, limit_s: float = 40.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.05)


def rows(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()[1:]] if path.exists() else []


def test_the_power_logger_as_a_service(sysfs, tmp_path, logger):
    root, out = sysfs(AGX), tmp_path / "runs/r1/power.csv"
    arguments = ("power", "--out", str(out), "--hz", "50", "--root", str(root))
    process = logger(*arguments)
    eventually((tmp_path / "ready").exists)
    assert len(rows(out)) >= 4  # ready means that samples are there
    eventually(lambda: len(rows(out)) >= 40)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    seen = rows(out)
    assert {len(row) for row in seen} == {3}
    stamps = sorted({int(row[0]) for row in seen})
    assert len(seen) == 4 * len(stamps)
    assert abs(stamps[-1] - time.monotonic_ns()) < 60e9  # the machine's own monotonic clock

    again = logger(*arguments)  # a second one goes on in the same file
    eventually(lambda: len(rows(out)) > len(seen))
    again.kill()


def test_no_rails_is_an_error(tmp_path, logger):
    process = logger("power", "--out", str(tmp_path / "p.csv"), "--root", str(tmp_path))
    assert process.wait(20) == 1
    assert process.stderr.read() == f"no power rail under {tmp_path}/bus/i2c/devices: is this a Jetson?\n"


def test_the_rails_command(sysfs):
    command = [sys.executable, "-m", "payloads.boardlog", "rails", "--json", "--root", str(sysfs(AGX))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    shown = json.loads(done.stdout)
    assert shown["total_rule"] == "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0"
    assert len(shown["rails"]) == 4


# Acts out, one connection after the other, what is known of the real client: see the plan at its end.
STAND_IN = """
import json, pathlib, time

plan = pathlib.Path(__file__).with_name("plan.json")


class jtop:
    def __init__(self, interval):
        self.interval = interval
        deeds = json.loads(plan.read_text())
        self.deed = deeds.pop(0) if deeds else "serve"
        plan.write_text(json.dumps(deeds))
        self.reports = 0

    def __enter__(self):
        if self.deed == "refuse":
            raise ConnectionError("The jtop.service is not active.\\nPlease run it")
        return self

    def __exit__(self, *_):
        return False

    def ok(self):
        time.sleep(min(self.interval, 0.02))
        self.reports += 1
        if self.deed == "end" and self.reports > 2:
            return False
        if self.deed == "hang" and self.reports > 2:
            try:
                time.sleep(1000)
            except (KeyboardInterrupt, SystemExit):
                return False
        return True

    power = {
        "rail": {"VDD IN,x": {"online": True, "power": 1500}, "VDD_SOC": {"power": 700}},
        "tot": {"power": 5005, "name": "VDD_IN"},
    }
    temperature = {"cpu": {"online": True, "temp": 41.5}, "cv0": {"online": False, "temp": -256}}
    gpu = {"gpu": {"status": {"load": 37.5}, "freq": {}}}
    cpu = {"total": {"user": 10.0, "idle": 80.0}, "cpu": []}
    memory = {"RAM": {"used": 1000000, "tot": 8000000}}
"""


@pytest.fixture
def stand_in(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "jtop.py").write_text(STAND_IN)

    def with_plan(*deeds: str) -> str:
        (folder / "plan.json").write_text(json.dumps(deeds))
        return str(folder)

    return with_plan


def test_the_jtop_logger_writes_what_the_client_reports(tmp_path, logger, stand_in):
    out = tmp_path / "runs/r1/jtop.csv"
    process = logger("jtop", "--out", str(out), "--hz", "20", path=stand_in())
    eventually((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert {row[1]: float(row[2]) for row in rows(out)} == {
        "power_total_mw": 5005,
        "power_VDD_IN_x_mw": 1500,
        "power_VDD_SOC_mw": 700,
        "temp_cpu_c": 41.5,
        "gpu_load_percent": 37.5,
        "cpu_load_percent": 20,
        "ram_used_mb": 1024,
    }


@pytest.mark.unhurried
def test_the_jtop_logger_connects_again_whatever_happens(tmp_path, logger, stand_in):
    out = tmp_path / "jtop.csv"
    path = stand_in("refuse", "end", "hang", "serve")
    process = logger("jtop", "--out", str(out), "--hz", "20", "--stall", "2", path=path)
    plan = Path(path, "plan.json")
    eventually(lambda: plan.read_text() == "[]")
    before = len(rows(out))
    assert before > 0
    eventually(lambda: len(rows(out)) > before + 50)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors.splitlines() == [
        "jtop: ConnectionError: The jtop.service is not active. Please run it; connecting again",
        "jtop: the service ended the connection; connecting again",
        "jtop: _StalledError: no report came; connecting again",
    ]


def test_without_jetson_stats_the_logger_says_so(tmp_path, logger):
    site = tmp_path / "site"
    site.mkdir()
    (site / "jtop.py").write_text("raise ImportError('broken')")
    process = logger("jtop", "--out", str(tmp_path / "j.csv"), path=str(site))
    assert process.wait(20) == 1
    assert process.stderr.read() == f"jetson-stats is not installed for {sys.executable}: broken\n"
