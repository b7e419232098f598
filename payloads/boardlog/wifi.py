"""The log of a device's wireless link, as its driver tells it to ``iw``: signal, rates, modulation, width.

What ``iw`` prints is meant for people and differs a little between versions and drivers: whatever is not found
is left empty. No name of a network and no address of a station is written down.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from payloads.boardlog.power import BoardLogError
from payloads.boardlog.ticks import Lines, ticks
from payloads.services.ready import announce_ready

__all__ = [
    "HEADER",
    "Bitrate",
    "Iw",
    "Reading",
    "parse_bitrate",
    "parse_noise",
    "parse_reading",
    "record_wifi",
]

HEADER = "mono_ns,interface,signal_dbm,noise_dbm,tx_mbit,tx_mcs,rx_mbit,rx_mcs,width_mhz"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,15}")
_ADDRESS = r"((?:[0-9a-f]{2}:){5}[0-9a-f]{2})"
_RATE = re.compile(r"([0-9.]+) MBit/s(.*)")
_MCS = re.compile(r"\bMCS ([0-9]+)")  # MCS of HT, VHT-MCS, HE-MCS, EHT-MCS
_WIDTH = re.compile(r"\b([0-9]+)(?:(?:P|\+)([0-9]+))?MHz")
_DEFAULT_WIDTH_MHZ = 20  # what iw does not print
_TIMEOUT_S = 5.0
_SILENT_S = 15.0


class Bitrate(NamedTuple):
    """One direction of a link.

    Attributes:
        mbit: The physical rate in Mbit/s.
        mcs: The number of the modulation and coding scheme; None at the rates of 802.11a/b/g, which have none.
        width_mhz: The width in MHz; None at these rates too.
    """

    mbit: Optional[float] = None
    mcs: Optional[int] = None
    width_mhz: Optional[int] = None


class Reading(NamedTuple):
    """What a driver told; None is what it did not tell.

    Attributes:
        signal_dbm: The signal received last.
        tx: From the device to the access point.
        rx: From the access point to the device.
    """

    signal_dbm: Optional[int] = None
    tx: Bitrate = Bitrate()
    rx: Bitrate = Bitrate()


def parse_bitrate(text: str) -> Bitrate:
    """Read what stands behind ``tx bitrate:``, such as ``866.7 MBit/s VHT-MCS 9 80MHz short GI VHT-NSS 2``."""
    found = _RATE.match(text.strip())
    if found is None:
        return Bitrate()  # (unknown)
    mcs, width = _MCS.search(found[2]), _WIDTH.search(found[2])
    width_mhz = int(width[1]) + int(width[2] or 0) if width else None
    if mcs and width_mhz is None:
        width_mhz = _DEFAULT_WIDTH_MHZ
    return Bitrate(float(found[1]), int(mcs[1]) if mcs else None, width_mhz)


def parse_reading(link: str, stations: str) -> Reading:
    """Read what ``iw dev IF link`` and ``iw dev IF station dump`` print.

    The station that counts is the access point that ``link`` names; peers beside it do not. What only one of the two
    tells is taken from that one, and from the dump where both do. A device without a link gives a reading of Nones.
    """
    connected = re.match(rf"Connected to {_ADDRESS}", link)
    if connected is None:
        return Reading()
    blocks = re.split(rf"(?m)^Station {_ADDRESS}.*$", stations)
    of_station = dict(zip(blocks[1::2], blocks[2::2])).get(connected[1], "")

    def value(key: str) -> Optional[str]:
        for text in (of_station, link):
            found = re.search(rf"(?m)^[ \t]*{key}:[ \t]*(.*)$", text)
            if found and found[1] and "unknown" not in found[1]:
                return found[1]
        return None

    signal = re.match(r"-?[0-9]+", value("signal") or "")
    return Reading(
        int(signal[0]) if signal else None,
        parse_bitrate(value("tx bitrate") or ""),
        parse_bitrate(value("rx bitrate") or ""),
    )


def parse_noise(survey: str) -> Optional[int]:
    """Return the noise in dBm on the channel in use, from ``iw dev IF survey dump``; None where it is not told."""
    for block in survey.split("Survey data from")[1:]:
        noise = re.search(r"(?m)^[ \t]*noise:[ \t]*(-?[0-9]+) dBm", block)
        if "[in use]" in block and noise:
            return int(noise[1])
    return None


class Iw:
    """Asks ``iw`` about one interface.

    Args:
        interface: The wireless interface.
        root: Where sysfs is.

    Raises:
        BoardLogError: There is no ``iw``, no such interface, or it is no station of a wireless network.
    """

    def __init__(self, interface: str, root: Path = Path("/sys")) -> None:
        self._interface = interface
        there = sorted(path.parent.name for path in root.glob("class/net/*/phy80211"))
        if not _NAME.fullmatch(interface) or not (root / "class/net" / interface).exists():
            raise BoardLogError(f"there is no interface {interface}; {_list(there)}; choose with --interface")
        if interface not in there:
            raise BoardLogError(f"{interface} is not wireless; {_list(there)}; choose with --interface")
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
        program = shutil.which("iw", path=path)
        if program is None:
            raise BoardLogError("iw is not installed: apt install iw")
        self._program = program
        kind = re.search(r"(?m)^\s*type (\S+)", self._ask("info"))
        if kind and kind[1] != "managed":
            raise BoardLogError(
                f"{interface} is of type {kind[1]}, not a station of an access point (managed)"
            )
        self._knows_noise = True

    def sample(self) -> str:
        """Return one line of the log, with the time of the middle of the reading.

        Raises:
            BoardLogError: ``iw`` failed.
        """
        begun_ns = time.monotonic_ns()
        reading = parse_reading(self._ask("link"), self._ask("station", "dump"))
        stamp = (begun_ns + time.monotonic_ns()) // 2
        width = reading.tx.width_mhz if reading.tx.width_mhz is not None else reading.rx.width_mhz
        tx, rx = reading.tx, reading.rx
        values = (reading.signal_dbm, self._noise(), tx.mbit, tx.mcs, rx.mbit, rx.mcs, width)
        cells = ("" if value is None else f"{value:g}" for value in values)
        return ",".join([str(stamp), self._interface, *cells]) + "\n"

    def _noise(self) -> Optional[int]:
        """Return the noise; a driver that does not tell it is asked only once."""
        if not self._knows_noise:
            return None
        try:
            noise = parse_noise(self._ask("survey", "dump"))
        except BoardLogError:
            noise = None
        self._knows_noise = noise is not None
        return noise

    def _ask(self, *words: str) -> str:
        command = [self._program, "dev", self._interface, *words]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={**os.environ, "LC_ALL": "C"},
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BoardLogError(f"{' '.join(command)}: {error}") from error
        if done.returncode != 0:
            said = " ".join(done.stderr.decode("utf-8", "replace").split())
            raise BoardLogError(f"{' '.join(command)}: {said or f'status {done.returncode}'}")
        return done.stdout.decode("utf-8", "replace")


def record_wifi(
    interface: str, out: Path, hz: float, stopped: Callable[[float], bool], root: Path = Path("/sys")
) -> None:
    """Append the state of a wireless link to a file until told to stop.

    Args:
        interface: The wireless interface.
        out: The file: lines of :data:`HEADER`; what is not known is empty.
        hz: Samples a second.
        stopped: Waits for the seconds given and returns True when it is time to end.
        root: Where sysfs is.

    Raises:
        BoardLogError: The interface cannot be read, or has not been readable for some seconds.
    """
    iw, lines = Iw(interface, root), Lines(out, HEADER)
    announced, heard_s, failing = False, time.monotonic(), False
    for _ in ticks(hz, stopped):
        try:
            lines.write(iw.sample())
        except BoardLogError as error:
            if time.monotonic() - heard_s > max(_SILENT_S, 3 / hz):
                raise
            if not failing:
                print(error, file=sys.stderr, flush=True)
            failing = True
            continue
        heard_s, failing = time.monotonic(), False
        if not announced:
            announce_ready()
            announced = True
    lines.close()


def _list(interfaces: list[str]) -> str:
    return f"wireless are: {', '.join(interfaces)}" if interfaces else "this host has no wireless one"
