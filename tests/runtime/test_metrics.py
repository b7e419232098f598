"""Metrics: their format, their numbers under many threads, and what worker and base station count."""

from __future__ import annotations

import errno
import json
import math
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads import metrics_http
from payloads.metrics import CONTENT_TYPE, Metrics
from payloads.metrics_http import MetricsServer
from payloads.wdmoe.bs.base_station import Service
from payloads.wdmoe.bs.spec import read_spec
from payloads.wdmoe.worker.metrics import WorkerMetrics
from payloads.wire import frames, server
from payloads.wire.client import Channel, DeviceError, Exchange, Request
from payloads.wire.credentials import PlainKey
from payloads.wire.frames import Kind
from payloads.wire.server import Server, listen

SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
LABEL = re.compile(r'(?P<name>[a-zA-Z_]\w*)="(?P<value>(?:[^"\\\n]|\\.)*)"(?:,|$)')
ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def read(text):
    """Return the samples of a text by name and labels; every line must be of the format."""
    samples, typed = {}, {}
    assert text == "" or text.endswith("\n")
    for line in text.split("\n")[:-1]:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in typed
            typed[name] = kind
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            inner, labels = match["labels"] or "", []
            while inner:
                label = LABEL.match(inner)
                assert label, line
                value = re.sub(r"\\.", lambda found: ESCAPES[found[0]], label["value"])
                labels.append((label["name"], value))
                inner = inner[label.end() :]
            base = re.sub(r"_(bucket|sum|count)$", "", match["name"])
            assert match["name"] in typed or typed[base] == "histogram", line
            key = (match["name"], tuple(labels))
            assert key not in samples
            samples[key] = float(match["value"].replace("Inf", "inf"))
    return samples


TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)


@given(st.dictionaries(TEXTS, st.floats(min_value=0, allow_infinity=False), max_size=5), TEXTS)
@settings(max_examples=100, deadline=None)
def test_what_is_counted_is_read_back_whatever_the_labels(counted, help_text):
    metrics = Metrics()
    family = metrics.counter("a_total", help_text, ("who",))
    for who, amount in counted.items():
        family.labels(who).add(amount)
    assert read(metrics.text()) == {("a_total", (("who", who),)): amount for who, amount in counted.items()}


@given(st.lists(st.floats(width=32)), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6, unique=True))
@settings(max_examples=100, deadline=None)
def test_a_histogram_counts_what_is_not_above_each_bound(observed, bounds):
    metrics = Metrics()
    histogram = metrics.histogram("h_seconds", "h", bounds=sorted(bounds)).labels()
    for value in observed:
        histogram.observe(value)
    samples = read(metrics.text())
    numbers = [value for value in observed if not math.isnan(value)]
    for bound in [*sorted(bounds), math.inf]:
        below = {
            float(labels[0][1].replace("Inf", "inf")): count
            for (_, labels), count in samples.items()
            if labels
        }
        assert below[bound] == sum(value <= bound for value in numbers)
    assert samples["h_seconds_count", ()] == len(numbers)
    assert samples["h_seconds_sum", ()] == pytest.approx(sum(numbers), nan_ok=True)


def test_no_count_is_lost_among_threads():
    metrics = Metrics()
    counter, gauge = metrics.counter("c_total", "c").labels(), metrics.gauge("g", "g").labels()
    histogram = metrics.histogram("h", "h", bounds=(1, 2)).labels()

    def count():
        for _ in range(5000):
            counter.add(2)
            gauge.add(1)
            histogram.observe(1.5)

    threads = [threading.Thread(target=count) for _ in range(6)]
    for thread in threads:
        thread.start()
    seen = 0.0
    while any(thread.is_alive() for thread in threads):
        samples = read(metrics.text())  # in the middle of it all, a histogram is of one moment
        assert samples["h_bucket", (("le", "2"),)] == samples["h_count", ()]
        assert samples["h_sum", ()] == 1.5 * samples["h_count", ()]
        assert samples["c_total", ()] >= seen
        seen = samples["c_total", ()]
    for thread in threads:
        thread.join()
    samples = read(metrics.text())
    assert (samples["c_total", ()], samples["g", ()], samples["h_count", ()]) == (60_000, 30_000, 30_000)


