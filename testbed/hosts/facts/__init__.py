"""What a host is: its board, its software, its clock, and what testbed has put there already.

A module here for each section of the facts, as :mod:`testbed.hosts.probes` has one; ``gather`` asks and reads.
"""

from testbed.hosts.facts.board import Board
from testbed.hosts.facts.gather import facts_command, gather_facts, parse_facts
from testbed.hosts.facts.jetpack import jetpack_of
from testbed.hosts.facts.own import Recorded
from testbed.hosts.facts.python import Environment, Jtop, Units, required_modules
from testbed.hosts.facts.system import System
from testbed.hosts.facts.whole import Facts, assume_facts

__all__ = [
    "Board",
    "Environment",
    "Facts",
    "Jtop",
    "Recorded",
    "System",
    "Units",
    "assume_facts",
    "facts_command",
    "gather_facts",
    "jetpack_of",
    "parse_facts",
    "required_modules",
]
