"""Two at one host: who is refused, who takes over, and what is put back by whom when somebody is killed."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time

import pytest

from payloads.services import keeper, power
from payloads.services.layout import ServiceError

READY = "touch $TESTBED_READY; exec sleep 1000"
ANN, BOB = ("--owner", "ann@laptop"), ("--owner", "bob@desk")

# The commands, which look ten times as often as they would.
QUICK = """
import sys
from payloads.services import hold, keeper, reserve
hold._LOOK_S = hold._POLL_S = keeper._LOOK_S = reserve._POLL_S = 0.05
hold._SURE_S = 0.2
from payloads.services.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

# Stand-ins that keep their state in files, as NVIDIA's programs do. Mode 2 wants a reboot, to which nobody says yes.
NVPMODEL = """#!/bin/sh
cd "$BOARD" || exit 9
case "$1" in
    -q) echo "NV Power Mode: $(cat mode)"; echo 7 ;;
    -m) case "$2" in
            0) echo MAXN >mode ;;
            1) echo 15W >mode ;;
            *) echo "NVPM WARN: Reboot required for changing to this power mode: $2"
               while read -r yes; do [ "$yes" = NO ] && exit 1; done; echo "no answer"; sleep 1000 ;;
        esac ;;
esac
"""
JETSON_CLOCKS = """#!/bin/sh
cd "$BOARD" || exit 9
case "$1" in
    --store) echo "/sys/cpu0/scaling_min_freq:$(cat least)" >"$2"; echo "/sys/cpu0/scaling_max_freq:900" >>"$2" ;;
    --restore) sed -n 's/.*min_freq://p' "$2" >part && mv part least ;;
    '') echo 900 >part && mv part least ;;
esac
"""
CONF = "# modes\n< POWER_MODEL ID=0 NAME=MAXN >\nCPU MAX_FREQ 9\n< POWER_MODEL ID=1 NAME=15W >\n" + (
    "< POWER_MODEL ID=2 NAME=30W >\n< PM_CONFIG DEFAULT=0 >\n"
)


class Board:
    """The stand-ins of a board and their state."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.set("MAXN", 100)
        for name, text in (("nvpmodel", NVPMODEL), ("jetson_clocks", JETSON_CLOCKS)):
            program = folder / name
            program.write_text(text)
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        # Not root's programs here, whoever runs the tests.
        sudo = folder / "sudo"
        sudo.write_text('#!/bin/sh\nshift\nexec "$@"\n')
        sudo.chmod(0o755)

    def set(self, mode, least):
        (self.folder / "mode").write_text(f"{mode}\n")
        (self.folder / "least").write_text(f"{least}\n")

    @property
    def now(self):
        return (self.folder / "mode").read_text().strip(), int((self.folder / "least").read_text())


@pytest.fixture
def jetson(tmp_path, monkeypatch):
    """Give the commands, and this process, a board's programs."""
    board = Board(tmp_path / "jetson")
    monkeypatch.setenv("BOARD", str(board.folder))
    monkeypatch.setenv("PATH", str(board.folder), prepend=":")
    monkeypatch.setenv("TESTBED_HOME", str(tmp_path / "home"))
    conf = tmp_path / "nvpmodel.conf"
    conf.write_text(CONF)
    monkeypatch.setattr(power, "CONFS", (str(conf), str(tmp_path / "modes/*.conf")))
    return board


@pytest.fixture
def host(host):
    host.command = [sys.executable, "-S", "-c", QUICK]
    return host


@pytest.fixture
def on_jetson(jetson, host, monkeypatch):
    """The host's commands, on that board."""
    host.environment.update(BOARD=str(jetson.folder), PATH=os.environ["PATH"])
    return host


def said(done):
    return json.loads(done.stdout.splitlines()[-1])


def feed_until(holder, done):
    while not done():
        with contextlib.suppress(BrokenPipeError):  # it may end just now
            # Past the buffer: what stays there would be sent at its close.
            os.write(holder.stdin.fileno(), b".")
        time.sleep(0.02)


