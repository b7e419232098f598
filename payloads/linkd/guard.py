"""A process of its own that outlives the daemon by a moment: whatever kills the daemon, the links go back."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Optional

__all__ = ["Guard"]


class Guard:
    """Waits for its parent's end, then runs ``linkd restore`` where there is still a state file.

    The guard sits in a session of its own, so that what kills the daemon's process group leaves it alone. It
    learns of the daemon's end from a pipe, which the kernel closes. It is a fork and shares the daemon's
    memory; only when it is needed does it become a fresh interpreter.

    Args:
        state_path: The state file.
    """

    def __init__(self, state_path: Path) -> None:
        self._state_path = state_path
        self._pid = 0
        self._pipe: Optional[int] = None
        self.ensure()

    @property
    def pid(self) -> int:
        """The guard's process number."""
        return self._pid

    def ensure(self) -> None:
        """Start the guard where it does not run."""
        if self._pid and os.waitpid(self._pid, os.WNOHANG) == (0, 0):
            return
        if self._pipe is not None:
            os.close(self._pipe)
        read_end, self._pipe = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(read_end)
            return
        try:
            self._watch(read_end)
        finally:
            os._exit(0)

    def dismiss(self) -> None:
        """Let the guard go: everything has been put back, so that it finds nothing to do."""
        if self._pipe is not None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._pipe)
            self._pipe = None

    def _watch(self, pipe: int) -> None:
        os.setsid()
        # Before anything else: what is inherited here may belong to the daemon's event loop.
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # Nothing of the daemon's may live on here: not its socket, not its lock, not its end of the pipe.
        # Only what is open: the limit of descriptors is a thousand million in some containers.
        for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
            if descriptor > 2 and descriptor != pipe:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        while os.read(pipe, 1):
            pass
        if self._state_path.exists():
            command = [sys.executable, "-m", "payloads.linkd", "restore", "--state", str(self._state_path)]
            os.execv(sys.executable, command)
