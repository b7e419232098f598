"""Payload commands whose code is sent along: they run on a host before it has any, and leave no file there.

The host's own Python reads one line from its standard input and runs it: a packed program that holds the modules of
``payloads.services``, with what they need, and lets them be imported from memory. What else comes on standard input is
the command's.
"""

from __future__ import annotations

import base64
import functools
import shlex
import zlib
from importlib import resources

from testbed.config.inventory import Host
from testbed.hosts.payload import shell_path
from testbed.hosts.steps import Command

__all__ = ["sent_command", "sent_program"]

_RUN = "import sys; exec(sys.stdin.buffer.readline())"

# Runs on any Python 3, so that an old one can say so.
_PROGRAM = """
import sys
if sys.version_info < (3, 8):
    sys.exit("Python %d.%d is too old; 3.8 or newer is needed" % sys.version_info[:2])
import importlib.abc, importlib.util
SOURCES = {sources!r}
class Sent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name not in SOURCES:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name in {packages!r})
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        name = module.__name__
        module.__file__ = "/sent/" + name.replace(".", "/") + ".py"
        exec(compile(SOURCES[name], module.__file__, "exec"), module.__dict__)
sys.meta_path.insert(0, Sent())
from payloads.services.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def sent_command(host: Host, *args: str, title: str, timeout_s: float = 60.0) -> Command:
    """Return the command that runs ``payloads.services`` on a host with this machine's code.

    Args:
        host: The host; its own interpreter runs it, not the environment that testbed may make there.
        *args: The arguments, not quoted yet.
        title: A few words for people.
        timeout_s: The most seconds that it may take.
    """
    words = " ".join(map(shlex.quote, args))
    shell = f"exec {shell_path(host.python.interpreter)} -c {shlex.quote(_RUN)} services {words}"
    return Command(host.name, shell, title, timeout_s, stdin=sent_program())


@functools.cache
def sent_program() -> bytes:
    """Return the line that a host's Python is sent; the same code gives the same bytes."""
    payloads = resources.files("payloads")
    modules = {"payloads.json_input": payloads / "json_input.py"}
    for path in sorted((payloads / "services").iterdir(), key=lambda entry: entry.name):
        if path.name.endswith(".py") and path.name != "__init__.py":
            modules[f"payloads.services.{path.name.removesuffix('.py')}"] = path
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules.items()}
    sources |= {"payloads": "", "payloads.services": ""}
    program = _PROGRAM.format(sources=sources, packages=("payloads", "payloads.services"))
    packed = base64.b64encode(zlib.compress(program.encode(), 9)).decode()
    line = f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{packed}')))"
    return line.encode() + b"\n"