def keeper_of(host, eventually):
    """Wait for the keeper, which comes by itself; return its process."""
    record = host.home.parent / "home-shared/lease.json"
    eventually(lambda: json.loads(record.read_text())["keeper"])
    return json.loads(record.read_text())["keeper"]["pid"]


def test_one_holder_at_a_time_and_the_second_hears_who_it_is(host):
    first = host.hold(*ANN, "--purpose", "run x-0001")
    for other in (BOB, ANN):
        refused = host.run("hold", "--wait", "0", *other)
        assert refused.returncode == 3
        by = said(refused)["refused"]
        assert (by["owner"], by["purpose"], by["left_s"]) == ("ann@laptop", "run x-0001", None)
    assert "held by ann@laptop (run x-0001), since 0 min, until it ends" in refused.stderr
    assert host.run("lease", "take", *BOB).returncode == 3
    waiting = host.begin("hold", "--wait", "60", *BOB)
    first.stdin.close()
    assert first.wait(30) == 0
    assert json.loads(waiting.stdout.readline())["held"] is True


@pytest.mark.unhurried
def test_a_holder_that_hears_of_its_controller_is_not_waited_for(host):
    """And one that may be gone is: the wait would last ten minutes here."""
    first = host.hold(*ANN, "--ttl", "60")
    second = host.begin("hold", "--wait", "600", *BOB)
    feed_until(first, lambda: second.poll() is not None)
    assert second.returncode == 3


@pytest.mark.unhurried
def test_a_killed_holder_does_not_keep_the_host(host, kill9):
    first = host.hold(*ANN)
    kill9(first.pid)
    first.wait(30)
    assert json.loads(host.begin("hold", "--wait", "0", *BOB).stdout.readline())["held"] is True


@pytest.mark.unhurried
def test_a_reservation_lets_its_owner_in_alone_and_ends_by_itself(on_jetson, jetson, eventually):
    taken = said(on_jetson.run("lease", "take", *ANN, "--for", "600", "--purpose", "measure"))
    assert taken["power"] == {"mode": "MAXN", "jetson_clocks": False}
    assert on_jetson.run("hold", "--wait", "60", *BOB).returncode == 3  # it does not wait for hours
    holder = on_jetson.hold(*ANN)
    assert on_jetson.run("lease", "release", *ANN).returncode == 3  # its own run goes on there
    jetson.set("MAXN", 900)  # by hand
    assert said(on_jetson.run("lease", "take", *ANN, "--for", "1"))["extended"] is True
    # Its end ends the run too, and the board is as it was when it was taken.
    feed_until(holder, lambda: holder.poll() is not None)
    assert holder.returncode == 1
    assert "the reservation of ann@laptop ended" in holder.stdout.read()
    eventually(lambda: jetson.now == ("MAXN", 100))
    eventually(lambda: not list(on_jetson.home.parent.glob("home*")))  # nothing is left of it


@pytest.mark.unhurried
def test_a_takeover_needs_the_name_and_ends_the_run(on_jetson, jetson, gone, eventually):
    holder = on_jetson.hold(*ANN, "--purpose", "run x-0001")
    on_jetson.start("a", READY)
    pid = on_jetson.pid("a")
    wrong = on_jetson.run("lease", "take", *BOB, "--take-over-from", "eve@desk")
    assert said(wrong)["refused"]["owner"] == "ann@laptop"
    done = on_jetson.run("lease", "take", *BOB, "--take-over-from", "ann@laptop", "--purpose", "mine now")
    assert said(done)["taken_over_from"] == "ann@laptop"
    assert holder.wait(30) == 1
    assert json.loads(holder.stdout.readlines()[-1])["reason"] == "taken over by bob@desk (mine now)"
    assert gone(pid)
    eventually(lambda: said(on_jetson.run("lease", "show"))["keeper"])
    assert said(on_jetson.run("lease", "release", *BOB))["released"] is True
    # At once: the keeper, which looks once a second, has been waited for.
    nobody = {"reserved": None, "held": None, "keeper": None, "left": []}
    assert said(on_jetson.run("lease", "show")) == nobody


