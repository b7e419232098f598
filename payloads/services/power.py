"""A board's power mode and clocks: looked at, noted before they are changed, set by name, and put back.

What is noted lies in a folder of its own beside ``~/.testbed``, for this user alone, since what is put back is written
by root. There are two notes, so that a run within a reservation is put back to what its user had set by hand:
``run`` and ``reservation``. A note is only removed once the board is as it says.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

from payloads.services.layout import ServiceError, home_folder
from payloads.services.shared import file_lock

__all__ = [
    "NOTES",
    "Power",
    "differing",
    "kept_folder",
    "mode_names",
    "note_power",
    "parse_clocks",
    "parse_mode",
    "pinned",
    "read_note",
    "read_power",
    "restore_power",
    "run_as_root",
    "set_power",
    "why_no_root",
]

NOTES = ("run", "reservation")
CONFS = ("/etc/nvpmodel.conf", "/etc/nvpmodel/*.conf")  # the first is a link to one of the others
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_TIMEOUT_S = 60.0
# What jetson_clocks stores besides is a momentary value, which differs each time.
_LASTING = re.compile(r"(min_freq|max_freq|governor|mrq_rate_locked)$")
_MODE = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)
_NO = b"NO\n"  # to a program that asks, such as whether to reboot


class Power(NamedTuple):
    """How a board is set.

    Attributes:
        mode: The name of its power mode; None where it has none.
        number: The mode's number.
        clocks: What ``jetson_clocks --store`` writes; None where there is no such program, or no way to be root.
    """

    mode: str | None
    number: int | None
    clocks: str | None

    def as_json(self) -> dict[str, Any]:
        """Return it for people: whether the clocks are pinned stands for all of them."""
        held = None if self.clocks is None else pinned(parse_clocks(self.clocks))
        return {"mode": self.mode, "jetson_clocks": held}


def kept_folder() -> Path:
    """Return where this user's notes lie, beside ``~/.testbed``: they outlive it."""
    home = home_folder()
    return home.with_name(home.name + "-lease")


def parse_mode(text: str) -> tuple[str | None, int | None]:
    """Return name and number of the mode in what ``nvpmodel -q`` says, each None where it does not stand there."""
    name = re.search(r"(?:NV Power Mode|POWER_MODEL)\s*:\s*(\S+)", text)
    number = re.search(r"^\s*(\d+)\s*$", text, re.MULTILINE)
    return name and name.group(1), number and int(number.group(1))


def mode_names(conf: str) -> dict[str, int]:
    """Return the modes' numbers by name, of what ``/etc/nvpmodel.conf`` holds: they differ from board to board."""
    return {name: int(number) for number, name in _MODE.findall(conf)}


def parse_clocks(text: str) -> dict[str, str]:
    """Return the lasting settings of what ``jetson_clocks --store`` wrote, by path."""
    pairs = (line.strip().rpartition(":") for line in text.splitlines())
    return {path: value for path, colon, value in pairs if colon and _LASTING.search(path)}


def pinned(clocks: Mapping[str, str]) -> bool:
    """Tell whether every clock is held at its greatest."""
    pairs = [(value, clocks.get(path[: -len("min_freq")] + "max_freq")) for path, value in clocks.items()
             if path.endswith("min_freq")]  # fmt: skip
    return bool(pairs) and all(least == most for least, most in pairs)


def differing(one: Power, other: Power) -> list[str]:
    """Return in what two settings differ, as far as both are known."""
    found = []
    if one.mode is not None and other.mode is not None and one.mode != other.mode:
        found.append("power mode")
    known = one.clocks is not None and other.clocks is not None
    if known and parse_clocks(str(one.clocks)) != parse_clocks(str(other.clocks)):
        found.append("clocks")
    return found


def read_power() -> Power:
    """Return how this board is set."""
    mode, number = parse_mode(_output(["nvpmodel", "-q"]) or "")
    return Power(mode, number, _stored_clocks())


