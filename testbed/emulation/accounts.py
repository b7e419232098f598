"""The account that an emulated host is entered by: root, or an ordinary user with sudo in one of three ways.

Pure functions over the text of the account files, and :func:`make_accounts`, which applies them to the root
of the host that it is called in.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["add_group", "add_user", "make_accounts", "open_root", "sudoers", "with_passwords"]

_FIRST_ID = 1000
_GROUPS = ("adm", "audio", "video")  # what the first user of a Jetson is in, where such a group exists


def _lines(text: str) -> list[str]:
    """Return the lines of an account file; its fields may hold what else Python takes for the end of a line."""
    return [line for line in text.split("\n") if line]


def _taken(lines: Sequence[str]) -> set[int]:
    return {int(line.split(":")[2]) for line in lines if line.count(":") >= 3}


def add_group(group: str, name: str, number: int | None = None, members: Sequence[str] = ()) -> str:
    """Return ``/etc/group`` with a group more; unchanged where it has one of that name.

    Args:
        group: The text of the file.
        name: The group's name.
        number: Its number; a free one below 900 if left out.
        members: Who is in it.
    """
    lines = _lines(group)
    if any(line.startswith(f"{name}:") for line in lines):
        return group
    taken = _taken(lines)
    free = next(candidate for candidate in range(900, 0, -1) if candidate not in taken)
    return "\n".join([*lines, f"{name}:x:{free if number is None else number}:{','.join(members)}", ""])


def add_user(passwd: str, group: str, name: str, groups: Sequence[str]) -> tuple[str, str, int]:
    """Return ``/etc/passwd`` and ``/etc/group`` with an ordinary user more, and the user's number.

    Args:
        passwd: The text of ``/etc/passwd``.
        group: The text of ``/etc/group``.
        name: The user; one of that name that exists already is replaced.
        groups: The groups that the user is in, where they exist.
    """
    users = [line for line in _lines(passwd) if not line.startswith(f"{name}:")]
    lines = [line for line in _lines(group) if not line.startswith(f"{name}:")]
    taken = _taken(users) | _taken(lines)
    number = next(candidate for candidate in range(_FIRST_ID, 60000) if candidate not in taken)
    users.append(f"{name}:x:{number}:{number}::/home/{name}:/bin/bash")
    joined = []
    for line in lines:
        head, _, members = line.rpartition(":")
        if line.split(":", 1)[0] in groups:
            others = [member for member in members.split(",") if member not in ("", name)]
            line = f"{head}:{','.join([*others, name])}"
        joined.append(line)
    joined.append(f"{name}:x:{number}:")
    return "\n".join([*users, ""]), "\n".join([*joined, ""]), number


def with_passwords(shadow: str, passwords: dict[str, str]) -> str:
    """Return ``/etc/shadow`` with the password fields of some users replaced; users that it lacks are added."""
    left = dict(passwords)
    lines = []
    for line in _lines(shadow):
        name, _, rest = line.partition(":")
        if name in left:
            line = f"{name}:{left.pop(name)}:{rest.partition(':')[2]}"
        lines.append(line)
    lines += [f"{name}:{password}:19000:0:99999:7:::" for name, password in left.items()]
    return "\n".join([*lines, ""])


def open_root(shadow: str) -> str:
    """Return ``/etc/shadow`` with a root that a key lets in: one that is locked (``!``) is refused without PAM."""
    for line in _lines(shadow):
        name, password = [*line.split(":", 2), ""][:2]
        if name == "root" and password.startswith("!"):
            return with_passwords(shadow, {"root": "*"})
    return shadow


def sudoers(user: str, sudo: str) -> dict[str, str]:
    """Return the files below ``/etc/sudoers.d`` that let a user use sudo.

    Args:
        user: The user.
        sudo: ``nopasswd``, ``password`` or ``none``.
    """
    if sudo == "none":
        return {}
    right = "NOPASSWD: ALL" if sudo == "nopasswd" else "ALL"
    return {f"90-{user}": f"{user} ALL=(ALL:ALL) {right}\n"}


def make_accounts(user: str, sudo: str, password_hash: str, *, board: bool) -> None:
    """Write the account files of the host whose root is this process's.

    Args:
        user: Who logs in.
        sudo: How that user may use sudo; root needs none.
        password_hash: The user's password in the form of ``/etc/shadow``, for ``sudo: password``.
        board: Whether the host is a board, which has the group ``jtop``.
    """
    passwd, group, shadow = (Path(f"/etc/{name}") for name in ("passwd", "group", "shadow"))
    group_text = add_group(group.read_text(), "jtop", members=["root"]) if board else group.read_text()
    shadow_text = open_root(shadow.read_text()) if shadow.is_file() else "root:*:19000:0:99999:7:::\n"
    if user != "root":
        groups = (*_GROUPS, "sudo") if sudo != "none" else _GROUPS
        passwd_text, group_text, number = add_user(passwd.read_text(), group_text, user, groups)
        passwd.write_text(passwd_text)
        shadow_text = with_passwords(shadow_text, {user: password_hash if sudo == "password" else "*"})
        _make_home(Path("/home") / user, number)
        for name, text in sudoers(user, sudo).items():
            file = Path("/etc/sudoers.d") / name
            file.parent.mkdir(mode=0o750, exist_ok=True)
            file.write_text(text)
            file.chmod(0o440)
    group.write_text(group_text)
    if not shadow.exists():
        shadow.touch(mode=0o640)
    shadow.write_text(shadow_text)


def _skeleton() -> Iterator[Path]:
    folder = Path("/etc/skel")
    return folder.iterdir() if folder.is_dir() else iter(())


def _make_home(home: Path, number: int) -> None:
    home.mkdir(parents=True, mode=0o750)
    for file in _skeleton():
        if file.is_file():
            shutil.copy(file, home / file.name)
            os.chown(home / file.name, number, number)
    os.chown(home, number, number)