def test_what_a_run_has_set_is_put_back_when_its_holder_is_killed(on_jetson, jetson, eventually, kill9):
    holder = on_jetson.hold(*ANN)
    done = on_jetson.run("power", "set", "--jetson-clocks")
    assert said(done)["power"]["before"] == {"mode": "MAXN", "jetson_clocks": False}
    assert jetson.now == ("MAXN", 900)
    kill9(holder.pid)
    holder.wait(30)
    eventually(lambda: jetson.now == ("MAXN", 100))


@pytest.mark.unhurried
def test_what_was_left_by_killed_holder_and_keeper_is_put_back_by_the_next(
    on_jetson, jetson, kill9, eventually
):
    holder = on_jetson.hold(*ANN)
    on_jetson.run("power", "set", "--jetson-clocks")
    kill9(keeper_of(on_jetson, eventually))
    kill9(holder.pid)
    holder.wait(30)
    assert jetson.now == ("MAXN", 900)
    following = on_jetson.begin("hold", *BOB)
    assert json.loads(following.stdout.readline())["restored"] == ["clocks"]
    assert jetson.now == ("MAXN", 100)
    following.stdin.close()
    assert following.wait(30) == 0
    assert not power.kept_folder().exists()  # nor has the killed keeper left anything


@pytest.mark.unhurried
def test_what_was_left_is_put_back_at_boot_unless_another_account_has_the_host(
    on_jetson, jetson, kill9, eventually
):
    """As systemd starts it then, before anybody has come."""
    on_jetson.run("lease", "take", *ANN, "--for", "600")
    kill9(keeper_of(on_jetson, eventually))
    jetson.set("MAXN", 900)  # by hand
    record = on_jetson.home.parent / "home-shared/lease.json"
    written = {**json.loads(record.read_text()), "keeper": None}

    def reserve(**changes):
        part = record.with_suffix(".test")
        part.write_text(json.dumps({**written, "reserved": {**written["reserved"], **changes}}))
        part.replace(record)

    reserve(user="somebody")
    assert on_jetson.run("keep").returncode == 0
    assert jetson.now == ("MAXN", 900)
    # It is hers again, by the calendar now: until its end the board stays as she has set it.
    reserve(boot="of before")
    at_boot = on_jetson.begin("keep")
    keeper_of(on_jetson, eventually)
    assert jetson.now == ("MAXN", 900)
    reserve(boot="of before", until_unix=written["reserved"]["since_unix"])
    assert at_boot.wait(30) == 0
    assert jetson.now == ("MAXN", 100)
    assert not power.kept_folder().exists()
    assert on_jetson.run("keep").returncode == 0  # nothing is left


@pytest.mark.unhurried
def test_what_a_killed_keeper_has_left_of_a_reservation_is_put_back_by_the_next(
    on_jetson, jetson, kill9, eventually
):
    on_jetson.run("lease", "take", *ANN, "--for", "600")
    kill9(keeper_of(on_jetson, eventually))
    jetson.set("MAXN", 900)  # by hand
    within = on_jetson.hold(*ANN)
    assert jetson.now == ("MAXN", 900)  # her own run finds the board as she has set it
    # Its end as by the clock, without the keeper that would come with a command.
    record = on_jetson.home.parent / "home-shared/lease.json"
    written = json.loads(record.read_text())
    written["reserved"]["until_ns"] = written["reserved"]["since_ns"]
    record.write_text(json.dumps(written))
    feed_until(within, lambda: within.poll() is not None)
    assert json.loads(within.stdout.readlines()[-1])["restored"] == ["clocks"]
    assert jetson.now == ("MAXN", 100)


@pytest.mark.unhurried
def test_a_look_at_the_lease_changes_nothing(host):
    """Not even on a host without code, which has nothing yet that would show that it is in use."""
    holder = host.hold(*ANN)
    before = sorted(host.home.rglob("*"))
    assert said(host.run("lease", "show"))["held"]["owner"] == "ann@laptop"
    assert sorted(host.home.rglob("*")) == before != []
    holder.stdin.close()
    assert holder.wait(30) == 0
    assert not host.home.exists()


