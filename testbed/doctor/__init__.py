"""What this machine has and lacks for the demo, the tests and a rack, each with its fix."""

from testbed.doctor.checks import PURPOSES, Check, Purpose, State, check_machine, is_ready
from testbed.doctor.machine import KeyFile, Machine, Ssh, Torch

__all__ = [
    "PURPOSES",
    "Check",
    "KeyFile",
    "Machine",
    "Purpose",
    "Ssh",
    "State",
    "Torch",
    "check_machine",
    "is_ready",
]
