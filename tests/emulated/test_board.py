"""What software that knows Jetsons finds on an emulated board: the stock jtop client, power modes, true energy."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from testbed.emulation.power import energy_mj, parse_script

pytestmark = pytest.mark.emulated

REPOSITORY = Path(__file__).parents[2]

CLIENT = """
import json
from jtop import jtop
with jtop(0.5) as client:
    reports = 0
    while client.ok():
        reports += 1
        if reports == 2:
            break
    assert reports == 2, "the service was late"
    print(json.dumps({"hardware": client.board["hardware"], "power": client.power, "stats": client.stats,
                      "temperature": client.temperature, "gpu": list(client.gpu), "mode": client.nvpmodel.name,
                      "cpus": len(client.cpu["cpu"]), "memory": client.memory["RAM"]["tot"]}, default=str))
"""

SCRIPT = [[1.0, 0.0], [2.0, 1.0], [1.5, 0.4], [2.0, 0.8], [1.5, 0.0]]

LOG = """
cd /root && rm -f power.csv jtop.csv stop
export PYTHONPATH={repository}
/opt/testbed/python -m payloads.boardlog power --out /root/power.csv --hz 20 & power=$!
/opt/testbed/python -m payloads.boardlog jtop --out /root/jtop.csv --hz 10 & jtop=$!
while [ ! -e stop ]; do sleep 0.1; done
kill $power $jtop
wait
"""


@pytest.mark.parametrize(
    ("host", "model", "jetpack", "total"),
    [
        ("agx-orin", "NVIDIA Jetson AGX Orin Developer Kit", "6.2", None),
        ("xavier-nx", "NVIDIA Jetson Xavier NX Developer Kit", "5.1.3", "VDD_IN"),
    ],
)
def test_the_stock_jtop_client_reads_the_board(lab, wait_for, host, model, jetpack, total):
    # The client waits for a second and a half, which on a busy machine may be too short: then it is called again.
    said = wait_for(lambda: lab.run(host, "/opt/testbed/python", "-", text=CLIENT, check=False).stdout)
    found = json.loads(said)
    board = next(entry.kind for entry in lab.spec.hosts if entry.name == host)
    assert found["hardware"]["Model"] == model
    assert found["hardware"]["Jetpack"] == jetpack
    assert found["hardware"]["L4T"] == board.l4t
    assert found["power"]["tot"].get("name") == total
    rails = set(found["power"]["rail"]) | ({total} if total else set())
    assert rails == {rail.label for rail in board.live_rails}
    assert found["power"]["tot"]["power"] >= board.total.idle_mw - 50
    zones = {zone.partition("-")[0] for zone in board.zones}
    assert set(found["temperature"]) == zones
    assert all(20 < zone["temp"] < 95 for zone in found["temperature"].values())
    assert found["gpu"] == [board.gpu[1]]
    assert found["cpus"] == board.cpus
    assert found["memory"] == board.memory_mib * 1024
    assert found["mode"] == board.modes[board.start_mode].name
    assert 0 <= found["stats"]["GPU"] <= 100


def test_the_jtop_group_may_use_the_service(lab):
    shown = lab.run("orin-nano", "stat", "-c", "%G %a", "/run/jtop.sock").stdout.split()
    assert shown == ["jtop", "660"]


def test_a_power_mode_stays_set(lab):
    assert lab.run("orin-nano", "nvpmodel", "-m", "1").stderr == ""
    assert lab.run("orin-nano", "nvpmodel", "-q").stdout.splitlines() == ["NV Power Mode: 25W", "1"]
    lab.run("orin-nano", "nvpmodel", "-m", "0")


def test_a_mode_that_needs_a_reboot_is_set_only_when_that_is_confirmed(lab, wait_for):
    done = lab.run("orin-nx", "nvpmodel", "-m", "1", check=False)
    assert done.returncode != 0
    assert "REBOOT" in done.stdout
    assert lab.run("orin-nx", "nvpmodel", "-q").stdout.splitlines()[1] == "3"
    lab.run("orin-nx", "touch", "/run/before", "/root/kept")
    confirmed = ["sh", "-c", "(echo YES | nvpmodel -m 1) >/root/said 2>&1 </dev/null &"]
    lab.run("orin-nx", *confirmed, check=False)
    # The mode is told before the board goes down; what was in memory is gone once it is back.
    back = "nvpmodel -q; test -e /run/before || echo back"
    wait_for(
        lambda: lab.run("orin-nx", "sh", "-c", back, check=False).stdout.splitlines()[1:] == ["1", "back"]
    )
    assert lab.run("orin-nx", "test", "-e", "/root/kept").returncode == 0


def test_jetson_clocks_store_and_restore(lab):
    show = ["jetson_clocks", "--show"]
    before = lab.run("orin-nano", *show).stdout
    lab.run("orin-nano", "jetson_clocks", "--store", "/root/clocks")
    lab.run("orin-nano", "jetson_clocks")
    assert lab.run("orin-nano", *show).stdout != before
    lab.run("orin-nano", "jetson_clocks", "--restore", "/root/clocks")
    assert lab.run("orin-nano", *show).stdout == before


def test_the_workers_busy_counter_becomes_load(lab, wait_for):
    # Busy for half of the time that passes, however late it wakes, until somebody has seen it.
    script = (
        "import mmap, os, struct, time\n"
        "with open('/run/testbed/busy_ns', 'w+b') as file:\n"
        "    file.write(bytes(8)); file.flush()\n"
        "    counter, begun_ns, passed_ns = mmap.mmap(file.fileno(), 8), time.monotonic_ns(), 0\n"
        "    while not os.path.exists('/run/seen') and passed_ns < 120e9:\n"
        "        time.sleep(0.02)\n"
        "        passed_ns = time.monotonic_ns() - begun_ns\n"
        "        counter[:] = struct.pack('<Q', passed_ns // 2)\n"
    )
    with subprocess.Popen(lab.command("orin-nx", "/opt/testbed/python", "-c", script)) as busy:
        wait_for(lambda: 0.25 < _load(lab, "orin-nx") < 0.75)
        lab.run("orin-nx", "touch", "/run/seen")
        assert busy.wait(timeout=60) == 0


def _load(lab, host):
    hosts = json.loads(lab.cli("status", "--json").stdout)["hosts"]
    return next(entry["load"] for entry in hosts if entry["name"] == host)


@pytest.mark.alone
@pytest.mark.parametrize("host", ["agx-orin", "orin-nano"])
def test_energy_from_sysfs_and_from_jtop_is_within_a_hundredth_of_the_closed_form(
    lab, tmp_path, wait_for, host
):
    board = next(entry.kind for entry in lab.spec.hosts if entry.name == host)
    (tmp_path / "script.json").write_text(json.dumps(SCRIPT))

    def measure():
        """Return what was measured and what is true, each rail's energy as both loggers have it."""
        answer = json.loads(lab.cli("load", host, "--script", str(tmp_path / "script.json"), "--json").stdout)
        begin_ns = answer["start_mono_ns"]
        end_ns = begin_ns + round(answer["seconds"] * 1e9)
        wait_for(lambda: _last_ns(lab, host) > end_ns + 500_000_000)
        assert answer["total_rule"] == board.total_rule
        power, jtop = _table(lab, host, "power.csv"), _table(lab, host, "jtop.csv")
        measured, true = {}, {}
        for rail in board.live_rails:
            truth_mj = energy_mj(rail.power, parse_script(SCRIPT), level=answer["level"], tau_s=board.tau_s)
            assert answer["energy_mj"][rail.label] == pytest.approx(truth_mj)
            key = "power_total_mw" if rail.label == "VDD_IN" else f"power_{rail.label}_mw"
            measured["sysfs", rail.label] = _energy_mj(power[rail.label], begin_ns, end_ns)
            measured["jtop", rail.label] = _energy_mj(jtop[key], begin_ns, end_ns)
            true |= dict.fromkeys([("sysfs", rail.label), ("jtop", rail.label)], truth_mj)
        return measured, true

    with subprocess.Popen(lab.command(host, "sh", "-c", LOG.format(repository=REPOSITORY))) as loggers:
        wait_for(lambda: _both_log(lab, host))
        # A machine too busy for the loggers to keep their beat leaves holes: then they get another chance.
        for _ in range(5):
            measured, true = measure()
            if measured == pytest.approx(true, rel=0.01):
                break
        lab.run(host, "touch", "/root/stop")
        assert loggers.wait(timeout=120) == 0
    assert measured == pytest.approx(true, rel=0.01)


