"""The log of a wireless link, against what iw prints and a stand-in for iw."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from payloads.boardlog.__main__ import main
from payloads.boardlog.power import BoardLogError
from payloads.boardlog.wifi import (
    HEADER,
    Bitrate,
    Iw,
    Reading,
    parse_bitrate,
    parse_noise,
    parse_reading,
    record_wifi,
)

AP = "02:5e:10:aa:00:01"
PEER = "02:5e:10:aa:00:77"
LINK = f"""Connected to {AP} (on wlan0)
	SSID: bench net
	freq: 5220.0
	RX: 918273 bytes (5012 packets)
	TX: 402118 bytes (2240 packets)
	signal: -47 dBm
	rx bitrate: 400.0 MBit/s VHT-MCS 9 40MHz short GI VHT-NSS 2
	tx bitrate: 526.5 MBit/s VHT-MCS 6 80MHz VHT-NSS 2

	bss flags:	short-slot-time
	dtim period:	3
	beacon int:	100
"""
DUMP = f"""Station {PEER} (on wlan0)
	inactive time:	40 ms
	signal:  	-81 dBm
	tx bitrate:	6.0 MBit/s
	rx bitrate:	6.0 MBit/s
	TDLS peer:	yes
Station {AP} (on wlan0)
	inactive time:	12 ms
	rx bytes:	918273
	rx packets:	5012
	tx retries:	17
	tx failed:	0
	signal:  	-52 [-55, -54] dBm
	signal avg:	-51 [-54, -53] dBm
	tx bitrate:	585.0 MBit/s VHT-MCS 7 80MHz VHT-NSS 2
	tx duration:	20321 us
	rx bitrate:	180.0 MBit/s VHT-MCS 4 40MHz short GI VHT-NSS 2
	TDLS peer:	no
"""
SURVEY = """Survey data from wlan0
	frequency:			5180 MHz
	noise:				-88 dBm
Survey data from wlan0
	frequency:			5220 MHz [in use]
	noise:				-95 dBm
	channel active time:		83 ms
