"""`testbed shape` over an emulated lab of two devices: real sshd, real services, real queueing disciplines."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.config.campaign import load_campaign
from testbed.emulation.lab import shell_command
from testbed.emulation.settings import load_lab
from testbed.links.channels import channel_of

pytestmark = pytest.mark.emulated

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-c", "from testbed.cli.main import run; run()"]
HOSTS = ("bs", "left", "right")
#: A look at all hosts takes long on a busy machine.
WITHIN_S = 180.0
INVENTORY = """
lab: {name}
known_hosts: /run/testbed/labs/{name}/known_hosts
defaults:
  key_file: /run/testbed/labs/{name}/id_ed25519
  gateway: nsenter --net=/run/testbed/labs/{name}/net nc {{address}} {{port}}
  python: {{interpreter: /opt/testbed/python, manage: false}}
network: {network}
hosts:
  bs: {{role: base_station, address: 10.87.0.1}}
  left: {{role: device, address: 10.87.0.2, board: jetson-orin-nano-8gb}}
  right: {{role: device, address: 10.87.0.3, board: jetson-orin-nano-8gb}}
emulation:
  network: 10.87.0.0/24
  jtop: false
"""
CAMPAIGN = """
campaign: channels
inventory: {inventory}
model: tiny-mixtral
seed: 7
prompts: {{file: {prompts}}}
policies: [{{name: top-1, selection: {{kind: top_k, k: 1}}}}]
scenarios:
  - name: fading
    channel:
      {{model: shannon, bandwidth_mhz: 10, duration_s: 4, coherence_ms: 100, scale: 0.5, min_mbit: 1,
       max_mbit: 40, devices: {{default: {{snr_db: 10}}, right: {{snr_db: 3}}}}}}
"""


def call(*arguments, check=True):
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT, timeout=300
    )
    assert not check or done.returncode == 0, f"testbed {arguments}: {done.stderr}"
    return done


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Return what writes the inventory of the lab, which is up, with some network settings."""
    if os.geteuid() != 0:
        pytest.skip("an emulated lab needs root")
    folder = tmp_path_factory.mktemp("lab")

    def write(network="{}"):
        path = folder / f"{len(list(folder.iterdir()))}.yaml"
        path.write_text(INVENTORY.format(name=f"shape-{os.getpid()}", network=network))
        return path

    call("emulate", "up", "-i", write())
    yield write
    call("emulate", "down", "-i", write())


@pytest.fixture(scope="module")
def inventory(lab):
    return lab()


@pytest.fixture
def apply(inventory):
    """Return what starts `shape apply` and returns it with its first line; what is left of it is ended."""
    started = []

    def start(*arguments, at=inventory):
        process = subprocess.Popen(
            [*PROGRAM, "shape", "apply", *map(str, arguments), "-i", str(at), "--json"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        started.append(process)
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        return process, json.loads(line)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=300)


def on(host, inventory, *command):
    """Return what a command prints on a host."""
    line = shell_command(load_lab(inventory), host, command)
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=True).stdout


def qdiscs(host, inventory):
    """Return the kinds of queueing disciplines on a host's interface."""
    return re.findall(r"qdisc (\S+) \S+ dev eth0", on(host, inventory, "tc", "qdisc", "show"))


def left_behind(inventory):
    """Return what is still shaped or still runs, by host."""
    found = {}
    for host in HOSTS:
        running = [
            line for line in on(host, inventory, "ps", "-eo", "args").splitlines() if "payloads." in line
        ]
        shaped = [kind for kind in qdiscs(host, inventory) if kind != "noqueue"]
        if running or shaped:
            found[host] = [*running, *shaped]
    return found


def assert_restored(inventory):
    deadline = time.monotonic() + WITHIN_S
    while left := left_behind(inventory):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.3)


def shown(inventory):
    """Return the rates that are in force, as `shape show` has them."""
    answer = json.loads(call("shape", "show", "-i", inventory, "--json").stdout)
    rates = {}
    for host in answer["hosts"].values():
        for link in host["links"]:
            for direction in ("downlink", "uplink"):
                if link[f"{direction}_mbit"] is not None:
                    rates[link["device"], direction] = link[f"{direction}_mbit"], link["backends"][direction]
    return rates


def test_links_are_shaped_until_ctrl_c_and_then_as_they_were(apply, inventory):
    process, said = apply("--rate", 12, "--uplink-rate", 4)
    assert {(row["device"], row["direction"]) for row in said["verified"]} == {
        (device, direction) for device in ("left", "right") for direction in ("downlink", "uplink")
    }
    rates = shown(inventory)
    assert {key: rate for key, (rate, _) in rates.items()} == {
        ("left", "downlink"): 12, ("left", "uplink"): 4, ("right", "downlink"): 12, ("right", "uplink"): 4,
    }  # fmt: skip
    assert {backend for _, backend in rates.values()} <= {"bs-line", "bs-htb-netem", "bs-htb-tbf"}
    assert "htb" in qdiscs("bs", inventory)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert json.loads(out) == {"event": "restored", "ok": True}
    assert process.returncode == int(not all(row["ok"] for row in said["verified"]))
    assert left_behind(inventory) == {}


def test_a_lab_that_is_held_stays_as_it_is_when_somebody_else_wants_it(apply, inventory):
    process, _ = apply("--rate", 12, "--no-verify")
    before = shown(inventory)
    refused = call("shape", "apply", "--rate", 3, "--no-verify", "--for", 0, "-i", inventory, check=False)
    assert refused.returncode == 3
    assert "(shape the links), since " in refused.stderr
    assert "it is a run of your own: wait for its end, or stop it" in refused.stderr
    assert shown(inventory) == before != {}
    assert process.poll() is None


