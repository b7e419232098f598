import fcntl
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config.inventory import Host, Network
from testbed.hosts.facts import Environment, Facts
from testbed.hosts.facts.system import Access as AccessFacts
from testbed.hosts.facts.system import Packages as PackageFacts
from testbed.hosts.facts.system import System, asked_packages, system_of, wanted_packages
from testbed.hosts.probes import system as probe
from testbed.hosts.steps import Command, Put, Step
from testbed.provision.aspects.access import Access
from testbed.provision.aspects.packages import Packages, missing_packages
from testbed.provision.bundle import load_bundle
from tests.provision.stubs import Board

# Knows what is installed from a file, and what comes along with a package.
APT = """
for word; do
    case "$word" in
    install|update) verb=$word ;;
    --dry-run) dry=1 ;;
    -*|*::*) ;;
    *) names="$names $word" ;;
    esac
done
if [ "$verb" = update ]; then echo update >>$BOARD/log; touch $BOARD/lists; exit 0; fi
test -e $BOARD/lists || { echo "E: Unable to locate package" >&2; exit 100; }
if [ -n "$dry" ]; then
    echo "Inst libown (1.0 Debian:12 [arm64])"; echo "Inst libold [0.9] (1.0 Debian:12 [arm64])"
    echo "Remv rival [0.7] [daemon ]"
    echo "Inst tool (2.0 Debian:12 [arm64]) []"; echo "Conf tool (2.0 Debian:12 [arm64])"; exit 0
fi
echo install $names >>$BOARD/log
case "$names" in *libold*) ;; *) printf 'tool\\nlibown\\n' >>$BOARD/installed ;; esac
"""
QUERY = """
for name; do :; done
grep -qx "$name" $BOARD/installed && echo "ii " || { echo "no packages found" >&2; exit 1; }
"""
PURGE = """
echo "$*" >>$BOARD/log; shift 2
for name; do grep -vx "$name" $BOARD/installed >$BOARD/left; mv $BOARD/left $BOARD/installed; done
"""


def host(**about: Any) -> Host:
    return Host.model_validate({"name": "orin", "role": "device", "address": "x", "user": "ann"} | about)


def facts(installed: dict[str, str] | None = None, **packages: Any) -> Facts:
    found = PackageFacts(apt=True, installed=installed or {}, **packages)
    return Facts("orin", user="ann", sudo=True, system=System(packages=found, access=AccessFacts(("ann",))))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = Board(tmp_path)
    for name, text in (("apt-get", APT), ("dpkg-query", QUERY), ("dpkg", PURGE)):
        made.program(name, text)
    made.program("apt-mark", "echo $* >>$BOARD/marks")
    (tmp_path / "installed").write_text("other\n")
    return made


NAMES = st.builds("a{}".format, st.text("abz09+.-", min_size=1, max_size=8))
STATES = st.sampled_from(["install ok installed", "hold ok installed", "deinstall ok config-files"])


@settings(max_examples=30)
@given(st.dictionaries(NAMES, st.tuples(STATES, st.text("019.:~-", min_size=1, max_size=6))), NAMES)
def test_dpkgs_status_tells_what_is_installed_whole(all_of: dict[str, tuple[str, str]], other: str) -> None:
    status = "\n\n".join(
        f"Package: {name}\nStatus: {state}\nVersion: {version}\nDescription: x\n Package: {other}"
        for name, (state, version) in all_of.items()
    )
    whole = {name: version for name, (state, version) in all_of.items() if state.endswith("installed")}
    assert probe.installed_packages(status, [*all_of, other]) == whole


def test_only_what_is_missing_is_installed_and_exactly_what_came_goes(board: Board) -> None:
    wanted = host(packages=["tool", "there"])
    (change,) = Packages().changes(wanted, facts({"there": "1"}))
    assert (change.before, change.after) == ("missing", "tool")
    assert all(not done.returncode for done in board.run(change.steps))
    # apt's lists did not know it, so they were brought up to date once.
    assert board.log == ["update", "install tool"]
    assert (board.folder / "installed").read_text().split() == ["other", "tool", "libown"]
    for _ in range(2):
        undone = board.run(Packages().undo(wanted, facts(), change.recorded))
        assert all(not done.returncode for done in undone), undone[-1].stderr
        assert (board.folder / "installed").read_text() == "other\n"
    assert board.log[2:] == ["--purge --force-remove-reinstreq libown tool", "install libold=0.9 rival=0.7"]
    assert (board.folder / "marks").read_text() == "manual libown tool\n"
    assert not (board.home / ".testbed/packages").exists()


