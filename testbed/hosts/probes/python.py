"""The Python of the payload code, and jtop."""

import grp
import os
import pwd
from typing import Any, Dict, List, Optional

from testbed.hosts.probes.start import output, read, sha256, which
from testbed.hosts.probes.system import unit_states

CHECK_TIMEOUT_S = 120

# Runs under the Python that will run the payload code: says what changes with whatever is installed for it. What is not
# there counts too: a folder of the user's own packages may come.
FINGERPRINT = r"""
import glob, os, site, sys
paths = {path for path in sys.path if path}
try:
    paths.add(site.getusersitepackages())
except Exception:  # a Python without it
    pass
for path in sorted(paths):
    paths.update(glob.glob(os.path.join(glob.escape(path), "*.pth")))
paths.update([sys.executable, os.path.realpath(sys.executable), os.path.join(sys.prefix, "pyvenv.cfg")])
def mark(path):
    try:
        found = os.stat(path)
    except OSError:
        return "none"
    return "%d %d" % (found.st_ino, found.st_mtime_ns)
print("\0".join([sys.version] + [word for path in sorted(paths) for word in (path, mark(path))]))
"""

# Runs under the same Python: what it is, what it can import, and whether torch computes.
CHECK = r"""
import importlib, json, platform, sys
answer = {"version": platform.python_version(), "modules": {}, "errors": {}, "cuda": None, "capability": None}
answer.update(torch_built=None, torch_right=None, torch_error=None)

def first_line(error):
    text = (str(error).strip().splitlines() or [""])[0]
    return "%s: %s" % (type(error).__name__, text) if text else type(error).__name__

def computes(torch, device):
    # Small whole numbers: exact in every format that a GPU may multiply in.
    size = range(32)
    rows = [[(i + 2 * j) % 7 for j in size] for i in size]
    columns = [[(3 * i + j) % 5 for j in size] for i in size]
    right = [[sum(rows[i][k] * columns[k][j] for k in size) for j in size] for i in size]
    one, other = (torch.tensor(each, dtype=torch.float32, device=device) for each in (rows, columns))
    return (one @ other).cpu().tolist() == right

def look(torch):
    answer["torch_built"] = getattr(getattr(torch, "version", None), "cuda", None)
    there = torch.cuda.is_available()
    if there:
        answer["cuda"] = str(torch.version.cuda)
        answer["capability"] = "%d.%d" % torch.cuda.get_device_capability()
    answer["torch_right"] = computes(torch, "cuda" if there else "cpu")

for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        answer["modules"][name] = str(getattr(module, "__version__", ""))
    except Exception as error:
        answer["errors"][name] = first_line(error)
        continue
    if name == "torch":
        try:
            look(module)
        except Exception as error:
            answer["torch_right"], answer["torch_error"] = False, first_line(error)
print("\n" + json.dumps(answer))
"""

# Runs under the same Python: the client of jtop there, and whether the service answers it.
CLIENT = r"""
import json, signal, sys
answer = {"version": None, "own": False, "error": None}
try:
    from importlib import metadata
    found = metadata.distribution("jetson-stats")
    answer["version"] = found.version
    answer["own"] = str(found.locate_file("")).startswith(sys.prefix + "/")
except Exception:  # not installed, or a Python without importlib.metadata
    pass

def late(*_):
    raise RuntimeError("no answer within 10 s")

if answer["version"] and sys.argv[1] == "ask":
    signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        from jtop import jtop
        board = jtop()
        board.start()
        board.close()
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        answer["error"] = "%s: %s" % (type(error).__name__, text)
    finally:
        signal.alarm(0)
print("\n" + json.dumps(answer))
"""

# Runs under the Python that makes an environment.
BASE = r"""
import importlib.util, json, os, platform
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION").split()[-1]
except Exception:  # another library than GNU's
    libc = None
there = importlib.util.find_spec("ensurepip") is not None
print(json.dumps({"base_version": platform.python_version(), "ensurepip": there, "glibc": libc}))
"""

