"""Programs of a board, as small scripts in a folder of their own, and the steps that really run with them."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from testbed.hosts.steps import Command, Step


@dataclass(frozen=True)
class Board:
    """A folder with a home and the stand-ins for the programs that a step calls."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, steps: Iterable[Step]) -> list[subprocess.CompletedProcess[str]]:
        """Run steps as a host would, without becoming root; a failing one ends it."""
        self.home.mkdir(exist_ok=True)
        done = []
        for step in steps:
            assert isinstance(step, Command)
            env = {"HOME": str(self.home), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
            env["BOARD"] = str(self.folder)
            argv, text = ["sh", "-c", step.shell], step.stdin.decode()
            done.append(
                subprocess.run(argv, input=text, env=env, capture_output=True, text=True, cwd=self.home)
            )
            if done[-1].returncode:
                break
        return done