def test_undoing_after_a_cut_off_attempt_removes_what_had_come(board: Board) -> None:
    (change,) = Packages().changes(host(packages=["tool"]), facts())
    board.run(change.steps[:1])
    (board.folder / "installed").write_text("other\nlibown\n")
    (again,) = Packages().changes(host(packages=["tool"]), facts())
    board.run(again.steps[:1])  # what had come already is still in the note
    assert all(not done.returncode for done in board.run(Packages().undo(host(), facts(), change.recorded)))
    assert (board.folder / "installed").read_text() == "other\n"


def test_what_an_upgraded_package_needs_goes_when_its_old_version_is_there_again(board: Board) -> None:
    (change,) = Packages().changes(host(packages=["tool"]), facts())
    board.run(change.steps)
    refuse = "test -e $BOARD/old || { echo 'dpkg: libold depends on libown' >&2; exit 1; }"
    board.program("dpkg", f"{refuse}\n{PURGE}")
    board.program("apt-get", 'case "$*" in *libold=0.9*) touch $BOARD/old ;; esac')
    undone = board.run(Packages().undo(host(), facts(), change.recorded))
    assert all(not done.returncode for done in undone), undone[-1].stderr
    assert (board.folder / "installed").read_text() == "other\n"


def test_another_dpkg_that_is_at_work_is_waited_for(board: Board) -> None:
    (change,) = Packages().changes(host(packages=["tool"]), facts())
    board.run(change.steps)
    locked = "dpkg: error: dpkg frontend lock was locked by another process with pid 7"
    wait = f"test -e $BOARD/free || {{ echo '{locked}' >&2; exit 2; }}"
    board.program("dpkg", f"{wait}\n{PURGE}")
    board.program("sleep", "touch $BOARD/free")
    undone = board.run(Packages().undo(host(), facts(), change.recorded))
    assert all(not done.returncode for done in undone), undone[0].stderr
    assert (board.folder / "installed").read_text() == "other\n"


def test_an_apt_that_was_left_alone_and_has_brought_nothing_yet_is_waited_for(board: Board) -> None:
    (change,) = Packages().changes(host(packages=["tool"]), facts())
    board.run(change.steps[:1])
    locked = "dpkg: error: dpkg frontend lock was locked by another process with pid 7"
    wait = f"test -e $BOARD/free || {{ echo '{locked}' >&2; exit 2; }}"
    board.program("dpkg", f"{wait}\n{PURGE}")
    board.program("sleep", r"printf 'tool\nlibown\n' >>$BOARD/installed; touch $BOARD/free")
    undone = board.run(Packages().undo(host(), facts(), change.recorded))
    assert all(not done.returncode for done in undone), undone[0].stderr
    assert (board.folder / "free").exists()
    assert (board.folder / "installed").read_text() == "other\n"


def test_apt_goes_on_to_its_end_where_nobody_listens_any_more(board: Board) -> None:
    (change,) = Packages().changes(host(packages=["tool"]), facts())
    board.run(change.steps[:1])
    board.program(
        "apt-get", f"echo Unpacking || exit 1\ncut -d' ' -f6 /proc/self/stat >$BOARD/session\n{APT}"
    )
    (install,) = change.steps[1:]
    assert isinstance(install, Command)
    # A device that takes no byte is what a lost connection is to whoever writes to it.
    (done,) = board.run([replace(install, shell=f"exec >/dev/full; {install.shell}")])
    assert done.returncode == 0, done.stderr
    assert int((board.folder / "session").read_text()) != os.getsid(0)


