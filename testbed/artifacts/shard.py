"""Splitting a checkpoint: each expert one content-addressed object, and the rest for the base station.

Only bytes are copied, in chunks: the experts keep the checkpoint's element type, and neither torch nor the
whole model is ever in memory. An expert's object is a safetensors file with ``gate_up_proj`` (2I, H) and
``down_proj`` (H, I). Both the published layout (three matrices for each expert) and the fused one are read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from payloads.wdmoe.families import FAMILIES, ExpertKey, Family, ModelShape, family_of
from payloads.wdmoe.tensors import TORCH_NAMES, TensorFile, TensorFileError, TensorInfo, encode_header
from testbed.artifacts.manifest import BaseFile, ExpertObject, Manifest
from testbed.errors import InputError

__all__ = ["Sharded", "shard_model"]

CHUNK_BYTES = 8 << 20
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")
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


@dataclass(frozen=True)
class Sharded:
    """What was made.

    Attributes:
        manifest: The manifest.
        path: The manifest's file.
        written: Objects that were new.
        kept: Objects that were there already, and whole.
    """

    manifest: Manifest
    path: Path
    written: int
    kept: int


@dataclass(frozen=True)
class _Piece:
    """Some bytes: of a file, or given.

    Attributes:
        path: The file, or ``None``.
        start: The first byte in it.
        size: How many.
        data: The bytes, where there is no file.
    """

    path: Path | None
    start: int
    size: int
    data: bytes = b""

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes, a few MiB at a time."""
        if self.path is None:
            yield self.data
            return
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise InputError(f"{self.path}: became shorter while it was read")
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the checkpoint, or a slice of one along its first dimension."""

    dtype: str
    shape: tuple[int, ...]
    piece: _Piece


class _Store:
    """The folder of objects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = 0
        self.kept = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, pieces: Sequence[_Piece]) -> tuple[str, int]:
        """Store an object, unless it is there and whole; return its sha256 and its size."""
        digest = _digest(chunk for piece in pieces for chunk in piece.chunks())
        size = sum(piece.size for piece in pieces)
        path = self.folder / digest
        there = path.is_file() and path.stat().st_size == size
        if there and _digest(_Piece(path, 0, size).chunks()) == digest:
            self.kept += 1
            return digest, size
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            for piece in pieces:
                for chunk in piece.chunks():
                    file.write(chunk)
        partial.replace(path)
        self.written += 1
        return digest, size


def shard_model(
    model: Path, out: Path, *, name: str = "", on_progress: Callable[[int, int], None] | None = None
) -> Sharded:
    """Split a checkpoint into objects and write the manifest; what is there already is kept.

    Who comes while another process splits into the same folder waits, and then keeps what that one made.

    Args:
        model: A folder in the Hugging Face layout, with safetensors.
        out: Where ``manifest.json`` and ``objects/`` go.
        name: The model's name; the folder's by default.
        on_progress: Called with the experts done and all experts.

    Raises:
        InputError: There is no such model, its family is not known, or tensors are missing.
    """
    config = _read_json(model / "config.json", f"no model at {model}: it has no config.json")
    family = family_of(config)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise InputError(f"{model}: the family {config.get('model_type')!r} is not known; known: {known}")
    try:
        shape = family.shape(config)
    except KeyError as error:
        raise InputError(f"{model / 'config.json'}: {error.args[0]} is missing") from error
    tensors = _open_checkpoint(model)
    found = {key: tensors[text] for text in tensors if (key := family.expert_key(text)) is not None}
    dtype = _check_experts(model, shape, found)
    with _only_writer(out):
        store = _Store(out / "objects")
        base = {text: tensors[text] for text in sorted(tensors) if family.expert_key(text) is None}
        base_files = _store_base(model, base, store)
        experts = []
        for layer in range(shape.layers):
            for expert in range(shape.experts):
                digest, size = store.add(_expert_pieces(shape, found, layer, expert))
                experts.append(ExpertObject(layer, expert, digest, size))
                if on_progress:
                    on_progress(len(experts), shape.layers * shape.experts)
        manifest = _manifest(name or model.resolve().name, family, shape, dtype, base, experts, base_files)
        path = out / "manifest.json"
        partial = path.with_suffix(".part")
        partial.write_text(manifest.to_json())
        partial.replace(path)
        return Sharded(manifest, path, store.written, store.kept)


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _manifest(
    name: str,
    family: Family,
    shape: ModelShape,
    dtype: str,
    base: Mapping[str, _Tensor],
    experts: Sequence[ExpertObject],
    base_files: Sequence[BaseFile],
) -> Manifest:
    return Manifest(
        model=name,
        family=family.name,
        dtype=TORCH_NAMES[dtype],
        layers=shape.layers,
        experts_per_layer=shape.experts,
        experts_per_token=shape.experts_per_token,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        vocabulary=shape.vocabulary,
        activation=shape.activation,
        base_parameters=sum(_elements(tensor.shape) for tensor in base.values()),
        expert_parameters=3 * shape.hidden_size * shape.intermediate_size,
        experts=tuple(experts),
        base_station=tuple(base_files),
    )


