"""A scripted host: every step that a test expects, with its answer; any other step fails the test."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testbed.errors import CommandError, ConnectError
from testbed.hosts.steps import Command, Completed, Fetch, Put, Step
from testbed.hosts.transport import OnLine, Stream

__all__ = ["Answer", "FakeStream", "FakeTransport", "UnexpectedStepError"]


class UnexpectedStepError(AssertionError):
    """A step that the script does not hold."""


@dataclass(frozen=True)
class Answer:
    """What a scripted host answers to one step.

    Attributes:
        stdout: The standard output of a command, or the content of a fetched file.
        stderr: The standard error of a command.
        exit_status: The exit status of a command.
        files: The files of a fetched folder, by their path below it.
        times: How often the step may come; None for any number, also none at all.
    """

    stdout: str = ""
    stderr: str = ""
    exit_status: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    times: int | None = 1


Reply = str | Answer | BaseException | Callable[[Step], "str | Answer | BaseException"]


class FakeTransport:
    """A transport that answers from a script.

    A step takes the first entry whose pattern is found in its :meth:`line` and that is not used up.

    Args:
        host: The host's name.
        script: Regular expressions and what to answer: the standard output, an :class:`Answer`, an error to
            raise, or a function of the step that gives one of these.

    Attributes:
        steps: What was asked for, in order.
        closed: Whether :meth:`close` was called.
    """

    def __init__(self, host: str, script: Sequence[tuple[str, Reply]] = ()) -> None:
        self.host = host
        self.steps: list[Step] = []
        self.closed = False
        self._lock = threading.Lock()
        self._script = [(re.compile(pattern), reply, [_times(reply)]) for pattern, reply in script]

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Completed:
        """Answer a command."""
        answer = self._answer(command)
        if on_line:
            for line in answer.stdout.splitlines():
                on_line(line)
        if answer.exit_status:
            said = answer.stderr or answer.stdout
            raise CommandError(self.host, command.shell, answer.exit_status, said, stdout=answer.stdout)
        return Completed(command, answer.exit_status, answer.stdout, answer.stderr, 0.0)

    def put(self, put: Put) -> None:
        """Take a file."""
        self._answer(put)

    def fetch(self, fetch: Fetch) -> None:
        """Write the scripted content to the target."""
        answer = self._answer(fetch)
        if not answer.files:
            _write(fetch.target, answer.stdout.encode())
        for name, content in answer.files.items():
            _write(fetch.target / name, content)

    def stream(self, command: Command) -> Stream:
        """Start a command whose lines are the scripted output."""
        return FakeStream(self.host, self._answer(command))

    def close(self) -> None:
        """Note that the transport was closed."""
        self.closed = True

    def finish(self) -> None:
        """Check that all that was scripted has come.

        Raises:
            UnexpectedStepError: A scripted step did not come.
        """
        left = [pattern.pattern for pattern, _, times in self._script if times[0]]
        if left:
            raise UnexpectedStepError(f"{self.host}: these steps did not come: {left}")

    def _answer(self, step: Step) -> Answer:
        with self._lock:
            self.steps.append(step)
            if self.closed:
                raise ConnectError(self.host, "the connection is closed")
            reply = self._take(step)
        if callable(reply):
            reply = reply(step)
        if isinstance(reply, BaseException):
            raise reply
        return Answer(reply) if isinstance(reply, str) else reply

    def _take(self, step: Step) -> Reply:
        for pattern, reply, times in self._script:
            if times[0] != 0 and pattern.search(step.line()):
                if times[0] is not None:
                    times[0] -= 1
                return reply
        left = "\n  ".join(pattern.pattern for pattern, _, times in self._script if times[0] != 0)
        raise UnexpectedStepError(
            f"unexpected step\n  {step.line()}\nthe script still holds\n  {left or 'nothing'}"
        )


class FakeStream:
    """A scripted running command.

    Attributes:
        written: The bytes that it was sent.
        closed: Whether :meth:`close` was called.
    """

    def __init__(self, host: str, answer: Answer) -> None:
        self._host = host
        self._answer = answer
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        """Take bytes."""
        if self.closed:
            raise ConnectError(self._host, "the command has ended")
        self.written += data

    def end_input(self) -> None:
        """Do nothing: the script does not depend on the input."""

    def lines(self, timeout_s: float | None = None) -> Iterator[str]:
        """Yield the scripted lines."""
        yield from self._answer.stdout.splitlines()

    def exit_status(self, timeout_s: float = 5.0) -> int | None:
        """Return the scripted exit status."""
        return self._answer.exit_status

    @property
    def stderr(self) -> str:
        """The scripted standard error."""
        return self._answer.stderr

    def close(self) -> None:
        """Note that the stream was closed."""
        self.closed = True


def _times(reply: Reply) -> int | None:
    return reply.times if isinstance(reply, Answer) else 1


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