@pytest.mark.parametrize(
    ("program", "told"),
    [("apt-get", "apt cannot bring back libold=0.9 rival=0.7"), ("dpkg", "dpkg does not remove libown tool")],
)
def test_an_undoing_that_cannot_be_says_how_to_get_past_it(board: Board, program: str, told: str) -> None:
    (change,) = Packages().changes(host(packages=["tool"]), facts())
    board.run(change.steps)
    board.program(program, "exit 1")
    (failed,) = board.run(Packages().undo(host(), facts(), change.recorded))
    said = failed.stderr.splitlines()[-1]
    assert (failed.returncode, said.startswith(told)) == (1, True), said
    Path(said.rpartition("sudo rm ")[2]).unlink()
    assert all(not done.returncode for done in board.run(Packages().undo(host(), facts(), change.recorded)))


def test_undoing_what_never_began_does_nothing(board: Board) -> None:
    (change,) = Packages().changes(host(packages=["tool"]), facts())
    assert all(not done.returncode for done in board.run(Packages().undo(host(), facts(), change.recorded)))
    assert board.log == []


def test_what_apt_cannot_find_is_a_failure_with_its_words(board: Board) -> None:
    board.program("apt-get", 'echo "E: Unable to locate package tool" >&2; exit 100')
    (change,) = Packages().changes(host(packages=["tool"]), facts())
    (done,) = board.run(change.steps)
    assert (done.returncode, "Unable to locate package tool" in done.stderr) == (100, True)
    assert all(not done.returncode for done in board.run(Packages().undo(host(), facts(), change.recorded)))
    assert not (board.home / ".testbed/packages").exists()


def test_a_version_that_is_asked_for_is_held_against_the_one_that_is_there() -> None:
    wanted = host(packages=["tool=2.0", "other"])
    assert missing_packages(wanted, facts({"tool": "1.0", "other": "7"})) == ["tool=2.0"]
    assert missing_packages(wanted, facts({"tool": "2.0", "other": "7"})) == []
    (change,) = Packages().changes(wanted, facts({"tool": "1.0", "other": "7"}))
    assert change.before == "other versions"


def test_what_testbed_needs_follows_from_the_role_and_the_shaping() -> None:
    device, station = host(), host(role="base_station")
    assert (wanted_packages(device), wanted_packages(station)) == ((), ("iproute2",))
    for made in (device, station):
        made._network = Network(shaping="device")
    assert wanted_packages(device) == wanted_packages(station) == ("iproute2",)
    device._network = Network(shaping="none")
    assert wanted_packages(device) == ("iw",)
    assert wanted_packages(host(packages=["iw=5", "bb", "bb"])) == ("iw=5", "bb")


@pytest.mark.parametrize(
    ("python", "installed", "recipe", "missing"),
    [
        ({}, {"python3": "3"}, None, ["python3-venv"]),
        ({"interpreter": "/usr/bin/python3.11"}, {"python3.11": "3"}, None, ["python3.11-venv"]),
        ({}, {"python3": "3", "python3-venv": "3"}, None, []),
        ({}, {"python3": "3"}, {}, []),  # an environment that is there needs it no more
        ({}, {}, None, []),  # not Debian's Python
        ({"interpreter": "/opt/py"}, {"python3": "3"}, None, []),
        ({"manage": False}, {"python3": "3"}, None, []),
    ],
)
def test_debians_python_needs_a_package_to_make_an_environment(
    python: dict[str, Any], installed: dict[str, str], recipe: Any, missing: list[str]
) -> None:
    wanted, found = host(python=python), facts(installed)
    found = Facts("orin", system=found.system, environment=Environment(recipe=recipe))
    assert missing_packages(wanted, found) == missing
    assert set(missing) <= set(asked_packages(wanted))


def test_a_dpkg_that_was_cut_off_must_be_told_to_go_on() -> None:
    for packages, level in (({"tool"}, "failure"), (set(), "warning")):
        wanted = host(packages=list(packages))
        assert list(Packages().changes(wanted, facts(interrupted=True))) == []
        (finding,) = Packages().findings(wanted, facts(interrupted=True), ())
        assert (finding.level, finding.hint) == (level, "on the host: sudo dpkg --configure -a")