def _open_checkpoint(model: Path) -> dict[str, _Tensor]:
    """Return every tensor of the checkpoint, by name; nothing but headers is read."""
    if (model / INDEX_FILE).is_file():
        index = _read_json(model / INDEX_FILE, f"{model / INDEX_FILE}: cannot be read")
        files = sorted({Path(str(name)).name for name in index.get("weight_map", {}).values()})
    else:
        files = [SINGLE_FILE]
    result: dict[str, _Tensor] = {}
    for name in files:
        path = model / name
        if not path.is_file():
            raise InputError(
                f"{model}: {name} is missing", hint="Only checkpoints in safetensors files are read."
            )
        try:
            with TensorFile(path) as file:
                for text, info in file.tensors.items():
                    result[text] = _whole(path, info)
        except TensorFileError as error:
            raise InputError(str(error), hint="Is the download complete?") from error
    return result


def _whole(path: Path, info: TensorInfo) -> _Tensor:
    return _Tensor(info.dtype, info.shape, _Piece(path, info.start, info.end - info.start))


def _check_experts(model: Path, shape: ModelShape, found: Mapping[ExpertKey, _Tensor]) -> str:
    """Check that every expert is there with its shape; return the experts' element type."""
    wide, narrow = shape.intermediate_size, shape.hidden_size
    fused = any(key.expert is None for key in found)
    shapes: dict[str, tuple[int, ...]]
    if fused:
        shapes = {"gate_up": (shape.experts, 2 * wide, narrow), "down": (shape.experts, narrow, wide)}
    else:
        shapes = {"gate": (wide, narrow), "up": (wide, narrow), "down": (narrow, wide)}
    numbers: Sequence[int | None] = [None] if fused else range(shape.experts)
    problems = []
    for layer in range(shape.layers):
        for expert in numbers:
            place = f"layer {layer}" if expert is None else f"layer {layer}, expert {expert}"
            for part, wanted in shapes.items():
                tensor = found.get(ExpertKey(layer, expert, part))
                if tensor is None:
                    problems.append(f"{place}: {part} is missing")
                elif tensor.shape != wanted:
                    problems.append(f"{place}: {part} has shape {tensor.shape}, expected {wanted}")
    if problems:
        shown = problems[:10] + ([f"... and {len(problems) - 10} more"] if len(problems) > 10 else [])
        raise InputError(f"{model}: the experts are not all there:", problems=shown)
    dtypes = sorted({tensor.dtype for tensor in found.values()})
    if len(dtypes) != 1 or dtypes[0] not in FLOATS:
        raise InputError(f"{model}: experts of type {', '.join(dtypes)}; expected one of {', '.join(FLOATS)}")
    return dtypes[0]


def _expert_pieces(
    shape: ModelShape, found: Mapping[ExpertKey, _Tensor], layer: int, expert: int
) -> list[_Piece]:
    """Return the bytes of an expert's object: a header, then gate, up and down."""
    fused = found.get(ExpertKey(layer, None, "gate_up"))
    if fused is not None:
        parts = [_slice(fused, expert), _slice(found[ExpertKey(layer, None, "down")], expert)]
    else:
        parts = [found[ExpertKey(layer, expert, part)] for part in ("gate", "up", "down")]
    wide, narrow = shape.intermediate_size, shape.hidden_size
    header = encode_header(
        {
            "gate_up_proj": (parts[0].dtype, (2 * wide, narrow)),
            "down_proj": (parts[0].dtype, (narrow, wide)),
        },
        {},
    )
    return [_given(header), *(part.piece for part in parts)]


def _slice(tensor: _Tensor, index: int) -> _Tensor:
    size = tensor.piece.size // tensor.shape[0]
    piece = _Piece(tensor.piece.path, tensor.piece.start + index * size, size)
    return _Tensor(tensor.dtype, tensor.shape[1:], piece)


def _store_base(model: Path, base: Mapping[str, _Tensor], store: _Store) -> list[BaseFile]:
    """Store the base station's files: companions as they are, and the weights without the experts."""
    files = []
    for name in COMPANIONS:
        path = model / name
        if path.is_file():
            digest, size = store.add([_Piece(path, 0, path.stat().st_size)])
            files.append(BaseFile(name, digest, size))
    header = encode_header({text: (t.dtype, t.shape) for text, t in base.items()}, {"format": "pt"})
    digest, size = store.add([_given(header), *(tensor.piece for tensor in base.values())])
    return [*files, BaseFile(SINGLE_FILE, digest, size)]


def _given(data: bytes) -> _Piece:
    return _Piece(None, 0, len(data), data)


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _digest(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{missing} ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value
