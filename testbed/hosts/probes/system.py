"""The system: who may do what, its packages, clock, swap, file systems and firewall, what runs services."""

import grp
import os
import pwd
import zlib
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set

from testbed.hosts.probes.start import names_in, output, read, which

DPKG_STATUS = "/var/lib/dpkg/status"
DPKG_UPDATES = "/var/lib/dpkg/updates"
DPKG_LOCK = "/var/lib/dpkg/lock"
TIME_PROGRAMS = {"chronyd": "chrony", "systemd-timesyn": "systemd-timesyncd", "ntpd": "ntp", "ptp4l": "ptp4l"}
TIME_UNITS = ("chrony", "chronyd", "systemd-timesyncd", "ntp", "ntpsec")
ZRAM_UNITS = ("nvzramconfig", "zramswap")
CHRONY_CONFS = ("/etc/chrony/chrony.conf", "/etc/chrony.conf")
CHRONY_DROP_IN = "/etc/chrony/sources.d/testbed.sources"
TIMESYNCD_DROP_IN = "/etc/systemd/timesyncd.conf.d/testbed.conf"
FIREWALL_LIMIT = 1 << 16  # characters; a longer set of rules is not judged
STA_UNSYNC = 0x40
GZIP = 31  # what zlib calls the format


def qdiscs() -> Optional[List[str]]:
    """Return which of the kernel parts that shape links there are, or None where that cannot be seen."""
    wanted = {
        "htb": "sch_htb",
        "tbf": "sch_tbf",
        "netem": "sch_netem",
        "ingress": "sch_ingress",
        "ifb": "ifb",
    }
    try:
        with open("/proc/config.gz", "rb") as file:
            options = zlib.decompress(file.read(), GZIP).decode("latin-1")
    except OSError:
        return loadable_parts(wanted)
    lines = {
        name: "\nCONFIG_%s=" % module.upper().replace("SCH_", "NET_SCH_") for name, module in wanted.items()
    }
    return sorted(name for name, line in lines.items() if line + "y" in options or line + "m" in options)


def loadable_parts(wanted: Dict[str, str]) -> Optional[List[str]]:
    """Return which of some parts the kernel has built in, as a module or loaded; None where that cannot be seen."""
    known = False
    folder = "/lib/modules/" + os.uname().release
    found: Set[str] = set()
    for name in ("modules.builtin", "modules.dep"):
        text = read(os.path.join(folder, name))
        if text is not None:
            known = True
            paths = text.replace(":", " ").split()
            found.update(os.path.basename(path).split(".ko")[0] for path in paths if ".ko" in path)
    loaded = read("/proc/modules")
    found.update(line.split()[0] for line in (loaded or "").splitlines() if line)
    there = sorted(name for name, module in wanted.items() if module in found)
    return there if known or there else None


def can_sudo() -> bool:
    """Return whether commands can be run as root without asking for a password."""
    return os.geteuid() == 0 or output(["sudo", "-n", "true"]) is not None


def installed_packages(status: str, names: List[str]) -> Dict[str, str]:
    """Return the versions of those of some Debian packages that dpkg's status says are installed whole."""
    found: Dict[str, str] = {}
    for name in names:
        # Searched for as it stands: the text is of megabytes, and a pattern takes ten times as long.
        line, start = "Package: %s\n" % name, -1
        while True:
            start = status.find(line, start + 1)
            if start < 0:
                break
            end = status.find("\n\n", start)
            stanza = status[start : end if end >= 0 else len(status)]
            about = dict(
                line.partition(": ")[::2] for line in stanza.split("\n") if line[:1] not in ("", " ")
            )
            first = start == 0 or status[start - 1] == "\n"
            if first and "Version" in about and about.get("Status", "").endswith(" ok installed"):
                found[name] = about["Version"]
    return found


def locked(path: str) -> bool:
    """Return whether some process has locked a file; the kernel tells that also to who may not open it."""
    try:
        return ":%d " % os.stat(path).st_ino in (read("/proc/locks") or "")
    except OSError:
        return False


def packages(names: List[str]) -> Dict[str, Any]:
    """Return the state of Debian's packages, of those asked for."""
    try:
        with open(DPKG_STATUS, "rb") as file:
            status = file.read().decode("latin-1")  # the quickest: names and versions are of ASCII
    except OSError:
        status = ""
    return {
        "apt": bool(status and which("apt-get")),
        "installed": installed_packages(status, names),
        # While dpkg is at work it looks the same; then apt waits for its end.
        "interrupted": any(name.isdigit() for name in names_in(DPKG_UPDATES)) and not locked(DPKG_LOCK),
    }


def access(user: pwd.struct_passwd) -> Dict[str, Any]:
    """Return which groups there are, which of them the user is in, and which this login has already."""
    groups = grp.getgrall()
    member = {
        group.gr_name for group in groups if user.pw_name in group.gr_mem or group.gr_gid == user.pw_gid
    }
    now = set(os.getgroups()) | {os.getegid()}
    return {
        "groups": sorted({group.gr_name for group in groups}),
        "member": sorted(member),
        "active": sorted({group.gr_name for group in groups if group.gr_gid in now}),
        "sudo_program": bool(which("sudo")),
    }