def test_what_cannot_be_a_metric_is_refused():
    metrics = Metrics()
    first = metrics.counter("a_total", "a", ("x",))
    assert metrics.counter("a_total", "a", ("x",)) is first
    for wrong, message in [
        (lambda: metrics.counter("a", "a"), "ends in _total"),
        (lambda: metrics.gauge("a_total", "a"), "another metric"),
        (lambda: metrics.counter("a_total", "a", ("y",)), "another metric"),
        (lambda: metrics.gauge("a b", "a"), "cannot be a metric's name"),
        (lambda: metrics.gauge("g", "a", ("__x",)), "cannot be a label's name"),
        (lambda: metrics.histogram("h", "h", ("le",)), "the histogram's own"),
        (lambda: metrics.histogram("h", "h", bounds=(2, 1)), "ascending"),
        (lambda: metrics.histogram("h", "h", bounds=()), "ascending"),
        (lambda: first.labels(), "not 0 of them"),
        (lambda: first.labels("1").add(-1), "only grows"),
        (lambda: first.labels("1").add(math.nan), "only grows"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_what_is_followed_is_asked_when_somebody_reads():
    metrics, now = Metrics(), [3]
    counter = metrics.counter("c_total", "c").labels()
    counter.add(1)
    counter.follow(lambda: now[0])
    metrics.gauge("g", "g").labels().follow(lambda: -now[0])
    now[0] = 7
    assert read(metrics.text()) == {("c_total", ()): 8, ("g", ()): -7}


def fetch(address, path="/metrics", method="GET"):
    request = urllib.request.Request(f"http://{address[0]}:{address[1]}{path}", method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers, answer.read().decode()


def say(address, data):
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return client.makefile("rb").read()


def test_they_are_served_over_http_to_one_client_after_the_other(monkeypatch, capfd):
    metrics = Metrics()
    metrics.counter("a_total", "a").labels().add(2)
    with MetricsServer(metrics, ("127.0.0.1", 0)) as served:
        address = served.address
        headers, text = fetch(address)
        assert headers["Content-Type"] == CONTENT_TYPE
        assert text == metrics.text()
        assert fetch(address, method="HEAD")[1] == ""
        for path, method, status in (("/", "GET", 404), ("/metrics", "POST", 405)):
            with pytest.raises(urllib.error.HTTPError) as failed:
                fetch(address, path, method)
            assert failed.value.code == status
            failed.value.close()
        assert say(address, b"hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert say(address, b"GET /metrics") == b""  # it left in the middle
        assert say(address, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 7000) == b""
        with monkeypatch.context() as patch:
            patch.setattr(metrics_http, "_CLIENT_TIMEOUT_S", 0.2)
            with socket.create_connection(address, timeout=10) as silent:
                assert silent.recv(1) == b""  # its time is up
        assert fetch(address)[1] == text
        with pytest.raises(OSError, match="in use"):
            MetricsServer(metrics, address)
        broken = metrics.gauge("broken", "fails when it is read").labels()
        broken.follow(lambda: 1 / 0)
        assert say(address, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        assert "ZeroDivisionError" in capfd.readouterr().err
        broken.follow(lambda: 5.0)
        assert "\nbroken 5\n" in fetch(address)[1]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address, timeout=10)


def test_they_are_served_again_after_too_many_files_were_open(monkeypatch):
    accept, failed = socket.socket.accept, threading.Event()

    def short_of_files(self):
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(metrics_http, "_PAUSE_S", 0.01)
    monkeypatch.setattr(socket.socket, "accept", short_of_files)
    with MetricsServer(Metrics(), ("127.0.0.1", 0)) as served:
        assert fetch(served.address)[1] == ""
        assert failed.is_set()


@pytest.fixture
def key(tmp_path):
    for name, byte in (("right", "11"), ("wrong", "22")):
        (tmp_path / name).write_text(byte * 32)
        (tmp_path / name).chmod(0o600)
    return tmp_path


@contextmanager
def serving(key, handler):
    one = Server(listen("127.0.0.1", 0), PlainKey(key / "right"), handler, "test")
    stop = threading.Event()
    thread = threading.Thread(target=lambda: one.serve(stop.is_set, poll_s=0.02))
    thread.start()
    try:
        yield one
    finally:
        stop.set()
        thread.join()
        one.close()


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_tells_who_came_and_who_was_refused(key, monkeypatch):
    monkeypatch.setattr(server, "MAX_PEERS", 1)
    told = WorkerMetrics({"experts": [[0, 1], [0, 2]], "model": "m", "manifest": "d", "dtype": "float32"})

    def describe(header, payload, received_ns):
        if header.kind != Kind.DESCRIBE:
            raise frames.FrameError("of another kind")
        return [frames.pack_header(Kind.DESCRIPTION, 2, header.sequence), b"{}"]

    with serving(key, describe) as one:
        told.follow(one)

        def now(name, **labels):
            return read(told.metrics.text())[f"testbed_worker_{name}", tuple(labels.items())]

        exchange = Exchange(stall_timeout_s=10)
        with pytest.raises(DeviceError):
            exchange.connect(Channel("orin", *one.address), PlainKey(key / "wrong"), timeout_s=5)
        until(lambda: now("refused_total", reason="handshake") == 1)
        with monkeypatch.context() as patch:
            patch.setattr(server, "HANDSHAKE_TIMEOUT_S", 0.1)
            with socket.create_connection(one.address, timeout=10) as silent:
                assert silent.recv(1) == b""
        assert now("refused_total", reason="silent") == 1
        with monkeypatch.context() as patch, socket.create_connection(one.address, timeout=10) as crowd:
            patch.setattr(server, "MAX_STRANGERS", 1)
            with socket.create_connection(one.address, timeout=10):
                assert crowd.recv(1) == b""
        assert now("refused_total", reason="full") == 1
        channel = Channel("orin", *one.address)
        exchange.connect(channel, PlainKey(key / "right"), timeout_s=5)
        sequence = channel.next_sequence()
        exchange.ask(
            [Request(channel, sequence, [frames.pack_header(Kind.DESCRIBE, 0, sequence)])], Kind.DESCRIPTION
        )
        with socket.create_connection(one.address, timeout=10) as third:
            assert third.recv(1) == b""
        assert now("refused_total", reason="full") == 2
        assert (now("connections"), now("connections_total"), now("closed_total")) == (1, 1, 0)
        assert now("queue_bytes") == 0
        before = now("wire_bytes_total", direction="in"), now("wire_bytes_total", direction="out")
        assert min(before) > 32
        assert now("errors_total", cause="frame") == 0
        sequence = channel.next_sequence()
        with pytest.raises(DeviceError):
            exchange.ask(
                [Request(channel, sequence, [frames.pack_header(Kind.DISPATCH, 0, sequence)])], Kind.RESULT
            )
        until(lambda: now("connections") == 0)
        exchange.close()
        assert now("closed_total") == 1
        assert now("errors_total", cause="frame") == 1
        after = now("wire_bytes_total", direction="in"), now("wire_bytes_total", direction="out")
        assert after == (before[0] + frames.HEADER_BYTES, before[1])
        assert now("experts") == 2
        assert now("info", model="m", manifest="d", dtype="float32", weights="") == 1


def test_worker_and_base_station_count_what_the_records_say(make_lab):
    lab = make_lab()
    told = {}
    for name, running in lab.workers.items():
        told[name] = WorkerMetrics(json.loads(running.worker.description))
        told[name].follow(running.server)
        running.worker.count_in(told[name])
    station = lab.station()
    path = lab.write_spec(warmup_prompts=0)
    station.trial(read_spec(path), "t001", lambda *_: None, lambda: None)
    rows = [json.loads(line) for line in (path.parent / "t001" / "dispatches.jsonl").read_text().splitlines()]
    requests = [
        json.loads(line) for line in (path.parent / "t001" / "requests.jsonl").read_text().splitlines()
    ]
    service = Service(station, ("127.0.0.1", 0), None)
    try:
        with urllib.request.urlopen(service.server.url.replace("/v1", "/metrics"), timeout=10) as answer:
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            station_now = read(answer.read().decode())
    finally:
        service.server.close()
    for name in lab.workers:
        mine = [row for row in rows if row["device"] == name]
        assert mine
        here = (("device", name),)
        assert station_now["testbed_dispatch_seconds_count", here] == len(mine)
        pairs = sum(row["assignments"] for row in mine)
        assert station_now["testbed_pairs_total", here] == pairs
        for direction, column in (("out", "bytes_out"), ("in", "bytes_back")):
            key = ("testbed_wire_bytes_total", (*here, ("direction", direction)))
            assert station_now[key] == sum(row[column] for row in mine)
        worker_now = read(told[name].metrics.text())
        assert worker_now["testbed_worker_dispatch_seconds_count", ()] == len(mine)
        assert worker_now["testbed_worker_compute_seconds_count", ()] == len(mine)
        assert worker_now["testbed_worker_pairs_total", ()] == pairs
        held = json.loads(lab.workers[name].worker.description)["experts"]
        assert worker_now["testbed_worker_experts", ()] == len(held)
    prompt_tokens = sum(row["prompt_tokens"] for row in requests)
    assert station_now["testbed_tokens_total", (("kind", "prompt"),)] == prompt_tokens
    assert station_now["testbed_tokens_total", (("kind", "output"),)] == sum(
        row["output_tokens"] for row in requests
    )
    ended = sum(count for (name, _), count in station_now.items() if name == "testbed_requests_total")
    assert ended == station_now["testbed_first_token_seconds_count", ()] == len(requests)
    assert station_now["testbed_requests", (("state", "running"),)] == 0
    # Nothing was lost.
    assert station_now["testbed_missing_pairs_total", (("cause", "loss"),)] == 0
    assert not [name for name, _ in station_now if name == "testbed_device_events_total"]


def test_what_happens_to_devices_and_pairs_is_counted(make_lab):
    lab = make_lab()
    station = lab.station()
    path = lab.write_spec(warmup_prompts=0)
    station.trial(read_spec(path), "t002", lambda *_: None, lambda: None)  # top-1 of the router's 2
    rows = [json.loads(line) for line in (path.parent / "t002" / "dispatches.jsonl").read_text().splitlines()]
    now = read(station.metrics.text())
    asked = sum(row["assignments"] for row in rows)
    assert now["testbed_missing_pairs_total", (("cause", "policy"),)] == asked > 0  # the second of two
    assert now["testbed_requests_total", (("finish", "length"),)] == 2
    passes = []

    def check():
        passes.append(1)
        if len(passes) == 3:
            lab.workers["small"].stop()

    with pytest.raises(DeviceError):
        station.trial(read_spec(path), "t001", lambda *_: None, check)
    now = read(station.metrics.text())
    for event in ("lost", "failed"):
        assert now["testbed_device_events_total", (("device", "small"), ("event", event))] == 1
    assert now["testbed_requests_total", (("finish", "failed"),)] == 1
