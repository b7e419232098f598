"""One emulated board while it runs: reads its load, keeps its power model, writes its live files.

All files are opened once; a value is written only where it has changed, in one ``pwrite`` that keeps the
file's length, so that a reader never finds an empty file or half of a number.
"""

from __future__ import annotations

import math
import os
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.boards.model import Board
from testbed.emulation import tree
from testbed.emulation.cgroups import Group, memory_of, usage_ns
from testbed.emulation.power import Backlog, LoadStep, run_script, steps_between
from testbed.emulation.procfiles import meminfo, stat_file
from testbed.emulation.rootfs import HostFolders
from testbed.emulation.spec import HostSpec

__all__ = ["BoardSimulator", "LiveFile"]

_AMBIENT_C = 27.0
_THERMAL_TAU_S = 20.0
_TEMPERATURE_STEP_MC = 50
_STAT_EVERY_NS = 100_000_000
_MEMORY_EVERY_NS = 1_000_000_000


class LiveFile:
    """A small text file that is rewritten in place.

    Args:
        path: The file; it exists.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._last = os.pread(self._descriptor, 65536, 0)
        self._longest = len(self._last)

    def write(self, text: bytes) -> None:
        """Write a new content, unless it is the old one. A shorter one is filled up with line ends."""
        if text == self._last:
            return
        self._last = text
        self._longest = max(self._longest, len(text))
        os.pwrite(self._descriptor, text.ljust(self._longest, b"\n"), 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


@dataclass(frozen=True)
class _Script:
    start_ns: int
    steps: Sequence[LoadStep]
    end_ns: int


class BoardSimulator:
    """The power model of one running board.

    Args:
        host: The host.
        board: Its kind.
        folders: Its folders.
        group: Its control groups.
        unified: Whether those are of version 2.
        seed: The lab's seed.
        now_ns: The monotonic clock.
    """

    def __init__(
        self,
        host: HostSpec,
        board: Board,
        folders: HostFolders,
        group: Group,
        *,
        unified: bool,
        seed: int,
        now_ns: int,
    ) -> None:
        self.board = board
        self.level = 0.0
        self._shown = -1.0
        self.temperature_c = _AMBIENT_C + board.ohm_k_per_w * board.total.idle_mw / 1000
        self._noise = host.noise_percent / 100
        self._random = random.Random(seed ^ zlib.crc32(host.name.encode()))
        self._group, self._unified = group, unified
        self._cores = min(host.cpu_cores, os.cpu_count() or 1)
        self._busy = Backlog()
        self._cpu = Backlog()
        self._busy_path = str(folders.shared / "busy_ns")
        self._usage: int | None = None
        self._usage_ns = 0
        self._script: _Script | None = None
        self._start_ns = self._now_ns = now_ns
        self._temperature_step = 0
        self._stat_due_ns = self._memory_due_ns = 0
        self._memory_kib = host.memory_mib * 1024
        root = folders.sys
        self._rails = [(rail, LiveFile(root / tree.current_path(board, rail))) for rail in board.live_rails]
        self._gpu = LiveFile(root / tree.gpu_load_path(board))
        self._emc = LiveFile(root / tree.emc_activity_path())
        self._zones = [LiveFile(root / tree.temperature_path(zone)) for zone in range(len(board.zones))]
        self._stat = LiveFile(folders.proc / "stat")
        self._meminfo = LiveFile(folders.proc / "meminfo")

    @property
    def power_mw(self) -> float:
        """The board's total power now."""
        return self.board.total.at(self.level)

    def start_script(self, steps: Sequence[LoadStep], now_ns: int) -> None:
        """Follow a script from now on instead of the measured load; afterwards the measured one again."""
        self.tick(now_ns)
        seconds = sum(step.seconds for step in steps)
        self._script = _Script(now_ns, tuple(steps), now_ns + round(seconds * 1e9))

    def tick(self, now_ns: int) -> None:
        """Bring everything up to the present."""
        elapsed_ns = now_ns - self._now_ns
        if elapsed_ns <= 0:
            return
        measured = self._measured_load(elapsed_ns)
        steps = self._steps(self._now_ns, now_ns, measured)
        tau_s = self.board.tau_s
        self.level, area_s = run_script(self.level, steps, tau_s)
        mean_mw = self.board.total.at(area_s * 1e9 / elapsed_ns)
        target_c = _AMBIENT_C + self.board.ohm_k_per_w * mean_mw / 1000
        decay = math.exp(-elapsed_ns / 1e9 / _THERMAL_TAU_S)
        self.temperature_c = target_c + (self.temperature_c - target_c) * decay
        self._now_ns = now_ns
        self._write(now_ns)

    def _steps(self, start_ns: int, end_ns: int, measured: float) -> list[LoadStep]:
        """Return the load between two ticks: a script's own steps where one runs, the measured load elsewhere."""
        script = self._script
        if script is None:
            return [LoadStep((end_ns - start_ns) / 1e9, measured)]
        origin = script.start_ns
        steps = list(steps_between(script.steps, (start_ns - origin) / 1e9, (end_ns - origin) / 1e9))
        if end_ns > script.end_ns:
            steps.append(LoadStep((end_ns - max(start_ns, script.end_ns)) / 1e9, measured))
            self._script = None
        return steps

    def _measured_load(self, elapsed_ns: int) -> float:
        """Return the larger of the worker's busy share and the CPU's.

        The worker's own computation uses CPU too, so their sum would count it twice.
        """
        busy = self._busy.load(self._read_busy(), elapsed_ns)
        self._usage_ns = self._read_usage()
        cpu = self._cpu.load(self._usage_ns, round(elapsed_ns * self._cores))
        return max(busy, cpu)

    def _read_busy(self) -> int | None:
        # The host may have put anything there; a link must not lead the keeper out of the folder.
        try:
            descriptor = os.open(self._busy_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = os.read(descriptor, 8)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return int.from_bytes(data, "little") if len(data) == 8 else None

    def _read_usage(self) -> int:
        path = self._group.usage_file
        if path is None:
            return 0
        try:
            if self._usage is None:
                self._usage = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return usage_ns(os.pread(self._usage, 4096, 0), unified=self._unified)
        except (OSError, ValueError):
            return self._usage_ns

    def _write(self, now_ns: int) -> None:
        self._write_power()
        step = round(self.temperature_c * 1000 / _TEMPERATURE_STEP_MC)
        if step != self._temperature_step:
            self._temperature_step = step
            for number, zone in enumerate(self._zones):
                # The zones differ by half a degree each, so that they can be told apart.
                zone.write(b"%d\n" % (step * _TEMPERATURE_STEP_MC - 500 * number))
        if now_ns >= self._stat_due_ns:
            self._stat_due_ns = now_ns + _STAT_EVERY_NS
            self._stat.write(stat_file(self.board.cpus, now_ns - self._start_ns, self._usage_ns))
        if now_ns >= self._memory_due_ns:
            self._memory_due_ns = now_ns + _MEMORY_EVERY_NS
            self._meminfo.write(meminfo(self._memory_kib, memory_of(self._group.memory_file) // 1024))

    def _write_power(self) -> None:
        # Less than a ten-thousandth of full load is less than any file can show.
        shown = round(self.level, 5)
        if shown == self._shown and not self._noise:
            return
        self._shown = shown
        for rail, file in self._rails:
            power_mw = rail.power.at(self.level)
            if self._noise:
                power_mw *= max(0.0, 1 + self._random.gauss(0, self._noise))
            file.write(tree.current_text(rail, power_mw).encode())
        self._gpu.write(b"%d\n" % round(1000 * self.level))
        self._emc.write(b"%d\n" % (round(60 * self.level) * (self.board.emc_hz // 1000)))

    def close(self) -> None:
        """Close all files."""
        files = [file for _, file in self._rails]
        for file in [*files, self._gpu, self._emc, *self._zones, self._stat, self._meminfo]:
            file.close()
        if self._usage is not None:
            os.close(self._usage)