# Runs under the Python of the jtop service.
SERVICE = r"""
try:
    from importlib.metadata import version
except ImportError:
    from pkg_resources import get_distribution
    version = lambda name: get_distribution(name).version
print(version("jetson-stats"))
"""

JTOP_SOCKET = "/run/jtop.sock"


def jtop_interpreter(program: Optional[str]) -> Optional[List[str]]:
    """Return the Python that a jtop program runs in, as the beginning of a command line."""
    import re

    text = (read(program) or "")[:4096] if program else ""
    script = re.match(r"#!\s*(\S*python\S*)", text) or re.match(r"#!\s*\S*env\s+(\S*python\S*)", text)
    wrapper = re.search(r"^exec\s+(\S+)\s+-m\s+jtop", text, re.MULTILINE)
    match = script or wrapper
    return [match.group(1)] if match else None


def jtop_service_version() -> Optional[str]:
    """Return the version of jetson-stats that the jtop service is installed with."""
    words = (output(["systemctl", "show", "-p", "ExecStart", "jtop.service"]) or "").split()
    paths = [word.partition("path=")[2] for word in words if "path=" in word]
    for program in paths[:1] + [which("jtop") or ""]:
        argv = jtop_interpreter(program)
        version = output(argv + ["-c", SERVICE]) if argv else None
        if version:
            return version.strip()
    return None


def last_object(said: Optional[str]) -> Dict[str, Any]:
    """Return the object that a program printed last; an empty one where it said nothing."""
    if not said:
        return {}
    import json

    answer: Dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return answer


def mark(path: str) -> str:
    """Return what changes when a file is another one."""
    try:
        found = os.stat(path)
    except OSError:
        return "none"
    return "%d %d" % (found.st_ino, found.st_mtime_ns)


def base_python(interpreter: Optional[str]) -> Dict[str, Any]:
    """Return what the interpreter is that makes an environment; nothing where it does not run."""
    path = which(os.path.expanduser(interpreter)) if interpreter else None
    return last_object(output([path, "-c", BASE]) if path else None)


def units(user: pwd.struct_passwd) -> Dict[str, Any]:
    """Return how far the user's services can run under systemd."""
    number = user.pw_uid
    own = "/sys/fs/cgroup/user.slice/user-%d.slice/user@%d.service/cgroup.controllers" % (number, number)
    whole = "/sys/fs/cgroup/cgroup.controllers"
    controllers = (read(whole if number == 0 else own) or "").split()
    running = os.path.isdir("/run/systemd/system")
    return {
        "manager": running and (number == 0 or os.path.isdir("/run/user/%d/systemd" % number)),
        "linger": os.path.exists("/var/lib/systemd/linger/" + user.pw_name),
        "journal": running and output(["journalctl", "--quiet", "--no-pager", "--lines=0"]) is not None,
        "memory": "memory" in controllers or (number == 0 and os.path.isdir("/sys/fs/cgroup/memory")),
        # By the link that enables it, which leads to it.
        "keeper": read(
            "/etc/systemd/system/multi-user.target.wants/testbed-keeper-%s.service" % user.pw_name
        ),
    }


def jtop(user: pwd.struct_passwd) -> Dict[str, Any]:
    """Return the state of the jtop service and of the user's access to it."""
    try:
        group = grp.getgrnam("jtop")
        there, member = True, user.pw_name in group.gr_mem or user.pw_gid == group.gr_gid
    except KeyError:
        there, member = False, False
    return {
        "program": which("jtop"),
        "group": there,
        "member": member or user.pw_uid == 0,
        "socket": os.path.exists(JTOP_SOCKET),
        "unit": "jtop" in unit_states(["jtop"]),
    }