def kernel_clock() -> Optional[Dict[str, Any]]:
    """Return whether the kernel counts its clock as synchronised and how far off it may be, by its own account."""
    import ctypes

    fields: List[Any] = [("modes", ctypes.c_uint)]
    fields += [(name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")]
    fields += [("status", ctypes.c_int), ("rest", ctypes.c_byte * 512)]
    timex = type("timex", (ctypes.Structure,), {"_fields_": fields})()
    try:
        if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return {"synchronised": not timex.status & STA_UNSYNC, "error_s": timex.maxerror / 1e6}


def unit_states(names: Sequence[str]) -> Dict[str, Dict[str, str]]:
    """Return how systemd sees those of some services that it knows."""
    if not os.path.isdir("/run/systemd/system"):
        return {}
    argv = ["systemctl", "show", "-p", "Id,LoadState,ActiveState,UnitFileState"]
    text = output(argv + [name + ".service" for name in names]) or ""
    found: Dict[str, Dict[str, str]] = {}
    for block in text.split("\n\n"):
        about = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if about.get("LoadState") == "loaded":
            name = about.get("Id", "").rsplit(".service", 1)[0]
            found[name] = {"active": about.get("ActiveState", ""), "enabled": about.get("UnitFileState", "")}
    return found


def running_programs(names: Iterable[str]) -> List[str]:
    """Return which of some programs run."""
    wanted, found = set(names), set()
    for name in names_in("/proc"):
        if name.isdigit():
            found |= {read("/proc/%s/comm" % name)} & wanted
    return sorted(name for name in found if name)


def time_service(units: Dict[str, Dict[str, str]]) -> Dict[str, Any]:
    """Return what keeps the host's clock right."""
    conf = next((text for text in (read(path) for path in CHRONY_CONFS) if text is not None), None)
    drop_ins = (CHRONY_DROP_IN, TIMESYNCD_DROP_IN)
    running = [] if units else [TIME_PROGRAMS[name] for name in running_programs(TIME_PROGRAMS)]
    return {
        "units": {name: units[name] for name in TIME_UNITS if name in units},
        "running": running,
        "kernel": kernel_clock(),
        "chrony_sources": ["sourcedir", "/etc/chrony/sources.d"]
        in [line.split() for line in (conf or "").splitlines()],
        "drop_ins": {path: read(path) for path in drop_ins if os.path.exists(path)},
        "folders": [folder for folder in map(os.path.dirname, drop_ins) if os.path.isdir(folder)],
    }


def swap(units: Dict[str, Dict[str, str]], text: str) -> Dict[str, Any]:
    """Return what the host swaps to, by /proc/swaps."""
    areas = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) >= 5:
            areas.append(
                {"path": words[0], "bytes": 1024 * int(words[2]), "used_bytes": 1024 * int(words[3])}
            )
    return {"areas": areas, "zram_units": {name: units[name] for name in ZRAM_UNITS if name in units}}


def disks(home: str) -> Dict[str, Dict[str, Any]]:
    """Return the file systems of the folders that matter, the home first."""
    found: Dict[str, Dict[str, Any]] = {}
    for path in (home, "/", "/var", "/tmp"):
        try:
            device, about = os.stat(path).st_dev, os.statvfs(path)
        except OSError:
            continue
        found[path] = {
            "device": device,
            "free_bytes": about.f_bavail * about.f_frsize,
            "total_bytes": about.f_blocks * about.f_frsize,
            "free_files": about.f_favail if about.f_files else None,
            "read_only": bool(about.f_flag & os.ST_RDONLY),
        }
    return found


def firewall(sudo: bool) -> Dict[str, Any]:
    """Return the packet filter's rules, where root may be had for the asking, and whether ufw is on."""
    before = [] if os.geteuid() == 0 else ["sudo", "-n"]
    rules: Dict[str, str] = {}
    for name, argv in (
        ("iptables", ["iptables-save", "-t", "filter"]),
        ("nft", ["nft", "-j", "list", "ruleset"]),
    ):
        text = output(before + argv) if sudo and which(argv[0]) else None
        if text and len(text) <= FIREWALL_LIMIT:
            rules[name] = text
    lines = (read("/etc/ufw/ufw.conf") or "").lower().splitlines()
    return {"rules": rules, "ufw": any(line.startswith("enabled=yes") for line in lines)}


def system_facts(asked: Dict[str, Any]) -> Dict[str, Any]:
    """Return what the system has, and what it is set to."""
    sudo = can_sudo()
    units = unit_states(TIME_UNITS + ZRAM_UNITS)
    return {
        "sudo": sudo,
        "qdiscs": qdiscs(),
        "systemd": os.path.isdir("/run/systemd/system"),
        "packages": packages(asked.get("packages", [])),
        "access": access(pwd.getpwuid(os.geteuid())),
        "time": time_service(units),
        "swap": swap(units, read("/proc/swaps") or ""),
        "disks": disks(os.path.expanduser("~")),
        "firewall": firewall(sudo),
    }
