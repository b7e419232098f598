"""A published checkpoint, by its headers: which tensors are experts, which are the base station's, and where they lie.

Nothing but ``config.json``, the index and the headers of the safetensors files is read here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from payloads.tensors import TensorFileError, read_header
from payloads.wdmoe.families import FAMILIES, ConfigError, ExpertKey, Family, ModelShape, family_of
from testbed.errors import InputError

__all__ = ["SINGLE_FILE", "Checkpoint", "Span", "Tensor", "open_checkpoint", "stamp_of"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")
CONVERT = "Convert the checkpoint to bfloat16 first."
#: What the base station needs beside the weights, where the model has it.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


class Span(NamedTuple):
    """Some bytes of a file.

    Attributes:
        path: The file.
        start: The first byte.
        size: How many.
    """

    path: Path
    start: int
    size: int


class Tensor(NamedTuple):
    """A tensor of the checkpoint, or a slice of one along its first dimension."""

    dtype: str
    shape: tuple[int, ...]
    span: Span

    @property
    def elements(self) -> int:
        """The number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def slice(self, index: int) -> Tensor:
        """Return one entry of the first dimension."""
        size = self.span.size // self.shape[0]
        return Tensor(self.dtype, self.shape[1:], Span(self.span.path, self.span.start + index * size, size))


@dataclass(frozen=True)
class Checkpoint:
    """What the headers of a checkpoint say.

    Attributes:
        folder: The model's folder.
        family: Its family.
        shape: Its numbers.
        dtype: Element type of the experts, as safetensors names it.
        experts: The experts' tensors; the layer in a key is the ordinal among the layers with experts.
        base: All other tensors, by name in the order of their names.
        companions: The other files that the base station needs.
        files: The files with tensors.
        stamp: Changes when a file does (see :func:`stamp_of`).
    """

    folder: Path
    family: Family
    shape: ModelShape
    dtype: str
    experts: Mapping[ExpertKey, Tensor]
    base: Mapping[str, Tensor]
    companions: Sequence[Path]
    files: Sequence[Path]
    stamp: str


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's headers and check that every expert is there.

    Raises:
        InputError: There is no such model, its family is not known, or tensors are missing.
    """
    config = _read_json(folder / "config.json", f"no model at {folder}: it has no config.json")
    family = family_of(config)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise InputError(f"{folder}: the family {config.get('model_type')!r} is not known; known: {known}")
    if isinstance(config.get("quantization_config"), dict):
        how = config["quantization_config"].get("quant_method", "in a way it does not name")
        hint = f"{CONVERT} If that was done, take quantization_config out of its config.json."
        raise InputError(f"{folder}: its weights are quantised ({how})", hint=hint)
    try:
        shape = family.shape(config)
    except ConfigError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from error
    files = [folder / name for name in _file_names(folder)]
    companions = [folder / name for name in COMPANIONS if (folder / name).is_file()]
    stamp = stamp_of([*companions, *files])  # before anything is read: what changes from here on is noticed
    tensors = _read_tensors(folder, files)
    experts, base, problems = _sort_out(family, shape, tensors)
    dtype = _check_experts(folder, shape, experts, problems)
    return Checkpoint(folder, family, shape, dtype, experts, base, companions, files, stamp)


def stamp_of(files: Sequence[Path]) -> str:
    """Return a digest of the names, sizes and times of change of files; one that is gone changes it too."""
    lines = []
    for path in files:
        try:
            found = path.stat()
        except OSError:
            lines.append(f"{path.name} gone")
        else:
            lines.append(f"{path.name} {found.st_size} {found.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _file_names(folder: Path) -> list[str]:
    """Return the names of the files with tensors, as the index says, or the only one."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return [SINGLE_FILE]
    weight_map = _weight_map(folder)
    if not weight_map:
        raise InputError(f"{path}: weight_map names no file")
    return sorted(set(weight_map.values()))