def read_note(note: str) -> Power | None:
    """Return what was noted, or None where there is nothing to put back."""
    path = kept_folder() / f"power-{note}.json"
    try:
        value = json.loads(path.read_text())
        return Power(value["mode"], value["number"], value["clocks"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServiceError(
            f"{path} cannot be used: {error}; set the power mode by hand, and remove it"
        ) from error


def note_power(note: str) -> Power:
    """Note durably how the board is set now, and return it; what is noted already stays."""
    with _locked():
        # Under a run that has set the board, what there was before it.
        power = read_note("run") or read_power()
        _remember(note, power)
        return power


def _remember(note: str, power: Power) -> None:
    folder = kept_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"power-{note}.json"
    if path.exists():
        return  # what there was before is what counts
    part = path.with_name(path.name + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(json.dumps(power._asdict()))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


def set_power(mode: str | None, *, clocks: bool, noted: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Set a board for a run, once it is noted how it was; on any failure it is put back.

    Args:
        mode: The power mode's name; None to leave it.
        clocks: Whether all clocks are to be held at their greatest; else they are left.
        noted: Called between the note and the first change.

    Returns:
        How it is set now, and how it was.

    Raises:
        ServiceError: It cannot be set so.
    """
    with _locked():
        before = read_power()
        _check(before, mode, clocks=clocks)
        _remember("run", before)
        try:
            noted()
            if mode is not None and before.mode != mode:
                _set_mode(mode)
            if clocks:
                run_as_root(["jetson_clocks"])
            after = read_power()
            if mode is not None and after.mode != mode:
                raise ServiceError(f"its power mode is {after.mode} after it was set to {mode}")
            if clocks and not pinned(parse_clocks(after.clocks or "")):
                raise ServiceError("its clocks are not at their greatest after jetson_clocks")
        except ServiceError as error:
            problems = _restore("run")["problems"]
            raise ServiceError("; ".join([str(error), *problems])) from None
        return {**after.as_json(), "before": before.as_json()}


def restore_power(
    notes: Sequence[str], still: Callable[[str], bool] = lambda note: True
) -> dict[str, list[str]]:
    """Put the board back to what was noted.

    Args:
        notes: Which notes, the later one first.
        still: Whether a note's time has come, asked again once nobody else is at it: it may be a new one by then.

    Returns:
        What was put back (``restored``), and what could not be (``problems``); the notes of these stay.
    """
    done: dict[str, list[str]] = {"restored": [], "problems": []}
    if not any((kept_folder() / f"power-{note}.json").exists() for note in notes):
        return done
    with _locked():
        for note in filter(still, notes):
            for key, words in _restore(note).items():
                done[key] += words
    return done


def _restore(note: str) -> dict[str, list[str]]:
    restored: list[str] = []
    try:
        power = read_note(note)
        if power is None:
            return {"restored": [], "problems": []}
        now = read_power()
        wrong = differing(power, now)
        if "power mode" in wrong:
            _set_mode(str(power.mode))
            restored.append(f"power mode {power.mode}, from {now.mode}")
            wrong = differing(power, read_power())  # a mode sets clocks too
        if "clocks" in wrong:
            _restore_clocks(power.clocks or "")
            restored.append("clocks")
        left = differing(power, read_power()) if restored else []
        if left:
            return {"restored": restored, "problems": [f"{' and '.join(left)} could not be put back"]}
        (kept_folder() / f"power-{note}.json").unlink()
    except ServiceError as error:
        return {"restored": restored, "problems": [str(error)]}
    return {"restored": restored, "problems": []}


def _check(before: Power, mode: str | None, *, clocks: bool) -> None:
    if mode is not None and before.mode is None:
        raise ServiceError("this host has no power modes: nvpmodel -q does not answer")
    if clocks and before.clocks is None:
        raise ServiceError(f"jetson_clocks cannot be run here: {why_no_root() or 'there is none'}")


def _set_mode(mode: str) -> None:
    found = next(filter(None, map(glob.glob, CONFS)), [])
    if len(found) != 1:
        raise ServiceError(f"its power modes are unknown: one file {' or '.join(CONFS)} was expected")
    try:
        known = mode_names(Path(found[0]).read_text(errors="replace"))
    except OSError as error:
        raise ServiceError(f"{found[0]}: {error.strerror}") from error
    if mode not in known:
        raise ServiceError(f"it has no power mode {mode}: it has {', '.join(sorted(known)) or 'none'}")
    said = run_as_root(["nvpmodel", "-m", str(known[mode])], check=False)
    now, _ = parse_mode(_output(["nvpmodel", "-q"]) or "")
    if now == mode:
        return
    if "reboot" in said.lower():
        raise ServiceError(
            f"its power mode {mode} needs a reboot, which nobody asked for: "
            f"on the host, sudo nvpmodel -m {known[mode]} asks for it"
        )
    words = [line for line in said.splitlines() if line.strip()] or ["no message"]
    raise ServiceError(f"its power mode is {now} after it was set to {mode}: {words[-1]}")


def _stored_clocks() -> str | None:
    """Return what jetson_clocks would restore."""
    folder = kept_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"clocks.{os.getpid()}"
    try:
        path.unlink() if path.exists() else None  # a dead process of that number left it: it would be asked about
        run_as_root(["jetson_clocks", "--store", str(path)])
        return path.read_text()
    except (ServiceError, OSError):
        return None
    finally:
        path.unlink() if path.exists() else None
        with contextlib.suppress(OSError):
            folder.rmdir()  # where nothing else is in it


def _restore_clocks(text: str) -> None:
    path = kept_folder() / f"clocks.{os.getpid()}"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    try:
        run_as_root(["jetson_clocks", "--restore", str(path)])
    finally:
        path.unlink()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Keep others from the notes and the settings; where no note is left, nothing else is."""
    lock = kept_folder() / "power.lock"
    with file_lock(lock, wait_s=3 * _TIMEOUT_S):
        try:
            yield
        finally:
            if not any(kept_folder().glob("power-*.json")):
                lock.unlink()
    with contextlib.suppress(OSError):
        kept_folder().rmdir()  # somebody else's lock may be in it


def why_no_root() -> str:
    """Return why this user cannot put power mode and clocks back, or an empty string where they can."""
    if os.geteuid() == 0 or _output(["sudo", "-n", "true"]) is not None:
        return ""
    return "this user cannot become root without a password"


def run_as_root(argv: Sequence[str], *, check: bool = True) -> str:
    """Run a program as root and return all that it says.

    Raises:
        ServiceError: It cannot be run, or does not end, or fails where that is checked.
    """
    command = list(argv) if os.geteuid() == 0 else ["sudo", "-n", *argv]
    try:
        done = _run(command, subprocess.STDOUT)
    except FileNotFoundError:
        raise ServiceError(f"{command[0]}: not installed on this host") from None
    except subprocess.TimeoutExpired:
        raise ServiceError(f"{' '.join(argv)} has not ended in {_TIMEOUT_S:g} s") from None
    said = str(done.stdout.decode(errors="replace"))
    if check and done.returncode:
        words = said.strip().splitlines() or ["no message"]
        raise ServiceError(f"{' '.join(argv)} ended with status {done.returncode}: {words[-1]}")
    return said


def _output(argv: Sequence[str]) -> str | None:
    try:
        done = _run(argv, subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _run(argv: Sequence[str], stderr: int) -> Any:
    environment = dict(os.environ, PATH=f"{os.environ.get('PATH', '')}:{_PATH}", LC_ALL="C")
    # Where sudo is used for the first time, it leaves this file behind; a lease leaves nothing.
    mark = Path("~/.sudo_as_admin_successful").expanduser()
    marked = mark.exists()
    try:
        return subprocess.run(
            argv,
            input=_NO,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            timeout=_TIMEOUT_S,
        )
    finally:
        if not marked:
            with contextlib.suppress(OSError):
                mark.unlink()
