"""Splitting a checkpoint: each expert one content-addressed object, and the rest for the base station.

A checkpoint may be far larger than the memory: it is read tensor by tensor, a few MiB at a time, once. The experts keep
the checkpoint's element type or become 8 bits. A split that was cut off goes on where it was, and one that is done
looks only at the sizes and times of its files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from payloads.tensors import TORCH_NAMES
from payloads.wdmoe.families import ExpertKey
from testbed.artifacts.checkpoint import Checkpoint, open_checkpoint, stamp_of
from testbed.artifacts.making import Maker, check_room, still_there, workers_here
from testbed.artifacts.manifest import WEIGHTS, BaseFile, ExpertObject, Manifest
from testbed.artifacts.recipes import Recipe, Sources, recipes
from testbed.artifacts.shard_journal import Made, ShardJournal, read_journal
from testbed.errors import InputError

__all__ = ["Sharded", "shard_model"]

#: Changes when equal checkpoints would give other objects than before.
RECIPES_VERSION = 1
#: In front of the digest of an object that nobody will name any more, in the journal.
OLD = "old "


@dataclass(frozen=True)
class Sharded:
    """What was made.

    Attributes:
        manifest: The manifest.
        path: The manifest's file.
        written: Objects that were made now.
        kept: Objects that were there already, and whole.
        anew: Why nothing of an earlier split could be kept; empty where it could, or where there was none.
    """

    manifest: Manifest
    path: Path
    written: int
    kept: int
    anew: str = ""


def shard_model(
    model: Path,
    out: Path,
    *,
    name: str = "",
    experts: str | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_wait: Callable[[], None] | None = None,
) -> Sharded:
    """Split a checkpoint into objects and write the manifest; what is there already is kept.

    Who comes while another process splits into the same folder waits, and then keeps what that one made.

    Args:
        model: A folder in the Hugging Face layout, with safetensors.
        out: Where ``manifest.json`` and ``objects/`` go.
        name: The model's name; the folder's by default, or that which Hugging Face's cache has it under.
        experts: ``int8`` for experts as 8 bits, with a scale for each row; ``None`` for experts as they are.
        workers: How many objects are made at once; what suits this machine by default.
        on_progress: Called with the bytes done and all bytes; from any thread, one call at a time.
        on_wait: Called once where another process is at work in the folder, before it is waited for.

    Raises:
        InputError: There is no such model, its family is not known, tensors are missing, it changed while it was
            read, or the disk is too small.
        OSError: A file cannot be read or written.
    """
    if experts is not None and experts not in WEIGHTS:
        raise InputError(f"experts: expected {' or '.join(WEIGHTS)}, got {experts!r}")
    checkpoint = open_checkpoint(model)
    wanted = recipes(checkpoint, experts)
    with _only_writer(out, on_wait), Sources() as sources:
        objects = out / "objects"
        objects.mkdir(exist_ok=True)
        for part in [*objects.glob("[0-9]*.part"), out / "manifest.part", out / ".journal.part"]:
            part.unlink(missing_ok=True)  # of a split that was cut off
        head = {"recipes": RECIPES_VERSION, "experts": experts, "source": checkpoint.stamp}
        journal_path = out / ".journal"
        before, noted = read_journal(journal_path)
        kept, old = _sorted_out(objects, noted, wanted, before == head)
        missing = {recipe.name: recipe for recipe in wanted.values() if recipe.name not in kept}
        check_room(objects, sum(recipe.size for recipe in missing.values()))
        sources.open([*checkpoint.files, *checkpoint.companions])
        with ShardJournal(journal_path, head, kept | old) as journal:
            on_bytes = _counter(wanted, missing, on_progress)
            made = Maker(objects, sources, journal, kept, on_bytes).make(missing, workers or workers_here())
        if stamp_of([*checkpoint.companions, *checkpoint.files]) != checkpoint.stamp:
            # What was made may be of either: from now on it is of no model at all, and goes with the next split.
            ShardJournal(journal_path, {**head, "source": None}, kept | made | old).close()
            raise InputError(
                f"{checkpoint.folder}: the model changed while it was read",
                hint="Wait until it is complete, and run it again.",
            )
        manifest = _manifest(name or _name_of(model), checkpoint, experts, wanted, kept | made)
        path = out / "manifest.json"
        _replace(path, manifest.to_json())
        for digest in {entry.object for entry in old.values()} - set(manifest.objects()):
            (objects / digest).unlink(missing_ok=True)
        written = {entry.object for entry in made.values()}
        there = {entry.object for entry in kept.values()} - written
        return Sharded(manifest, path, len(written), len(there), _why_anew(before, head))


def _name_of(model: Path) -> str:
    folder = model.absolute()  # a link's own name may be the better one
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.rpartition("--")[2]  # the folder has a commit's name
    return folder.name


@contextlib.contextmanager
def _only_writer(folder: Path, on_wait: Callable[[], None] | None) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sorted_out(
    objects: Path, noted: Mapping[str, Made], wanted: Mapping[Any, Recipe], same: bool
) -> tuple[dict[str, Made], dict[str, Made]]:
    """Return what of an earlier split into a folder can be kept, and what is to go once all is made.

    Args:
        objects: The folder of objects.
        noted: What the folder's journal names.
        wanted: What is to be made.
        same: Whether the journal is of the same files, split in the same way.
    """
    names = {recipe.name for recipe in wanted.values()} if same else set()
    kept = still_there(objects, {name: made for name, made in noted.items() if name in names})
    old = {f"{OLD}{made.object}": made for name, made in noted.items() if name not in names}
    return kept, old


def _counter(
    wanted: Mapping[Any, Recipe],
    missing: Mapping[str, Recipe],
    on_progress: Callable[[int, int], None] | None,
) -> Callable[[int], None]:
    """Return a function that adds up bytes and tells how far all of it is."""
    whole = sum(recipe.size for recipe in wanted.values())
    done = whole - sum(recipe.size for recipe in missing.values())
    tell = on_progress or (lambda _done, _whole: None)
    tell(done, whole)

    def add(count: int) -> None:
        nonlocal done
        done += count
        tell(done, whole)

    return add


def _why_anew(before: Mapping[str, Any] | None, head: Mapping[str, Any]) -> str:
    if before is None or before == head:
        return ""
    if before.get("source") != head["source"]:
        return "the model's files have changed since this folder was made"
    return "the experts' weights were held otherwise in this folder"


def _manifest(
    name: str,
    checkpoint: Checkpoint,
    weights: str | None,
    wanted: Mapping[ExpertKey | str, Recipe],
    made: Mapping[str, Made],
) -> Manifest:
    shape = checkpoint.shape
    experts, base = [], []
    for key, recipe in wanted.items():
        entry = made[recipe.name]
        if isinstance(key, ExpertKey):
            experts.append(ExpertObject(key.layer, key.expert or 0, entry.object, entry.bytes))
        else:
            base.append(BaseFile(key, entry.object, entry.bytes))
    return Manifest(
        model=name,
        family=checkpoint.family.name,
        dtype=TORCH_NAMES[checkpoint.dtype],
        layers=shape.layers,
        experts_per_layer=shape.experts,
        experts_per_token=shape.experts_per_token,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        vocabulary=shape.vocabulary,
        activation=shape.activation,
        base_parameters=sum(tensor.elements for tensor in checkpoint.base.values()),
        expert_parameters=3 * shape.hidden_size * shape.intermediate_size,
        experts=tuple(experts),
        base_station=tuple(base),
        moe_layers=shape.moe_layers,
        weights=weights,
    )


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".part")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
