"""The one spelling of a payload command line, and of paths on a host."""

from __future__ import annotations

import shlex

from testbed.config.inventory import Host

__all__ = ["CODE", "CURRENT", "HOME", "VENV", "host_python", "payload_command", "shell_path"]

HOME = "~/.testbed"
CODE = f"{HOME}/code"
CURRENT = f"{HOME}/current"
VENV = f"{HOME}/venv"


def host_python(host: Host) -> str:
    """Return the interpreter that runs payload code on a host; a leading ``~/`` is the user's home."""
    return f"{VENV}/bin/python" if host.python.manage else host.python.interpreter


def shell_path(path: str) -> str:
    """Return a path as one word of a POSIX shell, a leading ``~/`` as the user's home."""
    if path == "~":
        return '"$HOME"'
    if path.startswith("~/"):
        inner = path[2:]
        plain = shlex.quote(inner) == inner
        return f'"$HOME/{inner}"' if plain else f'"$HOME"/{shlex.quote(inner)}'
    return shlex.quote(path)


def payload_command(python: str, module: str, *args: str) -> str:
    """Return the command line that runs a payload module.

    Args:
        python: The interpreter; a leading ``~/`` is the user's home.
        module: The module below ``payloads``, such as ``station.bsctl``.
        *args: Its arguments, not quoted yet. The payload itself expands a leading ``~/``.
    """
    words = [f"payloads.{module}", *map(shlex.quote, args)]
    return f'PYTHONPATH="{shell_home(CURRENT)}" exec {shell_path(python)} -m {" ".join(words)}'


def shell_home(path: str) -> str:
    """Return a path below the home for use inside double quotes."""
    return path.replace("~", "$HOME", 1)
