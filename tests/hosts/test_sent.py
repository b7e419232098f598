"""The lease's code reaches a host that has none of it, whichever Python the host has."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from testbed.hosts.sent import sent_program


@pytest.mark.parametrize("version", ["this", "3.8"])
def test_the_code_can_be_sent_to_a_host_that_has_none(old_python, tmp_path, version):
    """As the controller does it: one line on standard input, then what keeps it going."""
    # -S: what is installed here is out of its sight, testbed itself above all.
    python = sys.executable if version == "this" else old_python(version)
    program = "import sys; exec(sys.stdin.buffer.readline())"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for action, key in ((["hold", "--owner", "ann@laptop"], "held"), (["lease", "show"], "reserved")):
        done = subprocess.run(
            [python, "-S", "-c", program, "services", *action],
            input=sent_program() + b"...",
            env={**environment, "TESTBED_HOME": str(tmp_path / "home")},
            cwd="/",
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert key in json.loads(done.stdout.splitlines()[0])