def _both_log(lab, host):
    """Return whether each file has more than the heading that it begins with."""
    script = "for name in power jtop; do test $(wc -l </root/$name.csv) -gt 20 || exit; done"
    return lab.run(host, "sh", "-c", script, check=False).returncode == 0


def _last_ns(lab, host):
    lasts = lab.run(host, "sh", "-c", "tail -q -n 1 /root/power.csv /root/jtop.csv").stdout.splitlines()
    return min(int(line.partition(",")[0]) for line in lasts)


def _table(lab, host, name):
    table: dict[str, list[tuple[int, float]]] = {}
    for row in list(csv.reader(io.StringIO(lab.run(host, "cat", f"/root/{name}").stdout)))[1:]:
        table.setdefault(row[1], []).append((int(row[0]), float(row[2])))
    return table


def _energy_mj(samples, begin_ns, end_ns):
    """Integrate by trapezoids from one moment to another."""
    total = 0.0
    for (t0, p0), (t1, p1) in pairwise(samples):
        a, b = max(t0, begin_ns), min(t1, end_ns)
        if a < b:
            at_a = p0 + (p1 - p0) * (a - t0) / (t1 - t0)
            at_b = p0 + (p1 - p0) * (b - t0) / (t1 - t0)
            total += (at_a + at_b) / 2 * (b - a) / 1e9
    return total
