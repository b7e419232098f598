"""The real processes, as a host starts them: workers, base station, and the control client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-some-length"
BS_ARGUMENTS = [
    *("--manifest", "~/manifest.json", "--devices", "~/devices.json", "--key-file", "~/key"),
    *("--dtype", "bfloat16", "--control", "~/bs.sock"),
]


def environment(home):
    return {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Payload:
    """A payload in the background; its log in a file."""

    def __init__(self, home, name, module, *arguments):
        self.log = home / f"{name}.log"
        self.ready = home / f"{name}.ready"
        self.ready.unlink(missing_ok=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"payloads.{module}", *arguments],
                env={**environment(home), "TESTBED_READY": str(self.ready)},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def wait_ready(self):
        deadline = time.monotonic() + 120
        while not self.ready.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return self

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def host(make_lab):
    """A lab whose workers are processes, and a base station process."""
    lab = make_lab(dtype="bfloat16")
    home = lab.home
    running = {}
    (home / "busy").mkdir()
    (home / "token").touch(0o600)
    (home / "token").write_text(TOKEN)

    def worker(name, port=0):
        lab.workers[name].stop()
        running[name] = Payload(
            home,
            name,
            "wdmoe.worker.expert_worker",
            *("--wanted", f"~/{name}.json", "--listen", f"127.0.0.1:{port}", "--key-file", "~/key"),
            *("--busy-file", str(home / "busy" / name), "--pace-bytes-per-s", "1e9"),
            *("--metrics", "127.0.0.1:0"),
        )

    def write_devices():
        devices = json.loads((home / "devices.json").read_text())
        for device in devices["devices"]:
            log = running[device["name"]].wait_ready().log.read_text()
            device["port"] = int(re.search(r"serving \d+ experts at 127.0.0.1:(\d+)", log)[1])
        (home / "devices.json").write_text(json.dumps(devices))

    for name in lab.workers:
        worker(name)
    running["bs"] = Payload(
        home,
        "bs",
        "wdmoe.bs.base_station",
        *BS_ARGUMENTS,
        *("--http", "127.0.0.1:0", "--http-token-file", "~/token"),
    )
    write_devices()
    running["bs"].wait_ready()
    lab.running, lab.begin_worker, lab.write_ports = running, worker, write_devices
    yield lab
    for payload in running.values():
        payload.stop()


def bsctl(host, *arguments, **options):
    command = [sys.executable, "-m", "payloads.station.bsctl", "--control", "~/bs.sock", *arguments]
    return subprocess.Popen(
        command,
        env=environment(host.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def answer(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, [json.loads(line) for line in out.splitlines()], err


def test_a_run_as_hosts_see_it(host):
    """One story, since starting the processes is what takes time."""
    home = host.home
    spec = host.write_spec(warmup_prompts=0)
    assert (home / "bs.sock").stat().st_mode & 0o777 == 0o600

    status, lines, _ = answer(bsctl(host, "status"))
    assert status == 0
    assert lines[-1]["result"]["doing"] is None
    assert lines[-1]["result"]["model"] == "small"

    status, lines, _ = answer(bsctl(host, "ping"))
    assert status == 0
    assert lines[-1]["result"]["devices"]["small"]["pace"] == {"ops_per_s": None, "bytes_per_s": 1e9}

    status, lines, _ = answer(bsctl(host, "trial", "--spec", str(spec), "--trial", "t001"))
    assert status == 0
    assert lines[0] == {"done": 0, "of": 2, "what": "prompt p1"}
    assert lines[-1]["result"]["rows"]["requests"] == 2
    assert (spec.parent / "t001" / "dispatches.jsonl").stat().st_size > 0
    assert int.from_bytes((home / "busy" / "big").read_bytes(), "little") > 0
    url = re.search(r"metrics at (http://\S+)", host.running["big"].log.read_text())[1]
    with urlopen(url, timeout=30) as metrics:
        told = dict(line.rsplit(" ", 1) for line in metrics.read().decode().splitlines() if line[0] != "#")
    assert int(told["testbed_worker_dispatch_seconds_count"]) > 0
    assert int(told['testbed_worker_wire_bytes_total{direction="in"}']) > 1000
    assert told["testbed_worker_connections"] == "1"

    status, lines, err = answer(bsctl(host, "trial", "--spec", str(spec), "--trial", "t9"))
    assert (status, lines) == (1, [])
    assert err == "the run has no trial 't9'\n"

    # A worker that is killed fails the trial with one line; the base station stays up.
    long = host.write_spec(prompts=[{"id": f"p{i}", "text": "It is"} for i in range(4000)], max_new_tokens=50)
    process = bsctl(host, "trial", "--spec", str(long), "--trial", "t001")
    assert json.loads(process.stdout.readline())["done"] == 0
    status, lines, err = answer(bsctl(host, "quality", "--spec", str(long), "--policy", "top-1"))
    assert (status, err) == (1, "the base station is busy with trial t001\n")
    status, lines, _ = answer(bsctl(host, "status"))
    assert lines[-1]["result"]["doing"] == "trial t001"
    host.running["middle"].stop(signal.SIGKILL)
    status, lines, err = answer(process)
    assert status == 1
    assert re.fullmatch(r"device middle lost: connection closed during layer \d\n", err)
    host.begin_worker("middle")
    host.write_ports()

    # Ctrl-C at the client: the trial is given up, and the next one can run.
    process = bsctl(host, "trial", "--spec", str(long), "--trial", "t002")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert answer(process)[0] == 130
    # So does an SSH session that is cut: nobody reads the output any more.
    process = bsctl(host, "trial", "--spec", str(long), "--trial", "t002")
    process.stdout.close()
    assert process.wait(60) == 1
    process.stderr.close()
    deadline = time.monotonic() + 60
    while answer(bsctl(host, "status"))[1][-1]["result"]["doing"]:
        assert time.monotonic() < deadline
    assert "abandoned" in host.running["bs"].log.read_text()
    spec = host.write_spec()
    status, lines, _ = answer(bsctl(host, "quality", "--spec", str(spec), "--policy", "top-1"))
    assert (status, lines[-1]["result"]["rows"]["quality"]) == (0, 3)
    assert not list(spec.parent.glob("*.part"))
    assert not (spec.parent / "t002").exists()

    # It serves until it is told to stop, or until whoever asked for that has gone; the records are there either way.
    assert answer(bsctl(host, "stop"))[2] == "the base station serves nobody\n"
    for name in ("serve-001", "serve-002"):
        asked = ("--spec", str(spec), "--policy", "top-2", "--trial", name, "--concurrency", "2")
        text = "context: expected 2 to 512 tokens, which the model reads, got 513\n"
        assert answer(bsctl(host, "serve", *asked, "--context", "513")) == (1, [], text)
        asked += ("--context", "64")
        process = bsctl(host, "serve", *asked)
        url = json.loads(process.stdout.readline())["what"].removeprefix("serving at ")
        body = json.dumps({"model": "small", "prompt": "It is", "max_tokens": 3}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        with urlopen(Request(f"{url}/completions", body, headers), timeout=30) as reply:
            assert json.load(reply)["usage"]["completion_tokens"] == 3
        with urlopen(Request(f"{url}/models", headers=headers), timeout=30) as reply:
            assert json.load(reply)["data"][0]["max_model_len"] == 64
        with pytest.raises(HTTPError, match="401"):
            urlopen(f"{url}/models", timeout=30)
        if name == "serve-001":
            assert answer(bsctl(host, "stop"))[0] == 0
            status, lines, _ = answer(process)
            assert (status, lines[-1]["result"]["requests_taken"]) == (0, 1)
        else:
            process.kill()
            answer(process)
        deadline = time.monotonic() + 60
        while not (spec.parent / name / "requests.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert json.loads((spec.parent / name / "requests.jsonl").read_text())["finish"] == "length"

    # A second base station does not take the socket away from the first.
    second = Payload(home, "second", "wdmoe.bs.base_station", *BS_ARGUMENTS)
    assert second.process.wait(120) == 1
    assert second.log.read_text().splitlines()[-1].startswith("base_station: another base station listens")
    for name, payload in host.running.items():
        assert payload.stop() == 0, name
        assert "Traceback" not in payload.log.read_text()
    assert not (home / "bs.sock").exists()


@pytest.mark.parametrize(
    ("module", "arguments", "line"),
    [
        (
            "wdmoe.worker.expert_worker",
            ["--wanted", "~/none.json", "--listen", "127.0.0.1:0", "--key-file", "~/key"],
            "expert_worker: cannot read the wanted list",
        ),
        ("wdmoe.bs.base_station", BS_ARGUMENTS, "base_station: cannot read the key file"),
        ("station.bsctl", ["--control", "~/none.sock", "status"], "bsctl: cannot reach the base station at"),
    ],
)
def test_what_cannot_start_says_so_in_one_line(tmp_path, module, arguments, line):
    done = subprocess.run(
        [sys.executable, "-m", f"payloads.{module}", *arguments],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