def test_a_keeper_puts_the_board_back_though_its_services_do_not_end(jetson, capsys):
    class Stuck:
        def status(self):
            return [{"name": "a", "state": "running"}]

        def stop_all(self, reason):
            raise ServiceError("a: cannot be ended")

    power.set_power("15W", clocks=True)
    assert keeper._looked_after("ann@laptop", Stuck)
    assert jetson.now == ("MAXN", 100)
    assert "a: cannot be ended" in capsys.readouterr().err


def test_a_note_of_a_newer_lease_is_left_alone(jetson):
    power.note_power("reservation")
    jetson.set("15W", 100)
    assert power.restore_power(["reservation"], lambda note: False) == {"restored": [], "problems": []}
    assert jetson.now == ("15W", 100)
    assert power.read_note("reservation").mode == "MAXN"


def test_power_is_only_set_on_a_host_that_is_held(on_jetson, jetson):
    refused = on_jetson.run("power", "set", "--jetson-clocks")
    assert refused.returncode == 1
    assert "nobody holds this host" in refused.stderr
    assert jetson.now == ("MAXN", 100)


def test_power_is_set_by_name_asked_again_and_put_back(jetson):
    set_to = power.set_power("15W", clocks=True)
    assert set_to == {
        "mode": "15W",
        "jetson_clocks": True,
        "before": {"mode": "MAXN", "jetson_clocks": False},
    }
    assert jetson.now == ("15W", 900)
    assert power.restore_power(["run"]) == {
        "restored": ["power mode MAXN, from 15W", "clocks"],
        "problems": [],
    }
    assert jetson.now == ("MAXN", 100)
    assert power.restore_power(["run"]) == {"restored": [], "problems": []}
    assert not power.kept_folder().exists()


def test_a_run_within_a_reservation_is_put_back_to_what_its_user_had_set(jetson):
    power.note_power("reservation")
    jetson.set("15W", 300)
    power.set_power(None, clocks=True)
    power.restore_power(["run"])
    assert jetson.now == ("15W", 300)
    power.restore_power(["run", "reservation"])
    assert jetson.now == ("MAXN", 100)


@pytest.mark.parametrize("before", [False, True])
def test_the_note_that_sudo_was_used_does_not_stay(jetson, tmp_path, monkeypatch, before):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(power.os, "geteuid", lambda: 1000)
    mark = tmp_path / ".sudo_as_admin_successful"
    (jetson.folder / "sudo").write_text(f"#!/bin/sh\ntouch {mark} && echo used\n")
    if before:
        mark.touch()
    assert power.run_as_root(["nvpmodel", "-m", "1"]) == "used\n"
    assert mark.exists() == before


def test_a_mode_that_needs_a_reboot_changes_nothing_and_says_so(jetson):
    with pytest.raises(ServiceError, match="its power mode 30W needs a reboot, which nobody asked for"):
        power.set_power("30W", clocks=True)
    assert jetson.now == ("MAXN", 100)
    with pytest.raises(ServiceError, match="it has no power mode 40W: it has 15W, 30W, MAXN"):
        power.set_power("40W", clocks=False)


def test_the_modes_are_read_where_the_link_to_them_is_missing_too(jetson, tmp_path):
    folder = tmp_path / "modes"
    folder.mkdir()
    (tmp_path / "nvpmodel.conf").rename(folder / "nvpmodel_p3767.conf")
    assert power.set_power("15W", clocks=False)["mode"] == "15W"
    (folder / "nvpmodel_p3701.conf").write_text(CONF)  # whose would it be?
    with pytest.raises(ServiceError, match=r"its power modes are unknown: one file .* was expected"):
        power.set_power("MAXN", clocks=False)


def test_what_cannot_be_put_back_is_said_and_stays_noted(jetson):
    power.set_power("15W", clocks=False)
    (jetson.folder / "nvpmodel").write_text("#!/bin/sh\necho NV Power Mode: 15W\n")
    done = power.restore_power(["run"])
    assert done["restored"] == []
    assert "its power mode is 15W after it was set to MAXN" in done["problems"][0]
    assert power.read_note("run").mode == "MAXN"
