"""Objects over HTTP on the loopback: a real server, and stand-ins for one that misbehaves."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.artifacts import server as object_server
from payloads.artifacts.pull import Pulled, Puller, Source, pull_all
from payloads.artifacts.server import ObjectServer, parse_range
from payloads.artifacts.store import ArtifactError, Store, bearer_token
from payloads.artifacts.wanted import Wanted, parse_wanted
from tests.ports import kept_port

ROOT = Path(__file__).parents[3]
CONTENT = bytes(range(256)) * 5000


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


WANTED = Wanted(digest_of(CONTENT), len(CONTENT))


@pytest.fixture
def two_places(monkeypatch):
    monkeypatch.setattr(object_server, "PLACES", 2)
    monkeypatch.setattr(object_server._Handler, "timeout", 0.3)


@pytest.fixture
def base(tmp_path, key_file) -> Iterator[ObjectServer]:
    store = Store(tmp_path / "base")
    store.path(WANTED.digest).write_bytes(CONTENT)
    server = ObjectServer(("127.0.0.1", 0), store, key_file)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url_of(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def puller_for(server: HTTPServer, device: Store, key_file: Path) -> Puller:
    sources = [Source(url_of(server), bearer_token(key_file))]
    return Puller(sources, device, attempts=3, sleep=lambda _: None)


def test_a_pull_brings_what_is_missing_and_a_second_one_nothing(base, device, key_file):
    first = pull_all(device, [WANTED], puller_for(base, device, key_file))
    assert first == Pulled(1, len(CONTENT), 0, 0, 0, {url_of(base): len(CONTENT)})
    assert device.path(WANTED.digest).read_bytes() == CONTENT
    assert not device.part(WANTED.digest).exists()
    second = pull_all(device, [WANTED], puller_for(base, device, key_file))
    assert second == Pulled(0, 0, 1, 0, 0, {url_of(base): 0})


def test_silent_strangers_do_not_keep_a_device_away(two_places, base, device, key_file):
    address = ("127.0.0.1", base.server_port)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(address))
        third = stack.enter_context(socket.create_connection(address))
        assert third.recv(64).startswith(b"HTTP/1.1 503 ")
        # They are still connected, but have shown no key for too long.
        sources = [Source(url_of(base), bearer_token(key_file))]
        patient = Puller(sources, device, attempts=200, sleep=lambda _: time.sleep(0.05))
        assert pull_all(device, [WANTED], patient).bytes == len(CONTENT)


def test_a_pull_goes_on_where_it_was_cut_off(base, device, key_file):
    device.part(WANTED.digest).write_bytes(CONTENT[:700_000])
    done = pull_all(device, [WANTED], puller_for(base, device, key_file))
    assert done.bytes == len(CONTENT) - 700_000
    assert device.path(WANTED.digest).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "part", [b"x" * 1000, b"x" * len(CONTENT), CONTENT + b"more"], ids=["short", "other", "long"]
)
def test_a_damaged_part_is_fetched_anew(base, device, key_file, part):
    device.part(WANTED.digest).write_bytes(part)
    pull_all(device, [WANTED], puller_for(base, device, key_file))
    assert device.path(WANTED.digest).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"?"], ids=["short", "other"])
def test_a_damaged_object_is_fetched_anew(base, device, key_file, content):
    pull_all(device, [WANTED], puller_for(base, device, key_file))
    path = device.path(WANTED.digest)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert pull_all(device, [WANTED], puller_for(base, device, key_file)).damaged == 1
    assert path.read_bytes() == CONTENT


def test_a_bad_copy_at_the_base_station_is_refused(base, device, key_file):
    base.store.path(WANTED.digest).write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ArtifactError, match="came damaged twice"):
        pull_all(device, [WANTED], puller_for(base, device, key_file))
    assert not device.path(WANTED.digest).exists()


def test_another_key_lets_nobody_in(base, device, tmp_path):
    other = tmp_path / "other"
    other.write_text("cd" * 32)
    with pytest.raises(ArtifactError, match="refused this host's key"):
        pull_all(device, [WANTED], puller_for(base, device, other))


def test_a_new_key_is_taken_up_while_serving(base, device, key_file):
    key_file.write_text("ef" * 32)
    os.utime(key_file, ns=(1, 1))
    assert pull_all(device, [WANTED], puller_for(base, device, key_file)).pulled == 1


def test_an_object_that_is_not_there_is_named(base, device, key_file):
    other = Wanted("0" * 64, 5)
    with pytest.raises(ArtifactError, match=f"no object {'0' * 64}"):
        pull_all(device, [other], puller_for(base, device, key_file))


def test_a_size_other_than_the_list_says_is_refused(base, device, key_file):
    with pytest.raises(ArtifactError, match="the list says 7"):
        pull_all(device, [WANTED._replace(size_bytes=7)], puller_for(base, device, key_file))


def test_a_full_disk_is_seen_before_anything_is_sent(base, device, key_file, monkeypatch):
    monkeypatch.setattr(device, "free_bytes", lambda: 1000)
    puller = puller_for(base, device, key_file)
    with pytest.raises(ArtifactError, match="1 objects need 1 MB, but only 0 MB are free"):
        pull_all(device, [WANTED], puller)
    assert puller.received_bytes == {url_of(base): 0}


def test_a_disk_that_fills_up_meanwhile_is_not_the_servers_fault(base, device, key_file):
    device.part(WANTED.digest).symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match=r"^/.+\.part: No space left on device$"):
        pull_all(device, [WANTED], puller_for(base, device, key_file))


def test_only_objects_are_served(base, key_file):
    token = bearer_token(key_file)
    (base.store.folder / "notes").write_text("secret")
    (base.store.folder / ("a" * 64)).symlink_to(key_file)
    (base.store.folder / ("b" * 64)).mkdir()

    def status(method: str, path: str, header: str = f"Bearer {token}") -> int:
        connection = http.client.HTTPConnection("127.0.0.1", base.server_port, timeout=20)
        connection.request(method, path, headers={"Authorization": header})
        answer = connection.getresponse().status
        connection.close()
        return answer

    known = f"/objects/{WANTED.digest}"
    assert status("GET", known) == status("HEAD", known) == 200
    for path in (
        "/",
        "/objects/",
        "/objects/notes",
        "/objects/../key",
        f"{known}.ok",
        f"{known}?x",
        known.upper(),
    ):
        assert status("GET", path) == 404
    for name in ("a" * 64, "b" * 64):
        assert status("GET", f"/objects/{name}") == 404
    for header in ("", "Bearer", f"Bearer {token}x", token, "Basic é"):
        assert status("GET", known, header) == 401
    assert status("POST", known) == 501


def test_ranges_over_the_wire(base, key_file):
    connection = http.client.HTTPConnection("127.0.0.1", base.server_port, timeout=20)
    size = len(CONTENT)
    for header, status, body, content_range in [
        ("bytes=5-9", 206, CONTENT[5:10], f"bytes 5-9/{size}"),
        (f"bytes={size - 3}-", 206, CONTENT[-3:], f"bytes {size - 3}-{size - 1}/{size}"),
        ("bytes=-4", 206, CONTENT[-4:], f"bytes {size - 4}-{size - 1}/{size}"),
        (f"bytes={size}-", 416, b"", f"bytes */{size}"),
        ("lines=1-2", 200, CONTENT, None),
    ]:
        headers = {"Authorization": f"Bearer {bearer_token(key_file)}", "Range": header}
        connection.request("GET", f"/objects/{WANTED.digest}", headers=headers)
        answer = connection.getresponse()
        seen = (answer.status, answer.read(), answer.getheader("Content-Range"))
        assert seen == (status, body, content_range)
    connection.close()


@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 60))
def test_a_range_is_the_slice_that_it_names(size, first, last):
    content = bytes(size)
    expected = content[first : last + 1] if first <= last else content
    span = parse_range(f"bytes={first}-{last}", size)
    if span is None:
        assert first >= size
    else:
        assert content[span[0] : span[1]] == expected


@given(st.text(max_size=20), st.integers(0, 40))
def test_any_header_gives_a_range_within_the_object(text, size):
    span = parse_range(text, size)
    assert span is None or 0 <= span[0] <= span[1] <= size


class Misbehaving(BaseHTTPRequestHandler):
    """Follows a list of misdeeds, one for each request, then serves as it should (but knows no ranges)."""

    protocol_version = "HTTP/1.1"
    misdeeds: list[str]

    def do_GET(self) -> None:
        misdeed = type(self).misdeeds.pop(0) if type(self).misdeeds else ""
        self.close_connection = True
        if misdeed == "hang up":
            return
        if misdeed == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: int(misdeed)] if misdeed else CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def misbehaving() -> Iterator[HTTPServer]:
    Misbehaving.misdeeds = []
    with HTTPServer(("127.0.0.1", 0), Misbehaving) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_broken_connections_are_survived(misbehaving, device, key_file):
    # More failures than attempts: an attempt that brought something starts the count anew.
    Misbehaving.misdeeds = ["hang up", "503", "300000", "503", "900000", "hang up"]
    pull_all(device, [WANTED], puller_for(misbehaving, device, key_file))
    assert device.path(WANTED.digest).read_bytes() == CONTENT


def test_retries_are_bounded(misbehaving, device, key_file):
    Misbehaving.misdeeds = ["503"] * 9
    with pytest.raises(ArtifactError, match=r"answered 503 .* \(3 times\)"):
        pull_all(device, [WANTED], puller_for(misbehaving, device, key_file))
    assert len(Misbehaving.misdeeds) == 6


def test_a_server_that_always_stops_at_the_same_byte_is_given_up(misbehaving, device, key_file):
    Misbehaving.misdeeds = ["300000"] * 9
    with pytest.raises(ArtifactError, match=r"bytes early \(3 times\)"):
        pull_all(device, [WANTED], puller_for(misbehaving, device, key_file))


def test_nobody_listening_is_said(device, key_file):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        sources = [Source(url, bearer_token(key_file))]
        puller = Puller(sources, device, attempts=2, sleep=lambda _: None)
        with pytest.raises(ArtifactError, match="Connection refused"):
            pull_all(device, [WANTED], puller)


def test_adopting_checks_the_name_against_the_bytes(device, tmp_path):
    good, bad, odd = tmp_path / WANTED.digest, tmp_path / ("0" * 64), tmp_path / "model.bin"
    for path in (good, bad, odd):
        path.write_bytes(CONTENT)
    device.adopt(good)
    assert device.is_present(*WANTED)
    assert not good.exists()
    for path, words in ((bad, "damaged"), (odd, "not a sha256"), (good, "no such file")):
        with pytest.raises(ArtifactError, match=words):
            device.adopt(path)


def test_lists_are_read_each_object_once():
    entry = {"object": "a" * 64, "bytes": 5, "layer": 0}
    assert parse_wanted({"experts": [entry, entry], "base_station": [dict(entry, object="b" * 64)]}) == [
        Wanted("a" * 64, 5),
        Wanted("b" * 64, 5),
    ]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "expected an object with the key"),
        ({}, "expected an object with the key"),
        ({"experts": {}}, "experts: expected a list"),
        ({"experts": [3]}, r"experts\[0\]: expected an object"),
        ({"experts": [{"object": "../key", "bytes": 1}]}, "expected a sha256"),
        ({"experts": [{"object": "a" * 64, "bytes": -1}]}, "expected a size"),
        ({"experts": [{"object": "a" * 64, "bytes": 1}, {"object": "a" * 64, "bytes": 2}]}, "two sizes"),
    ],
)
def test_a_wrong_list_is_refused(value, words):
    with pytest.raises(ArtifactError, match=words):
        parse_wanted(value)


def test_the_commands_of_a_deploy(tmp_path):
    """Upload to the base station, serve, ask what is missing, pull, ask again: as the controller does it."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), TESTBED_READY=str(tmp_path / "ready"))
    homes = {name: tmp_path / name for name in ("base", "device")}
    for home in homes.values():
        home.mkdir()
        (home / "key").write_text("ab" * 32)
    wanted = tmp_path / "shards.json"
    wanted.write_text(json.dumps({"experts": [{"object": WANTED.digest, "bytes": WANTED.size_bytes}]}))
    upload = tmp_path / WANTED.digest
    upload.write_bytes(CONTENT)

    def run(home: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "payloads.artifacts", *arguments]
        home_environment = dict(environment, TESTBED_HOME=str(homes[home]))
        return subprocess.run(command, env=home_environment, capture_output=True, text=True, timeout=60)

    assert json.loads(run("base", "adopt", str(upload)).stdout) == {"adopted": 1}
    kept = kept_port()
    address = f"127.0.0.1:{kept.getsockname()[1]}"
    server = subprocess.Popen(
        [sys.executable, "-m", "payloads.artifacts", "serve", "--listen", address],
        env=dict(environment, TESTBED_HOME=str(homes["base"])),
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        missing = ["missing", "--wanted", str(wanted)]
        pull = ["pull", "--from", f"http://{address}", "--wanted", str(wanted)]
        assert json.loads(run("device", *missing).stdout) == [WANTED.digest]
        done = run("device", *pull)
        assert (done.returncode, done.stderr) == (0, "")
        shown = json.loads(done.stdout)
        assert (shown["pulled"], shown["bytes"], shown["present"]) == (1, len(CONTENT), 0)
        assert json.loads(run("device", *missing).stdout) == []
        failed = run("device", *pull[:-1], str(tmp_path / "none.json"))
        assert failed.returncode == 1
        assert failed.stderr == f"{tmp_path / 'none.json'}: no such list of wanted objects\n"
    finally:
        server.terminate()
        status = server.wait(30)
        kept.close()
    assert status == 0
