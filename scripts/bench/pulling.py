#!/usr/bin/env python3
"""What pulling objects is worth: how much of the cable it fills, and what cuts and new placements cost. Needs root.

    sudo python scripts/bench/pulling.py [--only one|small|disk|eight|capped|mirror|cuts|moved ...] [--json FILE]

In network namespaces of its own, every cable a token bucket of 1 Gbit/s, all in one run on one machine:

- ``one``: one device, large objects, beside curl and scp with sha256sum after them;
- ``small``: one device, objects of the size of the tiny model's experts, beside curl;
- ``disk``: the same with a disk that takes 10 ms to make an object safe, in one lane and in four;
- ``eight``: eight devices at once, the seconds counted from the first one's start to the last one's end;
- ``capped``: one device with 100 Mbit/s for itself;
- ``mirror``: four devices want the same; with the first of them as a mirror, and with one that is full already;
- ``cuts``: a pull that is killed ten times at random moments, and what the base station sent in all;
- ``moved``: another placement, of which a quarter is new.

Figures are payload, while a cable of 1 Gbit/s carries 957 Mbit/s of it. Files lie in memory where there is /dev/shm, so
that the network is measured and not this machine's disk. The exit status is 1 when a floor is missed, which is named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pulling_lab import BS, Lab
from pulling_site import Site

PARTS = ("one", "small", "disk", "eight", "capped", "mirror", "cuts", "moved")
MBIT = 1000.0
LARGE, SMALL = 64 << 20, 442_368
FLOOR_SHARE = 0.90
FLOOR_PEERS = 0.97
CAP_MBIT = 100.0
CUTS = 10


def main() -> int:
    """Measure, print the figures, and return 1 when a floor was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="this part, and so again")
    parser.add_argument("--python", default=sys.executable, help="what pulls and serves (default: this one)")
    parser.add_argument("--folder", type=Path, help="where files lie (default: in memory)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("this needs root: network namespaces and queueing disciplines", file=sys.stderr)
        return 2
    folder = options.folder or (Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    machine = f"{platform.machine()}, Linux {platform.release()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}", flush=True)
    result: dict[str, Any] = {"machine": machine}
    missed: list[str] = []
    for part in options.only or PARTS:
        with tempfile.TemporaryDirectory(dir=folder) as root, Lab(8, MBIT) as lab:
            site = Site(lab, Path(root), options.python)
            result[part] = globals()[part](site, missed)
    result["missed"] = missed
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print("all floors held" if not missed else f"{len(missed)} floors missed:")
    for line in missed:
        print(f"  {line}")
    return 1 if missed else 0


def mbit(size_bytes: float, seconds: float) -> float:
    """Return a rate in Mbit/s."""
    return size_bytes * 8 / 1e6 / seconds


def say(part: str, what: str, **figures: float) -> None:
    """Print a line of figures."""
    shown = ", ".join(
        f"{key} {value:.3g}" if value < 10 else f"{key} {value:.0f}" for key, value in figures.items()
    )
    print(f"{part:7} {what:34} {shown}", flush=True)


def floor(missed: list[str], what: str, value: float, least: float) -> None:
    """Note where a figure is below its floor."""
    if value < least:
        missed.append(f"{what}: {value:.3f}, at least {least:g} was expected")


def one(site: Site, missed: list[str]) -> dict[str, float]:
    """One device and large objects, beside what else copies files and looks at them afterwards."""
    wanted = site.objects("large", 4, LARGE)
    site.serve(BS)
    total = 4 * LARGE
    done = site.pull("d0", wanted)
    rates = {"ours": mbit(total, done["seconds"])}
    for name, seconds in site.peers("d1", wanted).items():
        rates[name] = mbit(total, seconds)
    share = rates["ours"] / MBIT
    say("one", "Mbit/s of payload", **rates)
    floor(missed, "one device: share of the cable", share, FLOOR_SHARE)
    # The cable is the limit of both; what is compared is whether hashing and the disk stand in the way.
    floor(missed, "one device: as fast as curl without any check", rates["ours"] / rates["curl"], FLOOR_PEERS)
    return rates


def small(site: Site, missed: list[str]) -> dict[str, float]:
    """One device and many small objects."""
    wanted = site.objects("small", 300, SMALL)
    site.serve(BS)
    rates = {"ours": mbit(300 * SMALL, site.pull("d0", wanted)["seconds"])}
    rates["curl"] = mbit(300 * SMALL, site.curl("d1", wanted))
    say("small", "Mbit/s of payload", **rates)
    floor(missed, "small objects: share of the cable", rates["ours"] / MBIT, FLOOR_SHARE)
    return rates


def disk(site: Site, missed: list[str]) -> dict[str, float]:
    """Small objects and a slow disk: what one lane waits for, others fill."""
    wanted = site.objects("small", 150, SMALL)
    site.serve(BS)
    rates = {}
    for device, lanes in (("d0", 1), ("d1", 4)):
        done = site.pull(device, wanted, "--lanes", str(lanes), sync_ms=10)
        rates[f"{lanes} lanes"] = mbit(150 * SMALL, done["seconds"])
    say("disk", "Mbit/s, 10 ms to the disk", **rates)
    floor(missed, "a slow disk: share of the cable", rates["4 lanes"] / MBIT, 0.8)
    return rates


def eight(site: Site, missed: list[str]) -> dict[str, float]:
    """Eight devices at once."""
    wanted = site.objects("large", 1, LARGE) + site.objects("small", 50, SMALL)
    site.serve(BS)
    seconds, done = site.pull_together(dict.fromkeys(site.lab.devices, wanted))
    total = sum(each["bytes"] for each in done)
    rates = {"together": mbit(total, seconds)}
    own = [mbit(each["bytes"], each["seconds"]) for each in done]
    rates |= {"slowest": min(own), "fastest": max(own)}
    say("eight", "Mbit/s of payload", **rates)
    floor(missed, "eight devices: share of the base station's cable", rates["together"] / MBIT, FLOOR_SHARE)
    return rates


def capped(site: Site, missed: list[str]) -> dict[str, float]:
    """A client with a bandwidth of its own, while another is on."""
    wanted = site.objects("large", 4, 8 << 20)
    site.serve(BS, "--client-mbit", f"{CAP_MBIT:g}")
    _, done = site.pull_together({"d0": wanted, "d1": wanted})
    rates = {
        device: mbit(each["bytes"], each["seconds"]) for device, each in zip(("d0", "d1"), done, strict=True)
    }
    say("capped", f"Mbit/s of payload, {CAP_MBIT:g} each", **rates)
    for rate in rates.values():
        floor(missed, "a client's bandwidth, used", rate / CAP_MBIT, 0.90)
        floor(missed, "a client's bandwidth, kept", CAP_MBIT / rate, 1 / 1.02)
    return rates


def mirror(site: Site, missed: list[str]) -> dict[str, float]:
    """Four devices want the same, from the base station alone, from a mirror, and from one that is full already."""
    devices = site.lab.devices[:4]
    wanted = site.objects("large", 2, 32 << 20)
    size = 2 * (32 << 20)
    site.serve(BS)
    figures = {}
    alone_s, _ = site.pull_together(dict.fromkeys(devices, wanted))
    figures["alone_s"], figures["alone_sent"] = alone_s, site.sent(BS) / size
    for device in devices:
        site.forget(device)
    before = site.sent(BS)
    first_s, _ = site.pull_together({devices[0]: wanted})
    site.serve(devices[0])
    then_s, _ = site.pull_together(dict.fromkeys(devices[1:], wanted), mirrors=(devices[0],))
    figures["mirror_s"], figures["mirror_sent"] = first_s + then_s, (site.sent(BS) - before) / size
    for device in devices[1:]:
        site.forget(device)
    before = site.sent(BS)
    full_s, _ = site.pull_together(dict.fromkeys(devices[1:], wanted), mirrors=(devices[0],))
    figures["full_s"], figures["full_sent"] = full_s, (site.sent(BS) - before) / size
    say("mirror", "sent: copies that left the BS", **figures)
    floor(
        missed, "a mirror spares the base station copies", figures["alone_sent"] - figures["mirror_sent"], 2.9
    )
    return figures


def cuts(site: Site, missed: list[str]) -> dict[str, float]:
    """A pull that is killed again and again."""
    wanted = site.objects("large", 6, 32 << 20)
    size = 6 * (32 << 20)
    site.serve(BS)
    before = site.sent(BS)
    generator = random.Random(7)
    killed = sum(site.cut("d0", wanted, generator.uniform(0.06, 0.14)) for _ in range(CUTS))
    done = site.pull("d0", wanted)
    site.check("d0", wanted)
    extra = site.sent(BS) - before - size * (1514 / 1448)
    figures = {"cuts": killed, "objects_twice": extra / (32 << 20), "left_to_pull": done["bytes"] / size}
    say("cuts", "sent twice, in objects", **figures)
    floor(missed, "times that it was cut", killed, CUTS)
    floor(missed, "objects sent twice, less than one", 1 - figures["objects_twice"], 0)
    return figures


def moved(site: Site, missed: list[str]) -> dict[str, float]:
    """Another placement, and then the same again."""
    every = site.objects("small", 100, SMALL)
    site.serve(BS)
    site.pull("d0", every[:80])
    new, same = site.pull("d0", every[20:]), site.pull("d0", every[20:])
    figures = {
        "wanted": len(every[20:]),
        "new": new["pulled"],
        "came_mb": new["bytes"] / 1e6,
        "again_bytes": same["bytes"],
        "again_s": same["seconds"],
    }
    say("moved", "objects", **figures)
    floor(
        missed, "objects that came with a new placement, no more than are new", 20 / max(1, new["pulled"]), 1
    )
    floor(missed, "nothing comes twice", -same["bytes"], 0)
    return figures


if __name__ == "__main__":
    if shutil.which("ip") is None or shutil.which("curl") is None:
        sys.exit("this needs iproute2 and curl")
    sys.exit(main())