def test_a_dpkg_that_is_at_work_was_not_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "updates").mkdir()
    (tmp_path / "updates" / "0000").touch()
    monkeypatch.setattr(probe, "DPKG_UPDATES", str(tmp_path / "updates"))
    monkeypatch.setattr(probe, "DPKG_LOCK", str(tmp_path / "lock"))
    assert probe.packages([])["interrupted"]
    with (tmp_path / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        assert not probe.packages([])["interrupted"]
    assert probe.packages([])["interrupted"]


def test_a_host_without_apt_is_told_and_a_run_only_warns() -> None:
    bare = Facts("orin", system=System(access=AccessFacts(("ann",))))
    (finding,) = Packages().findings(host(packages=["tool"]), bare, ())
    assert finding.level == "failure"
    (finding,) = Packages().findings(host(packages=["tool"]), facts(), ())
    assert (finding.level, finding.text) == ("warning", "tool is missing")


def test_a_bundles_packages_are_sent_and_nothing_else_is_asked(tmp_path: Path) -> None:
    (tmp_path / "debs").mkdir()
    files = []
    for name in ("tool_1_arm64.deb", "Packages"):
        (tmp_path / "debs" / name).write_bytes(name.encode())
        digest = hashlib.sha256(name.encode()).hexdigest()
        files.append({"path": f"debs/{name}", "name": name, "bytes": len(name), "sha256": digest})
    sets = [{"target": "cp310-aarch64-glibc2.35", "files": [file["sha256"] for file in files]}]
    (tmp_path / "bundle.json").write_text(json.dumps({"version": 1, "files": files, "debs": sets}))
    aspect = Packages(load_bundle(tmp_path))
    environment = Environment("3.10.12", base_version="3.10.12", glibc="2.35")
    orin = Facts("orin", machine="aarch64", system=facts().system, environment=environment)
    (change,) = aspect.changes(host(packages=["tool"]), orin)
    puts = [step.target for step in change.steps if isinstance(step, Put)]
    assert puts == ["~/.testbed/bundle/debs/tool_1_arm64.deb", "~/.testbed/bundle/debs/Packages"]
    commands = [step.shell for step in change.steps if isinstance(step, Command)]
    assert all("Dir::Etc::sourceparts=/dev/null" in shell for shell in commands[:-1])
    assert commands[-1].startswith('rm -rf "$HOME/.testbed/bundle/debs" && ')
    # One of another kind gets nothing from it, and hears why.
    other = Facts("orin", machine="x86_64", system=facts().system, environment=environment)
    assert list(aspect.changes(host(packages=["tool"]), other)) == []
    (finding,) = aspect.findings(host(packages=["tool"]), other, ())
    assert finding.text == "the bundle has no packages for it, and tool is missing"


def access(member: list[str], **more: Any) -> Facts:
    found = AccessFacts(("ann", "video", "render", "dialout", "jtop", "sudo"), tuple(member), **more)
    return Facts("orin", l4t="36.4.3", user="ann", sudo=True, system=System(access=found))


def test_the_user_is_put_in_groups_that_are_there() -> None:
    wanted = host(groups=["dialout"])
    (change,) = Access().changes(wanted, access(["ann", "video"]))
    assert change.steps[-1].line().startswith("orin: (root) usermod -aG dialout,render ann && ")
    assert (change.reconnect, change.recorded["groups"]) == (True, ["dialout", "render"])
    assert list(Access().changes(wanted, access(["ann", "video", "render", "dialout"]))) == []
    (finding,) = Access().findings(host(groups=["none"]), access(["ann"]), ())
    assert (finding.level, finding.text) == ("failure", "there is no group none")


def test_where_systemd_runs_the_users_manager_begins_anew_with_the_groups() -> None:
    (change,) = Access().changes(host(groups=["dialout"]), replace(access(["ann"]), systemd=True))
    lines = [step.line() for step in change.steps]
    assert "usermod -aG dialout" in lines[-2]
    assert lines[-1].startswith('orin: (root) systemctl try-restart "user@$(id -u ann).service"')


def test_root_needs_no_group() -> None:
    assert list(Access().changes(host(user="root", groups=["dialout"]), Facts("orin", user="root"))) == []


@pytest.fixture
def groups(board: Board) -> Board:
    """Return a board whose programs for groups also write entries and backups, as the real ones do."""
    board.program("id", "sed -n 's/:.*ann$//p' $BOARD/etc/group | tr '\\n' ' '")
    board.program(
        "usermod", "cp -p $BOARD/etc/group $BOARD/etc/group-; sed -i '/^video/s/$/ann/' $BOARD/etc/group"
    )
    take = "sed -i '/^video/s/ann$//' $BOARD/etc/group; echo 'video:!::' >>$BOARD/etc/gshadow"
    board.program("gpasswd", f'echo "$*" >>$BOARD/log; cp $BOARD/etc/group $BOARD/etc/group-; {take}')
    (board.folder / "etc").mkdir()
    (board.folder / "etc/group").write_text("video:x:44:\njtop:x:9:\n")
    (board.folder / "etc/gshadow").write_text("jtop:$6$hash::\n")
    (board.folder / "etc/gshadow").chmod(0o640)
    (board.home / ".testbed").mkdir(parents=True)
    return board


def below(steps: Iterable[Step], board: Board) -> list[Step]:
    moved: list[Step] = []
    for step in steps:
        assert isinstance(step, Command)
        moved.append(Command(step.host, step.shell.replace("/etc/", f"{board.folder}/etc/"), step.title))
    return moved


def tree(board: Board) -> dict[str, tuple[str, int]]:
    files = [*(board.folder / "etc").iterdir(), *(board.home / ".testbed").iterdir()]
    return {path.name: (path.read_text(), path.stat().st_mode) for path in files}


def test_groups_are_given_back_with_all_that_was_written_beside_them(groups: Board) -> None:
    before = tree(groups)
    (change,) = Access().changes(host(), access(["ann", "render"]))
    assert all(not done.returncode for done in groups.run(below(change.steps, groups)))
    kept = next((groups.home / ".testbed").iterdir())
    assert (kept.stat().st_mode & 0o777, "hash" in str(change.recorded)) == (0o700, False)
    for _ in range(2):
        undone = groups.run(below(Access().undo(host(), access([]), change.recorded), groups))
        assert not undone[-1].returncode, undone[-1].stderr
        assert tree(groups) == before
    assert groups.log == []


def test_groups_of_which_no_files_were_kept_are_taken_back_one_by_one(groups: Board) -> None:
    (groups.folder / "etc/group").write_text("video:x:44:ann\n")
    recorded = {"user": "ann", "groups": ["video", "jtop"]}
    assert not groups.run(below(Access().undo(host(), access([]), recorded), groups))[-1].returncode
    assert groups.log == ["-d ann video"]


@pytest.mark.parametrize("finished", [True, False])
def test_what_others_changed_since_is_kept(finished: bool, groups: Board) -> None:
    (change,) = Access().changes(host(), access(["ann", "render"]))
    steps = below(change.steps, groups)
    groups.run(steps if finished else steps[:1])
    with (groups.folder / "etc/group").open("a") as file:
        file.write("new:x:99:\n")
    undone = groups.run(below(Access().undo(host(), access([]), change.recorded), groups))
    assert not undone[-1].returncode, undone[-1].stderr
    assert (groups.folder / "etc/group").read_text() == "video:x:44:\njtop:x:9:\nnew:x:99:\n"
    assert groups.log == (["-d ann video"] if finished else [])
    assert list((groups.home / ".testbed").iterdir()) == []


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        (
            access(["ann", "sudo"]),
            "give the password with --ask-become-password, or on the host: echo 'ann ALL",
        ),
        (access(["ann"]), "on the host, as root: usermod -aG sudo ann"),
        (access(["ann"], sudo_program=False), "on the host, as root: apt-get install sudo"),
    ],
)
def test_what_becoming_root_needs_is_said_exactly(found: Facts, hint: str) -> None:
    locked = Facts("orin", l4t="36.4.3", user="ann", system=found.system)
    changes = list(Access().changes(host(), locked))
    (finding,) = Access().findings(host(), locked, changes)
    assert finding.text == "ann cannot become root without a password, which is needed for: access"
    assert finding.hint.startswith(hint)
    assert list(Access().findings(host(), locked, ())) == []


def test_what_this_machine_says_becomes_facts() -> None:
    raw = json.loads(json.dumps(probe.system_facts({"packages": ["dpkg", "no-such-package"]})))
    read = system_of(raw)
    assert "no-such-package" not in read.packages.installed
    assert set(read.access.member) <= set(read.access.groups)
    home = next(iter(read.disks.values()))
    assert 0 <= home.free_bytes <= home.total_bytes
    assert system_of({}) == System()