def seen_by(python: str, known: str = "") -> str:
    """Return what changes with whatever is installed for a Python; nothing where it does not run.

    Args:
        python: The interpreter.
        known: What was returned the last time. Where each file that it names is as it was, so is the rest, and the
            interpreter is not started.
    """
    path = which(os.path.expanduser(python))
    if not path:
        return ""
    begin = "%s %s %s\n" % (path, mark(path), os.environ.get("PYTHONPATH", ""))
    if known.startswith(begin):
        words = known[len(begin) :].split("\0")  # a version, then paths and their marks by turns
        if len(words) > 1 and all(mark(words[at]) == words[at + 1] for at in range(1, len(words) - 1, 2)):
            return known
    said = output([path, "-c", FINGERPRINT])
    return begin + said.strip() if said else ""


def jtop_client(python: str, known: str = "", seen: Optional[str] = None) -> Dict[str, Any]:
    """Return what the payload code's Python has of jtop and whether the service answers it, and the service's version.

    As with the environment, an asker who knows the answer by its fingerprint is told that nothing has changed.
    """
    path = os.path.expanduser(python)
    there = os.path.exists(JTOP_SOCKET)
    # Another login has other groups, another service another socket.
    state = [mark(JTOP_SOCKET), mark(which("jtop") or ""), str(sorted(os.getgroups()))]
    parts = [
        seen_by(python) if seen is None else seen,
        read("/proc/sys/kernel/random/boot_id") or "",
        CLIENT,
    ] + state
    fingerprint = sha256("\n".join(parts))
    if fingerprint == known:
        return {"fingerprint": fingerprint, "unchanged": True}
    said = output([path, "-c", CLIENT, "ask" if there else "-"], CHECK_TIMEOUT_S) if which(path) else None
    answer = last_object(said)
    answer["service_version"] = jtop_service_version()
    answer["fingerprint"] = fingerprint
    return answer


def environment(
    python: str, modules: List[str], known: str = "", seen: Optional[str] = None
) -> Dict[str, Any]:
    """Return what the Python of the payload code is and can import.

    Importing takes seconds. An asker who knows the environment as it is (`known` is its fingerprint), from a probe
    since the last boot, is told that nothing has changed.
    """
    path = os.path.expanduser(python)
    if not which(path):
        return {"error": "%s: not found" % python}
    folder = os.path.dirname(os.path.dirname(path)) if "/" in path else ""
    recipes = [read(os.path.join(folder, name)) if folder else None for name in ("recipe.json", "torch.json")]
    boot = read("/proc/sys/kernel/random/boot_id")
    # With the check itself: a later version may ask for more than what is remembered.
    parts = [seen_by(python) if seen is None else seen, boot or ""] + [text or "" for text in recipes]
    fingerprint = sha256("\n".join(parts + [CHECK] + modules))
    if modules and fingerprint == known:
        return {"fingerprint": fingerprint, "unchanged": True}
    import json
    import subprocess

    try:
        done = subprocess.run(
            [path, "-c", CHECK] + modules,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=CHECK_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": "%s: %s" % (python, error)}
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        return {"error": "%s ended with status %d: %s" % (python, done.returncode, last[0])}
    answer = last_object(done.stdout.decode(errors="replace"))
    answer["recipe"], answer["torch_recipe"] = [json.loads(text) if text else None for text in recipes]
    answer["fingerprint"] = fingerprint
    return answer


def python_facts(asked: Dict[str, Any]) -> Dict[str, Any]:
    """Return what runs the payload code, and the service that it asks about the board."""
    user = pwd.getpwuid(os.geteuid())
    python = asked["python"]
    seen = seen_by(python, asked.get("seen", ""))
    return {
        "seen": seen,
        "environment": environment(python, asked["modules"], asked.get("known", ""), seen),
        "client": jtop_client(python, asked.get("known_client", ""), seen) if asked.get("jtop") else {},
        "base": base_python(asked.get("interpreter")),
        "jtop": jtop(user),
        "units": units(user),
    }
