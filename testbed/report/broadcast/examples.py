"""Example images: what the users see, side by side, as far as they are kept and the page may grow."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from testbed.records.run import Run
from testbed.report.blocks import Shot, Strip
from testbed.report.broadcast.facts import Facts, Panel, ratio_name

__all__ = ["FOLDER", "MOST_BYTES", "Examples", "examples_of"]

FOLDER = "pictures"
MOST_BYTES = 1_200_000
"""So much of pictures, as files, is embedded in a page."""

_NAME = re.compile(r"(?P<trial>[A-Za-z0-9_]+)-(?P<frame>\d+)-(?P<user>\d+)\.png")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Examples:
    """What is shown of one panel."""

    panel: Panel
    title: str
    strips: Sequence[Strip]


@dataclass(frozen=True)
class _Found:
    """A picture in the run's folder, with its row of ``images``."""

    path: Path
    row: Mapping[str, Any]


def examples_of(run: Run, facts: Facts) -> tuple[list[Examples], list[str]]:
    """Return the example pictures by panel, and the panels that were left out for the size of the page.

    Args:
        run: The run: its folder ``pictures`` has ``TRIAL-FRAME-USER.png``, and ``source-SET-NUMBER-USER.png`` with the
            number of the pair in its set.
        facts: What was compared.
    """
    panels: dict[Panel, list[_Found]] = {}
    rows = {(str(r["trial"]), int(r["frame"]), int(r["user"])): r for r in _pictured(run, facts)}
    for (trial, frame, user), row in rows.items():
        panel = Panel(str(row["scenario"]), str(row["set"]), float(row["bandwidth_ratio"]))
        path = run.path / FOLDER / f"{trial}-{frame}-{user}.png"
        panels.setdefault(panel, []).append(_Found(path, row))
    numbers = _numbers(facts)
    shown: list[Examples] = []
    left_out: list[str] = []
    spent = 0
    for panel in sorted(panels, key=facts.panels.index):
        strips, cost = _strips(run, facts, panels[panel], numbers)
        title = f"{panel.scenario} · {panel.set} · k/n = {ratio_name(panel.ratio)}"
        if shown and spent + cost > MOST_BYTES:
            left_out.append(title)
            continue
        spent += cost
        if strips:
            shown.append(Examples(panel, title, strips))
    return shown, left_out


def _pictured(run: Run, facts: Facts) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``images`` that have a picture."""
    folder = run.path / FOLDER
    if not folder.is_dir():
        return
    names = {
        (found["trial"], int(found["frame"]), int(found["user"]))
        for path in folder.iterdir()
        if (found := _NAME.fullmatch(path.name)) is not None and path.is_file() and not path.is_symlink()
    }
    images = facts.images[facts.images["trial"].isin({trial for trial, _, _ in names})]
    for row in images.to_dict("records"):
        if (str(row["trial"]), int(row["frame"]), int(row["user"])) in names:
            yield {str(key): value for key, value in row.items()}


def _numbers(facts: Facts) -> dict[tuple[str, str], int]:
    """Return each pair's number in its set: pairs are numbered as their frames are."""
    numbers: dict[tuple[str, str], int] = {}
    for name, own in facts.frames.sort_values("frame", kind="stable").groupby("set", sort=False):
        numbers |= {(str(name), str(pair)): place for place, pair in enumerate(dict.fromkeys(own["pair"]))}
    return numbers


def _strips(
    run: Run, facts: Facts, found: Sequence[_Found], numbers: Mapping[tuple[str, str], int]
) -> tuple[list[Strip], int]:
    strips, cost = [], 0
    for user in facts.users:
        own = [entry for entry in found if int(entry.row["user"]) == user]
        # One picture a scheme: that of its first trial and frame.
        first: dict[str, _Found] = {}
        for entry in sorted(own, key=lambda entry: (str(entry.row["trial"]), int(entry.row["frame"]))):
            first.setdefault(str(entry.row["scheme"]), entry)
        shots = []
        for scheme, known in facts.schemes.items():
            if scheme in first and not known.ablates:
                shot = _shot(scheme, _caption(first[scheme].row), first[scheme].path)
                if shot is not None:
                    lost = not bool(first[scheme].row["received"])
                    shots.append(replace(shot, lost=lost))
        if not shots:
            continue
        row = next(iter(first.values())).row
        number = numbers[str(row["set"]), str(row["pair"])]
        source = run.path / FOLDER / f"source-{row['set']}-{number}-{user}.png"
        shot = _shot("source", str(row["image"]), source)
        every = [shot, *shots] if shot is not None else shots
        cost += sum(len(one.uri) * 3 // 4 for one in every)
        strips.append(Strip(f"user {user}, {float(row['snr_db']):g} dB", every))
    return strips, cost


def _caption(row: Mapping[str, Any]) -> str:
    if not bool(row["received"]):
        return "not decodable"
    return f"{float(row['psnr_db']):.1f}\N{NO-BREAK SPACE}dB, SSIM\N{NO-BREAK SPACE}{float(row['ssim']):.3f}"


def _shot(title: str, caption: str, path: Path) -> Shot | None:
    """Return a picture, or None where the file is no PNG: what a page embeds, a browser opens."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if not data.startswith(_PNG) or len(data) < 24:
        return None
    size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return Shot(title, caption, f"data:image/png;base64,{base64.b64encode(data).decode()}", size)