"""


@pytest.mark.parametrize(
    ("text", "bitrate"),
    [
        ("54.0 MBit/s", Bitrate(54.0, None, None)),  # 802.11g
        ("65.0 MBit/s MCS 7", Bitrate(65.0, 7, 20)),  # HT
        ("300.0 MBit/s MCS 15 40MHz short GI", Bitrate(300.0, 15, 40)),
        ("780.0 MBit/s VHT-MCS 8 80MHz short GI VHT-NSS 2", Bitrate(780.0, 8, 80)),
        ("1560.0 MBit/s VHT-MCS 8 80P80MHz short GI VHT-NSS 2", Bitrate(1560.0, 8, 160)),
        ("258.0 MBit/s HE-MCS 10 HE-NSS 2 HE-GI 0 HE-DCM 0", Bitrate(258.0, 10, 20)),
        ("1921.5 MBit/s 160MHz HE-MCS 9 HE-NSS 2 HE-GI 0 HE-DCM 0", Bitrate(1921.5, 9, 160)),
        ("2882.4 MBit/s 160MHz EHT-MCS 13 EHT-NSS 2 EHT-GI 0", Bitrate(2882.4, 13, 160)),
        ("5764.8 MBit/s 320MHz EHT-MCS 13 EHT-NSS 2 EHT-GI 0", Bitrate(5764.8, 13, 320)),
        ("(unknown)", Bitrate()),
        ("", Bitrate()),
    ],
)
def test_rates_of_every_generation(text, bitrate):
    assert parse_bitrate(text) == bitrate


def test_the_access_point_counts_and_a_peer_does_not():
    assert parse_reading(LINK, DUMP) == Reading(-52, Bitrate(585.0, 7, 80), Bitrate(180.0, 4, 40))


def test_what_the_dump_does_not_tell_is_taken_from_the_link():
    dump = f"Station {AP} (on wlan0)\n\tsignal:  \t-52 dBm\n\ttx bitrate:\t(unknown)\n"
    assert parse_reading(LINK, dump) == Reading(-52, Bitrate(526.5, 6, 80), Bitrate(400.0, 9, 40))
    assert parse_reading(f"Connected to {AP} (on wlan0)\n\tsignal: -60 dBm\n", "") == Reading(-60)


def test_without_a_link_there_is_nothing_to_read():
    assert parse_reading("Not connected.\n", "") == Reading()


def test_noise_is_that_of_the_channel_in_use():
    assert parse_noise(SURVEY) == -95
    assert parse_noise(SURVEY.replace(" [in use]", "")) is None
    assert parse_noise("") is None


@pytest.fixture
def wireless(tmp_path, monkeypatch) -> Path:
    """A tree of interfaces and an iw that prints what stands in files; returns the folder of both."""
    for name in ("eth0", "wlan0", "wlan1"):
        (tmp_path / "sys/class/net" / name).mkdir(parents=True)
    for name in ("wlan0", "wlan1"):
        (tmp_path / "sys/class/net" / name / "phy80211").mkdir()
    said = {"info": "Interface wlan0\n\ttype managed\n", "link": LINK, "station": DUMP, "survey": SURVEY}
    for name, text in said.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bin").mkdir()
    iw = tmp_path / "bin/iw"
    iw.write_text(
        f'#!/bin/sh\n[ -f "{tmp_path}/$3" ] || {{ echo "command failed: No such device (-19)" >&2; exit 237; }}\n'
        f'cat "{tmp_path}/$3"\n'
    )
    iw.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def record(folder, samples, change=None):
    """Record some samples; ``change`` is called before the last one."""
    waits = []

    def stopped(_seconds):
        waits.append(1)
        if change and len(waits) == samples:
            change()
        return len(waits) > samples

    record_wifi("wlan0", folder / "wifi.csv", 200.0, stopped, folder / "sys")
    return (folder / "wifi.csv").read_text().splitlines()


def test_a_log_has_a_line_for_each_sample(wireless):
    lines = record(wireless, 3, lambda: (wireless / "link").write_text("Not connected.\n"))
    assert lines[0] == HEADER
    assert lines[1].split(",", 1)[1] == "wlan0,-52,-95,585,7,180,4,80"
    assert lines[3].split(",", 1)[1] == "wlan0,,-95,,,,,"
    stamps = [int(line.split(",")[0]) for line in lines[1:]]
    assert stamps == sorted(stamps)


def test_a_driver_that_knows_no_noise_is_asked_for_it_once(wireless):
    (wireless / "survey").unlink()
    iw = Iw("wlan0", wireless / "sys")
    assert ",-52,,585," in iw.sample()
    (wireless / "survey").write_text(SURVEY)
    assert ",-52,,585," in iw.sample()


def test_an_iw_that_fails_is_said_once_and_ends_the_log_when_it_stays(wireless, capsys, monkeypatch):
    lines = record(wireless, 3, lambda: (wireless / "link").unlink())
    assert len(lines) == 3
    assert "No such device" in capsys.readouterr().err
    monkeypatch.setattr("payloads.boardlog.wifi._SILENT_S", 0.0)
    (wireless / "link").write_text(LINK)
    ended = []

    def stopped(seconds):
        ended.append(seconds)
        if len(ended) == 2:
            (wireless / "link").unlink()
        time.sleep(0.001)
        return len(ended) > 500

    with pytest.raises(BoardLogError, match="No such device"):
        record_wifi("wlan0", wireless / "wifi.csv", 200.0, stopped, wireless / "sys")


@pytest.mark.parametrize(
    ("interface", "words"),
    [
        ("wlan7", "there is no interface wlan7; wireless are: wlan0, wlan1; choose with --interface"),
        ("../net", "there is no interface ../net"),
        ("eth0", "eth0 is not wireless; wireless are: wlan0, wlan1"),
    ],
)
def test_an_interface_that_is_none_is_refused(wireless, capsys, interface, words):
    arguments = ["--interface", interface, "--out", str(wireless / "x.csv"), "--root", str(wireless / "sys")]
    assert main(["wifi", *arguments]) == 1
    assert capsys.readouterr().err.startswith(words)
    assert not (wireless / "x.csv").exists()


def test_without_iw_it_says_what_to_install(wireless, monkeypatch):
    monkeypatch.setattr("payloads.boardlog.wifi.shutil.which", lambda *_, **__: None)
    with pytest.raises(BoardLogError, match="iw is not installed: apt install iw"):
        Iw("wlan0", wireless / "sys")


def test_an_access_point_is_no_station(wireless):
    (wireless / "info").write_text("Interface wlan0\n\ttype AP\n")
    with pytest.raises(BoardLogError, match="wlan0 is of type AP"):
        Iw("wlan0", wireless / "sys")


def test_a_host_without_wireless_says_so(tmp_path):
    (tmp_path / "class/net/eth0").mkdir(parents=True)
    with pytest.raises(BoardLogError, match="there is no interface wlan0; this host has no wireless one"):
        Iw("wlan0", tmp_path)


def test_the_logger_as_a_service(wireless):
    out, ready = wireless / "wifi.csv", wireless / "ready"
    words = ["wifi", "--interface", "wlan0", "--out", str(out), "--hz", "50", "--root", str(wireless / "sys")]
    logger = subprocess.Popen(
        [sys.executable, "-B", "-m", "payloads.boardlog", *words],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "TESTBED_READY": str(ready)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert logger.poll() is None, logger.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    logger.terminate()
    assert logger.communicate(timeout=60)[1] == ""
    assert logger.returncode == 0
    lines = out.read_text().splitlines()
    assert lines[0] == HEADER
    assert lines[1].endswith(",wlan0,-52,-95,585,7,180,4,80")