def _weight_map(folder: Path) -> dict[str, str]:
    """Return the file of each tensor, or nothing where there is no index."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return {}
    found = _read_json(path, f"{path}: cannot be read").get("weight_map")
    if not isinstance(found, dict):
        raise InputError(f"{path}: weight_map is missing")
    # Only names of files in the folder: an index must not lead elsewhere.
    return {text: Path(str(name)).name for text, name in found.items()}


def _read_tensors(folder: Path, files: Sequence[Path]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for path in files:
        if not path.is_file():
            raise InputError(
                f"{folder}: {path.name} is missing", hint="Only checkpoints in safetensors files are read."
            )
        try:
            header = read_header(path)
        except TensorFileError as error:
            raise InputError(str(error), hint="Is the download complete?") from error
        for text, info in header.items():
            if text in result:
                raise InputError(f"{folder}: {text} stands in {result[text].span.path.name} and {path.name}")
            result[text] = Tensor(info.dtype, info.shape, Span(path, info.start, info.end - info.start))
    missing = sorted(set(_weight_map(folder)) - set(result))
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} tensors of the index are in no file, such as {missing[0]}",
            hint="Is the download complete?",
        )
    return result


def _sort_out(
    family: Family, shape: ModelShape, tensors: Mapping[str, Tensor]
) -> tuple[dict[ExpertKey, Tensor], dict[str, Tensor], list[str]]:
    """Tell the experts from the rest; return both, and what does not fit the configuration."""
    ordinals = {layer: ordinal for ordinal, layer in enumerate(shape.moe_layers)}
    experts: dict[ExpertKey, Tensor] = {}
    base: dict[str, Tensor] = {}
    problems: set[str] = set()
    for text in sorted(tensors):
        if family.unused(text, shape):
            continue
        key = family.expert_key(text)
        if key is None:
            base[text] = tensors[text]
            continue
        place = f"layer {key.layer}"
        if key.layer not in ordinals:
            problems.add(f"{place}: experts, where config.json says there are none")
            continue
        if key.expert is not None and key.expert >= shape.experts:
            problems.add(f"{place}: expert {key.expert}, where config.json says there are {shape.experts}")
        key = key._replace(layer=ordinals[key.layer])
        if key in experts:
            problems.add(f"{place}: {text} is there under another name too")
        experts[key] = tensors[text]
    together = {key.layer for key in experts if key.expert is None}
    for layer in together & {key.layer for key in experts if key.expert is not None}:
        problems.add(f"layer {shape.moe_layers[layer]}: experts one by one, and all of them in one tensor")
    return experts, base, sorted(problems)


def _check_experts(
    folder: Path, shape: ModelShape, found: Mapping[ExpertKey, Tensor], problems: Sequence[str]
) -> str:
    """Check that every expert is there with its shape; return the experts' element type."""
    problems = [*problems, *_missing(shape, found)]
    if problems:
        shown = problems[:10] + ([f"... and {len(problems) - 10} more"] if len(problems) > 10 else [])
        raise InputError(f"{folder}: the experts are not all there:", problems=shown)
    dtypes = sorted({tensor.dtype for tensor in found.values()})
    if len(dtypes) != 1 or dtypes[0] not in FLOATS:
        raise InputError(
            f"{folder}: experts of type {', '.join(dtypes)}; expected one of {', '.join(FLOATS)}",
            hint=CONVERT,
        )
    return dtypes[0]


def _missing(shape: ModelShape, found: Mapping[ExpertKey, Tensor]) -> Iterator[str]:
    """Yield a line for each part of an expert that is missing or has another shape."""
    wide, narrow = shape.intermediate_size, shape.hidden_size
    for layer, number in enumerate(shape.moe_layers):
        fused = ExpertKey(layer, None, "gate_up") in found or ExpertKey(layer, None, "down") in found
        wanted: dict[str, tuple[int, ...]]
        if fused:
            wanted = {"gate_up": (shape.experts, 2 * wide, narrow), "down": (shape.experts, narrow, wide)}
        else:
            wanted = {"gate": (wide, narrow), "up": (wide, narrow), "down": (narrow, wide)}
        for expert in [None] if fused else range(shape.experts):
            place = f"layer {number}" if expert is None else f"layer {number}, expert {expert}"
            for part, size in wanted.items():
                tensor = found.get(ExpertKey(layer, expert, part))
                if tensor is None:
                    yield f"{place}: {part} is missing"
                elif tensor.shape != size:
                    yield f"{place}: {part} has shape {tensor.shape}, expected {size}"


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{missing} ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value