@pytest.mark.parametrize("killed", [("controller",), ("daemon",), ("daemon", "controller")], ids=" and ".join)
def test_links_go_back_whoever_is_killed(killed, apply, inventory):
    process, _ = apply("--rate", 12, "--no-verify")
    assert "htb" in qdiscs("bs", inventory)
    services = json.loads(call("services", "status", "-i", inventory, "--json").stdout)["bs"]["services"]
    (daemon,) = (service["pid"] for service in services if service["name"] == "linkd")
    if "daemon" in killed:
        on("bs", inventory, "kill", "-9", str(daemon))
    if "controller" in killed:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=300)
        assert_restored(inventory)
        assert shown(inventory) == {}
        return
    deadline = time.monotonic() + WITHIN_S
    while qdiscs("bs", inventory) != ["noqueue"]:
        assert time.monotonic() < deadline, "the links are shaped still"
        time.sleep(0.3)


def test_clear_takes_the_links_from_a_lab_that_is_held(apply, inventory):
    process, _ = apply("--rate", 12, "--no-verify")
    assert json.loads(call("shape", "clear", "-i", inventory, "--json").stdout)["bs"] == "eth0"
    assert qdiscs("bs", inventory) == ["noqueue"]
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert left_behind(inventory) == {}


@pytest.fixture
def campaign(tmp_path, inventory):
    path = tmp_path / "channels.yaml"
    prompts = ROOT / "payloads/prompts/quickstart.jsonl"
    path.write_text(CAMPAIGN.format(inventory=inventory, prompts=prompts))
    return path


def test_a_channel_is_played_and_can_be_watched(apply, campaign, inventory):
    _, said = apply(campaign, "--no-verify", "--for", 600)
    loaded = load_campaign(campaign)
    channel = channel_of(loaded.scenario("fading"), ["left", "right"], seed=7, repeat=0)
    means = channel.mean_rates()
    for row in said["links"]:
        mean = means[row["device"]][row["direction"] == "uplink"]
        assert row["asked_mbit"] == pytest.approx(mean, rel=1e-4)
    kinds, blocks = set(), []
    watched = [*PROGRAM, "shape", "watch", "-i", str(inventory), "--for", "120"]
    with subprocess.Popen(watched, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watch:
        while "sample" not in kinds or len(blocks) < 6:
            event = json.loads(watch.stdout.readline())
            kinds.add(event["event"])
            if event["event"] == "rates" and event["cause"] == "block":
                rates = event["rates"]
                blocks.append((rates["left"]["downlink_mbit"], rates["right"]["uplink_mbit"]))
        watch.send_signal(signal.SIGINT)
    assert kinds == {"rates", "sample"}
    expected = {
        (round(rates["left"][0], 4), round(rates["right"][1], 4))
        for rates in map(channel.rates, range(len(channel.t_s)))
    }
    assert {(round(down, 4), round(up, 4)) for down, up in blocks} <= expected


def test_each_device_can_shape_its_own_uplink(lab, apply):
    inventory = lab("{shaping: device}")
    process, said = apply("--rate", 12, at=inventory)
    assert {(row["direction"], row["backend"]) for row in said["verified"]} == {
        ("downlink", "bs-htb-tbf"), ("uplink", "device-htb-tbf"),
    }  # fmt: skip
    assert [("htb" in qdiscs(host, inventory), "ingress" in qdiscs(host, inventory)) for host in HOSTS] == [
        (True, False)
    ] * 3
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    assert_restored(inventory)


def test_a_paced_lab_needs_no_queueing_discipline(lab, apply):
    inventory = lab("{shaping: pacing}")
    _, said = apply("--rate", 12, at=inventory)
    assert {row["backend"] for row in said["verified"]} == {"socket-pacing"}
    assert [kind for host in HOSTS for kind in qdiscs(host, inventory)] == ["noqueue"] * 3


def test_verification_covers_both_directions_idle_and_busy(inventory, tmp_path):
    file = tmp_path / "rows.csv"
    arguments = ("--rate", 20, "--sizes", "8192,65536", "--repeats", 3, "--csv", file)
    done = call("shape", "verify", *arguments, "-i", inventory, "--json", check=False)
    answer = json.loads(done.stdout)
    assert done.returncode == (0 if answer["ok"] else 1), done.stderr
    cases = [(row["device"], row["direction"], row["state"], row["message_bytes"]) for row in answer["rows"]]
    assert len(cases) == len(set(cases)) == 2 * 2 * 2 * 2
    # Wide: what is asserted is that the kernel shapes messages, and not how busy this machine is, which delays some.
    ratios = [row["ratio"] for row in answer["rows"] if row["message_bytes"] == 65536]
    assert 0.6 < min(ratios) < 1.7
    with file.open() as opened:
        assert len(list(csv.DictReader(opened))) == len(cases)
    assert left_behind(inventory) == {}


def test_what_a_host_cannot_do_is_said_with_what_to_put_in_the_inventory(lab):
    able = json.loads(call("shape", "backends", "-i", lab(), "--json").stdout)
    assert able["hosts"]["bs"]["backends"]["bs-htb-tbf"] is None
    if able["hosts"]["bs"]["backends"]["bs-htb-netem"] is None:
        pytest.skip("this kernel has netem")
    wrong = lab("{leaf: netem}")
    done = call("shape", "backends", "-i", wrong, check=False)
    assert done.returncode == 1
    assert "network: {leaf: auto}" in done.stderr
    refused = call("shape", "apply", "--rate", 8, "--for", 1, "-i", wrong, check=False)
    assert refused.returncode == 3
    assert "bs: refused: " in refused.stderr
    assert "netem" in refused.stderr
    assert "network: {leaf: auto}" in refused.stderr
    assert left_behind(wrong) == {}
