"""Mirrors: who is asked first, what becomes of one that is bad, and what it is told."""

from __future__ import annotations

import http.server
import threading
from functools import partial
from pathlib import Path
from typing import Iterator

import pytest

from payloads.artifacts.pull import Puller, Source, pull_all
from payloads.artifacts.store import ArtifactError, Store
from tests.payloads.artifacts.conftest import put

CONTENTS = [bytes([number]) * 100_000 for number in range(8)]


def pull(device: Store, wanted, sources):
    return pull_all(device, wanted, Puller(sources, device, attempts=3, sleep=lambda _: None))


def holds(device: Store, wanted) -> bool:
    return [device.path(each.digest).read_bytes() for each in wanted] == CONTENTS


def test_what_a_mirror_holds_comes_from_it_and_the_rest_from_the_base_station(serving, device):
    (base, at_base), (mirror, at_mirror) = serving("base"), serving("mirror")
    wanted = [put(base, content) for content in CONTENTS]
    for content in CONTENTS[:3]:
        put(mirror, content)
    done = pull(device, wanted, [at_mirror, at_base])
    assert done.sources == {at_mirror.url: 300_000, at_base.url: 500_000}
    assert holds(device, wanted)


def test_two_mirrors_share_the_work(serving, device, monkeypatch):
    together, settle = threading.Barrier(4), device.settle

    def one_each(part: Path, digest: str) -> None:
        together.wait(30)  # or the first lanes might have all of it before the others begin
        settle(part, digest)

    monkeypatch.setattr(device, "settle", one_each)
    (base, at_base), *mirrors = serving("base"), serving("one"), serving("two")
    wanted = [put(base, content) for content in CONTENTS]
    for store, _ in mirrors:
        for content in CONTENTS:
            put(store, content)
    done = pull(device, wanted, [mirrors[0][1], mirrors[1][1], at_base])
    assert done.sources == {at_base.url: 0, **{source.url: 400_000 for _, source in mirrors}}


def test_a_mirror_that_is_gone_delays_nobody_twice(serving, device):
    base, at_base = serving("base")
    wanted = [put(base, content) for content in CONTENTS]
    waits: list[float] = []
    nobody = Source("http://127.0.0.1:1", "token")
    pull_all(device, wanted, Puller([nobody, at_base], device, lanes=1, sleep=waits.append))
    assert holds(device, wanted)
    assert len(waits) == 1


def test_a_mirror_that_dies_in_the_middle_leaves_the_rest_to_the_base_station(serving, between, device):
    (base, at_base), (mirror, at_mirror) = serving("base"), serving("mirror")
    wanted = [put(base, content) for content in CONTENTS]
    for content in CONTENTS:
        put(mirror, content)
    dying = between(at_mirror, lambda passed, data: data if passed < 250_000 else None)
    done = pull(device, wanted, [dying, at_base])
    assert holds(device, wanted)
    assert done.bytes == 800_000  # nothing of what the mirror had given came again
    assert 0 < done.sources[dying.url] < 400_000


def test_a_damaged_copy_at_a_mirror_is_replaced_by_the_base_stations(serving, device):
    (base, at_base), (mirror, at_mirror) = serving("base"), serving("mirror")
    wanted = [put(base, content) for content in CONTENTS]
    for each, content in zip(wanted, CONTENTS):
        mirror.path(each.digest).write_bytes(content[:-1] + b"?")
    done = pull(device, wanted, [at_mirror, at_base])
    assert holds(device, wanted)
    assert done.sources[at_base.url] == 800_000


def test_a_mirror_with_another_key_is_passed_over(serving, device):
    (base, at_base), (mirror, at_mirror) = serving("base"), serving("mirror")
    wanted = [put(base, content) for content in CONTENTS]
    put(mirror, CONTENTS[0])
    done = pull(device, wanted, [at_mirror._replace(token="0" * 64), at_base])
    assert done.sources == {at_mirror.url: 0, at_base.url: 800_000}


def test_what_nobody_has_is_said_of_each(serving, device):
    (_, at_base), (_, at_mirror) = serving("base"), serving("mirror")
    missing = put(Store(device.folder.parent / "elsewhere"), b"x")
    with pytest.raises(ArtifactError) as caught:
        pull(device, [missing], [at_mirror, at_base])
    assert str(caught.value) == "; ".join(
        f"{source.url}: the server has no object {missing.digest}" for source in (at_mirror, at_base)
    )


class Folder(http.server.SimpleHTTPRequestHandler):
    """A plain web server: it knows no ranges and asks for nothing."""

    protocol_version = "HTTP/1.1"
    shown: list[str | None]

    def do_GET(self) -> None:
        type(self).shown.append(self.headers.get("Authorization"))
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web_server(tmp_path: Path) -> Iterator[str]:
    Folder.shown = []
    (tmp_path / "web" / "jetsons").mkdir(parents=True)
    handler = partial(Folder, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/jetsons"
        server.shutdown()
        thread.join()


def test_a_plain_web_server_can_be_a_mirror_and_is_shown_no_token(serving, device, web_server, tmp_path):
    base, at_base = serving("base")
    wanted = [put(base, content) for content in CONTENTS]
    web = Store(tmp_path / "web" / "jetsons" / "objects")
    for content in CONTENTS[:5]:
        put(web, content)
    device.part(wanted[0].digest).write_bytes(CONTENTS[0][:500])
    done = pull(device, wanted, [Source(web_server, None), at_base])
    assert holds(device, wanted)
    assert done.sources[at_base.url] == 300_000
    assert Folder.shown
    assert set(Folder.shown) == {None}


def test_one_failure_stops_all_lanes(serving, device):
    base, at_base = serving("base")
    wanted = [put(base, content) for content in CONTENTS]
    base.path(wanted[0].digest).unlink()
    with pytest.raises(ArtifactError, match="the server has no object"):
        pull(device, wanted, [at_base])
    assert not device.path(wanted[0].digest).exists()
    base.path(wanted[0].digest).write_bytes(CONTENTS[0])
    pull(device, wanted, [at_base])
    assert holds(device, wanted)
