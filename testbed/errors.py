"""Every error that testbed raises on purpose.

    TestbedError                    exit code 1
    ├── InputError                  exit code 2: a file or an option is wrong
    ├── RefusedError                exit code 3: refused for safety
    └── HostError                   something failed on one host
        ├── ConnectError            also a ConnectionError
        ├── HostKeyError            exit code 3: the host's key is unknown or has changed
        ├── HeldError               exit code 3: somebody else has the host
        ├── CommandError            a command answered with a failure
        └── DeadlineError           also a TimeoutError

Each carries its facts as fields and a ``hint`` that says what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "CommandError",
    "ConnectError",
    "DeadlineError",
    "HeldError",
    "HostError",
    "HostKeyError",
    "InputError",
    "RefusedError",
    "TestbedError",
]


class TestbedError(Exception):
    """The root of the tree.

    Attributes:
        hint: What the user can do next, or an empty string.
    """

    __test__ = False  # not a test case, whatever pytest makes of its name
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def add(self, words: str) -> None:
        """Add to the message what has been found out since."""
        self.message = f"{self.message}; {words}"
        self.args = (self.message,)


class InputError(TestbedError):
    """A file or an option is wrong.

    Attributes:
        problems: One line for each mistake: ``file:line: key: what was expected``.
    """

    exit_code = 2

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str = "") -> None:
        super().__init__("\n".join([message, *problems]) if problems else message, hint=hint)
        self.problems = tuple(problems)

    @classmethod
    def at(cls, file: Path, line: int | None, key: str, expected: str) -> InputError:
        """Return the error for one mistake at one place of a file."""
        place = f"{file}:{line}" if line else str(file)
        return cls(f"{place}: {key}: {expected}" if key else f"{place}: {expected}")


class RefusedError(TestbedError):
    """What was asked for is refused, since it could do harm."""

    exit_code = 3


class HostError(TestbedError):
    """Something failed on one host.

    Attributes:
        host: The host's name in the inventory.
    """

    def __init__(self, host: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{host}: {message}", hint=hint)
        self.host = host


class ConnectError(HostError, ConnectionError):
    """The host could not be reached or did not let us in."""


class HostKeyError(HostError):
    """The host's key is not the recorded one, or none is recorded."""

    exit_code = RefusedError.exit_code


class DeadlineError(HostError, TimeoutError):
    """The host did not answer in the time given."""


class HeldError(HostError):
    """Somebody else has the host.

    Attributes:
        owner: Who has it, as they are called at a takeover.
        why: Who has it, for what, since when and until when, in words.
    """

    exit_code = RefusedError.exit_code

    def __init__(self, host: str, owner: str, why: str, *, hint: str = "") -> None:
        super().__init__(host, f"held by {why}", hint=hint)
        self.owner = owner
        self.why = why


def _remedy(command: str, exit_status: int, stderr: str) -> str:
    """Return what to do where a host has no payload code, an older one, or no interpreter for it."""
    no_module = "payloads." in command and "No module named" in stderr
    no_interpreter = "/.testbed/" in command and exit_status == 127
    if no_module or no_interpreter:
        return "the host lacks what testbed needs there, or has it from an older testbed: `testbed provision`"
    return ""


class CommandError(HostError):
    """A command on a host ended with a failure.

    Attributes:
        command: The command line as it was run.
        exit_status: What it returned.
        stderr: The end of what it wrote to its standard error.
        stdout: What it wrote to its standard output.
    """

    def __init__(
        self, host: str, command: str, exit_status: int, stderr: str, *, hint: str = "", stdout: str = ""
    ) -> None:
        answer = stderr.strip().splitlines()[-1] if stderr.strip() else "no message"
        said = f"`{command}` ended with status {exit_status}: {answer}"
        super().__init__(host, said, hint=hint or _remedy(command, exit_status, stderr))
        self.command = command
        self.exit_status = exit_status
        self.stderr = stderr
        self.stdout = stdout
