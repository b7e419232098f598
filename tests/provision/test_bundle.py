"""Bundles: what a fleet needs, how it is gathered, read, and installed from."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config.inventory import Host
from testbed.errors import HostError, InputError, TestbedError
from testbed.hosts.facts import Environment, Facts, Jtop
from testbed.hosts.fake import Answer, FakeTransport
from testbed.hosts.steps import Command, Put
from testbed.provision.aspects.python import Python
from testbed.provision.bundle import Bundle, load_bundle, target_of
from testbed.provision.bundle_make import BundleMaker, ask_for_debs
from testbed.provision.bundle_plan import (
    Deb,
    Download,
    debs_in,
    downloads_for,
    facts_of_jetpack,
    pip_arguments,
    python_of,
)

TARGET = "cp310-aarch64-glibc2.35"
FRESH = Environment(error="not made yet", base_version="3.10.12", glibc="2.35")
FACTS = Facts("nano", machine="aarch64", jetpack="6.2", l4t="36.4.3", environment=FRESH)


def device(**changes: Any) -> Host:
    settings = {"name": "nano", "role": "device", "address": "x", "user": "nvidia"}
    return Host.model_validate(settings | changes)


class Pip:
    """Stands in for pip: what is asked for appears as wheels."""

    def __init__(self) -> None:
        self.calls: list[tuple[Mapping[str, str], list[str]]] = []

    def __call__(self, markers: Mapping[str, str], arguments: Sequence[str]) -> None:
        self.calls.append((markers, list(arguments)))
        place = Path(arguments[arguments.index("--dest") + 1])
        for wanted in arguments[arguments.index("--dest") + 2 :]:
            if wanted.endswith(".whl"):  # there already: pip looks for what it needs
                wanted = f"needed-by-{Path(wanted).name.partition('-')[0]}"
            path = place / f"{wanted.replace('==', '-')}-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as wheel:
                wheel.writestr(zipfile.ZipInfo("it.py"), f"NAME = {wanted!r}\n")


def made(folder: Path, *downloads: Download) -> Bundle:
    maker = BundleMaker(folder, Pip())
    for download in downloads:
        maker.add_wheels(download)
    maker.finish()
    return load_bundle(folder)


def test_what_a_fleet_needs_is_gathered_once_for_each_kind_of_python() -> None:
    jtop = Jtop("jtop", service_version="7.2.2")
    host = device(python={"packages": ["smbus2"]}, torch={"6": {"index": "https://w.example/jp6"}})
    twin = host.model_copy(update={"name": "twin"})
    older = replace(FACTS, jetpack="5.1", environment=replace(FRESH, base_version="3.8.10", glibc="2.31"))
    fleet = [(host, replace(FACTS, jtop=jtop)), (twin, replace(FACTS, jtop=jtop)), (host, older)]
    torch = ("torch",)
    index = ("--index-url", "https://w.example/jp6")
    client = ("jetson-stats==7.2.2",)
    assert downloads_for(fleet) == [
        Download(TARGET, ("smbus2",), ("smbus2",)),
        Download(TARGET, torch, (), (), torch, index),
        Download(TARGET, client, client, needed=False),
        Download("cp38-aarch64-glibc2.31", ("smbus2",), ("smbus2",)),
    ]
    alone = device(python={"packages": ["smbus2"], "system_packages": False})
    found = downloads_for([(host, replace(FACTS, jtop=jtop)), (alone, replace(FACTS, jtop=jtop))])
    assert [one.needed for one in found if one.requirements == client] == [True]
    assert downloads_for([(device(python={"manage": False}), FACTS)]) == []


def test_boards_that_cannot_be_asked_are_known_by_their_jetpack() -> None:
    targets = [target_of(facts_of_jetpack(device(), jetpack)) for jetpack in ("5", "6.2", "7")]
    assert targets == ["cp38-aarch64-glibc2.31", TARGET, "cp312-aarch64-glibc2.39"]
    with pytest.raises(InputError, match="5, 6 or 7 was expected, not '4'"):
        facts_of_jetpack(device(), "4")


def test_pip_is_asked_for_another_python_than_this_one() -> None:
    python = python_of(TARGET)
    words = pip_arguments(python, ["torch"], ["--no-index"], "/to", deps=False)
    assert words[-5:] == ["--no-deps", "--no-index", "--dest", "/to", "torch"]
    platforms = [words[number + 1] for number, word in enumerate(words) if word == "--platform"]
    assert (platforms[0], platforms[-1]) == ("manylinux_2_35_aarch64", "linux_aarch64")
    assert "manylinux_2_36_aarch64" not in platforms
    assert (python.markers()["platform_machine"], python.markers()["python_version"]) == ("aarch64", "3.10")
    with pytest.raises(InputError, match="no wheels can be chosen for 'cp310'"):
        python_of("cp310")


def test_torch_is_fetched_from_its_source_and_what_it_needs_from_the_index(tmp_path: Path) -> None:
    pip, torch = Pip(), ("torch==2.5.0",)
    maker = BundleMaker(tmp_path, pip)
    maker.add_wheels(Download(TARGET, torch, (), (), torch, ("--index-url", "https://w.example/jp6")))
    (_, first), (_, rest) = pip.calls
    assert ("--no-deps" in first, "https://w.example/jp6" in first) == (True, True)
    assert ("--no-deps" in rest, "https://w.example/jp6" in rest) == (False, False)
    assert Path(rest[-1]).name == "torch-2.5.0-py3-none-any.whl"
    names = {entry.name for entry in maker.finish().files}
    assert names == {"torch-2.5.0-py3-none-any.whl", "needed-by-torch-py3-none-any.whl"}


def test_a_bundle_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    bundle = made(
        tmp_path, Download(TARGET, ("a", "b"), ("a", "b")), Download("cp38-x86_64-glibc2.31", ("a",), ("a",))
    )
    files = bundle.wheels_for(FACTS, ["b", "a"])
    assert files is not None
    assert sorted(file.name for file in files) == ["a-py3-none-any.whl", "b-py3-none-any.whl"]
    for file in files:
        assert hashlib.sha256(file.path.read_bytes()).hexdigest() == file.sha256
    assert bundle.wheels_for(FACTS, ["a"]) is None
    assert bundle.wheels_for(FACTS, []) == ()
    assert bundle.debs_for(FACTS) == ()


def test_what_no_longer_belongs_to_a_bundle_goes(tmp_path: Path) -> None:
    made(tmp_path, Download(TARGET, ("old",), ("old",)))
    made(tmp_path, Download(TARGET, ("new",), ("new",)))
    assert [path.name for path in tmp_path.glob("*/*/*")] == ["new-py3-none-any.whl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle.json", "wheels"]


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "wheels" / "mine" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match="holds something else than a bundle"):
        BundleMaker(tmp_path, Pip())
    assert mine.read_text() == "mine"
    # One that was cut off is gone on with, and one that is done is made anew.
    for _ in range(2):
        BundleMaker(tmp_path / "new", Pip())
    BundleMaker(tmp_path / "new", Pip()).finish()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"bundle.json"}
    BundleMaker(tmp_path / "new", Pip())


def test_a_damaged_bundle_is_refused_by_name(tmp_path: Path) -> None:
    bundle = made(tmp_path, Download(TARGET, ("a",), ("a",)))
    (file,) = bundle.wheels_for(FACTS, ["a"]) or ()
    content = bytearray(file.path.read_bytes())
    content[len(content) // 2] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(InputError, match=r"a-py3-none-any.whl: missing, or not what bundle.json says"):
        load_bundle(tmp_path)
    shutil.rmtree(tmp_path / "wheels")
    with pytest.raises(InputError, match="missing"):
        load_bundle(tmp_path)
    with pytest.raises(InputError, match=r"none/bundle.json: No such file or directory: no bundle is there"):
        load_bundle(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, r"bundle.json: version: "),
        ({"files": [{"path": "../x", "name": "x", "bytes": 1, "sha256": "0" * 64}]}, r"files.0.path"),
        ({"files": [{"path": "x", "name": "../../x", "bytes": 1, "sha256": "0" * 64}]}, r"files.0.name"),
        (
            {"wheels": [{"target": "t", "requirements": ["a"], "files": ["f" * 64]}]},
            r"is named in a set and not",
        ),
    ],
)
def test_a_manifest_that_lies_is_refused(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"version": 1} | change))
    with pytest.raises(InputError, match=text):
        load_bundle(tmp_path)


@given(st.text(max_size=40))
def test_no_path_leads_out_of_a_bundle(path: str) -> None:
    from pydantic import ValidationError

    from testbed.provision.bundle import FileEntry

    try:
        entry = FileEntry(path=path, name="x", bytes=0, sha256="0" * 64)
    except ValidationError:
        return
    assert Path("/b").joinpath(entry.path).resolve().is_relative_to("/b")
    assert ".." not in Path(entry.path).parts


def test_an_environment_is_installed_from_the_bundle_alone(tmp_path: Path) -> None:
    bundle = made(tmp_path, Download(TARGET, ("smbus2",), ("smbus2",)))
    host = device(python={"packages": ["smbus2"], "index": "https://w.example"})
    (change,) = Python(bundle).changes(host, FACTS)
    puts = [step for step in change.steps if isinstance(step, Put)]
    assert [put.target for put in puts] == [
        "~/.testbed/bundle/wheels/smbus2-py3-none-any.whl",
        "~/.testbed/venv/recipe.json",
    ]
    install = next(s for s in change.steps if isinstance(s, Command) and " pip install" in s.shell)
    assert install.shell.endswith('--no-index --find-links "$HOME/.testbed/bundle/wheels" smbus2')
    assert "w.example" not in install.shell
    assert list(Python(bundle).findings(host, FACTS, [change])) == []
    other = device(python={"packages": ["distro"]})
    (change,) = Python(bundle).changes(other, FACTS)
    (finding,) = Python(bundle).findings(other, FACTS, [change])
    assert (finding.level, finding.text) == ("failure", f"the bundle {tmp_path} has no distro for {TARGET}")


URIS = """
'http://ports.example/pool/i/iperf3/iperf3_3.9-1_arm64.deb' iperf3_3.9-1_arm64.deb 14020 SHA256:{digest}
'http://ports.example/pool/x_1%3a2.deb' x_1%3a2_arm64.deb 7
a line that apt says beside
"""


def test_a_host_says_which_packages_it_lacks() -> None:
    fake = FakeTransport("nano", [(r"--print-uris install iperf3 iw", URIS.format(digest="a" * 64))])
    debs = ask_for_debs("nano", fake, ["iperf3", "iw"])
    assert [(deb.name, deb.bytes, deb.digest) for deb in debs] == [
        ("iperf3_3.9-1_arm64.deb", 14020, "SHA256:" + "a" * 64),
        ("x_1.2_arm64.deb", 7, ""),
    ]
    assert ask_for_debs("nano", FakeTransport("nano"), []) == []
    unknown = Answer(stderr="E: Unable to locate package iw\n", exit_status=100)
    with pytest.raises(HostError, match="nano: apt: Unable to locate package iw"):
        ask_for_debs("nano", FakeTransport("nano", [("print-uris", unknown)]), ["iw"])


@given(st.text())
def test_whatever_apt_says_is_read_or_passed_over(text: str) -> None:
    assert all(deb.name.endswith(".deb") and deb.bytes >= 0 for deb in debs_in(text))


@pytest.mark.parametrize("name", ["../x.deb", "/etc/x.deb", "a/x.deb", "..deb", ".x.deb"])
def test_no_package_that_a_host_names_leads_out_of_its_folder(name: str) -> None:
    assert debs_in(f"'http://ports.example/x.deb' {name} 7 SHA256:{'a' * 64}") == []


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """Serve a folder over HTTP; give the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a, **k: Quiet(*a, directory=str(folder), **k))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_packages_are_fetched_checked_and_indexed(served: Any, tmp_path: Path) -> None:
    folder, address = served
    tree = tmp_path / "tree" / "DEBIAN"
    tree.mkdir(parents=True)
    tree.chmod(0o755)  # whatever the umask: dpkg-deb takes no other
    control = (
        "Package: thing\nVersion: 1.0\nArchitecture: all\nMaintainer: Me <me@example>\nDescription: a thing\n"
    )
    (tree / "control").write_text(control)
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    import subprocess

    deb = folder / "thing_1.0_all.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", tree.parent, deb], check=True, capture_output=True
    )
    content = deb.read_bytes()
    right = Deb(
        f"{address}/{deb.name}", deb.name, len(content), f"SHA256:{hashlib.sha256(content).hexdigest()}"
    )
    maker = BundleMaker(tmp_path / "bundle", Pip())
    assert maker.add_debs(TARGET, [right, right]) == 1
    maker.finish()
    files = {file.name: file for file in load_bundle(tmp_path / "bundle").debs_for(FACTS)}
    assert sorted(files) == ["Packages", "thing_1.0_all.deb"]
    index = files["Packages"].path.read_text()
    assert f"Filename: ./thing_1.0_all.deb\nSize: {len(content)}\nSHA256: {files[deb.name].sha256}\n" in index
    wrong = [
        (replace(right, digest="SHA256:" + "0" * 64), "its sha256 is not what apt says"),
        (replace(right, bytes=1), "1 bytes were expected"),
        (replace(right, digest="MD5Sum:" + "0" * 32), "only MD5Sum"),
        (replace(right, digest=""), "no digest"),
        (replace(right, address=f"{address}/none.deb"), "404"),
        (replace(right, address="file:///etc/passwd"), "only http and https"),
    ]
    for each, text in wrong:
        with pytest.raises(TestbedError, match=text):
            maker.add_debs(TARGET, [each])
