"""What each object is made of: a recipe names the bytes, and yields them a few MiB at a time.

An expert's object is a safetensors file with ``gate_up_proj`` (2I, H) and ``down_proj`` (H, I) in the checkpoint's
element type; as 8 bits, with ``gate_up_scale`` (2I,) and ``down_scale`` (H,) in float32 behind them. The base station's
weights are one safetensors file, its other files are taken as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from payloads.tensors import encode_header
from payloads.wdmoe.families import ExpertKey, ModelShape
from testbed.artifacts.checkpoint import SINGLE_FILE, Checkpoint, Span, Tensor
from testbed.artifacts.quantise import NotFiniteError, as_float32, quantise_rows
from testbed.errors import InputError

__all__ = ["CHUNK_BYTES", "Recipe", "Sources", "recipes"]

#: Memory for each worker: what is read, hashed and written at once.
CHUNK_BYTES = 4 << 20

Buffer = bytes | memoryview


class Sources:
    """The files that are read, each opened once; any thread may read."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def open(self, paths: Sequence[Path]) -> None:
        """Open files; they are closed at the end."""
        for path in paths:
            self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, span: Span, offset: int, into: memoryview) -> None:
        """Fill a buffer with the bytes of a span, from ``offset`` on.

        Raises:
            InputError: The file has become shorter.
        """
        done = 0
        while done < len(into):
            count = os.preadv(self._descriptors[span.path], [into[done:]], span.start + offset + done)
            if not count:
                raise InputError(f"{span.path}: became shorter while it was read")
            done += count


class _Part(Protocol):
    """A part of an object."""

    def chunks(self, sources: Sources, buffer: memoryview) -> Iterator[Buffer]:
        """Yield the part's bytes; what was yielded is good until the next."""


@dataclass(frozen=True)
class _Given:
    """Bytes that are known."""

    data: bytes

    def chunks(self, sources: Sources, buffer: memoryview) -> Iterator[Buffer]:
        yield self.data


@dataclass(frozen=True)
class _Copied:
    """Bytes of the checkpoint as they are."""

    span: Span

    def chunks(self, sources: Sources, buffer: memoryview) -> Iterator[Buffer]:
        for offset in range(0, self.span.size, len(buffer)):
            chunk = buffer[: min(len(buffer), self.span.size - offset)]
            sources.read(self.span, offset, chunk)
            yield chunk


@dataclass(frozen=True)
class _Quantised:
    """Matrices of the checkpoint as 8 bits, and all their scales behind the last one."""

    matrices: tuple[Tensor, ...]

    def chunks(self, sources: Sources, buffer: memoryview) -> Iterator[Buffer]:
        scales = []
        for tensor in self.matrices:
            rows, columns = tensor.shape
            row_bytes = tensor.span.size // max(rows, 1)
            # What is worked on in float32 should stay in a core's cache.
            step = max(1, len(buffer) // 16 // max(row_bytes, 1))
            space = buffer if row_bytes <= len(buffer) else memoryview(bytearray(row_bytes))
            for first in range(0, rows, step):
                count = min(step, rows - first)
                chunk = space[: count * row_bytes]
                sources.read(tensor.span, first * row_bytes, chunk)
                try:
                    small, scale = quantise_rows(as_float32(chunk, tensor.dtype).reshape(count, columns))
                except NotFiniteError as error:
                    raise InputError(f"{tensor.span.path}: {error}, so it cannot be made 8 bits") from error
                scales.append(scale.astype("<f4").tobytes())
                yield small.data.cast("B")
        yield b"".join(scales)


@dataclass(frozen=True)
class Recipe:
    """How an object is made.

    Attributes:
        name: What it is, such as ``3/7`` for an expert or the name of a file of the base station.
        size: Its bytes.
        parts: Its parts, in order.
    """

    name: str
    size: int
    parts: tuple[_Part, ...]

    def chunks(self, sources: Sources, buffer: memoryview) -> Iterator[Buffer]:
        """Yield its bytes, at most a buffer's at a time; what was yielded is good until the next."""
        for part in self.parts:
            yield from part.chunks(sources, buffer)


def recipes(checkpoint: Checkpoint, weights: str | None) -> dict[ExpertKey | str, Recipe]:
    """Return the recipes of all objects: the base station's by their names, the experts' by layer and expert.

    Args:
        checkpoint: The checkpoint.
        weights: ``int8`` for experts as 8 bits; ``None`` for experts as they are.
    """
    result: dict[ExpertKey | str, Recipe] = {}
    for path in checkpoint.companions:
        size = path.stat().st_size
        result[path.name] = Recipe(path.name, size, (_Copied(Span(path, 0, size)),))
    result[SINGLE_FILE] = _base(checkpoint.base)
    for layer in range(checkpoint.shape.layers):
        for expert in range(checkpoint.shape.experts):
            result[ExpertKey(layer, expert, "")] = _expert(checkpoint, layer, expert, weights)
    return result


def _base(tensors: Mapping[str, Tensor]) -> Recipe:
    header = encode_header({text: (t.dtype, t.shape) for text, t in tensors.items()}, {"format": "pt"})
    size = len(header) + sum(tensor.span.size for tensor in tensors.values())
    return Recipe(SINGLE_FILE, size, (_Given(header), *(_Copied(t.span) for t in tensors.values())))


def _expert(checkpoint: Checkpoint, layer: int, expert: int, weights: str | None) -> Recipe:
    found = checkpoint.experts
    fused = found.get(ExpertKey(layer, None, "gate_up"))
    if fused is not None:
        matrices = [fused.slice(expert), found[ExpertKey(layer, None, "down")].slice(expert)]
    else:
        matrices = [found[ExpertKey(layer, expert, part)] for part in ("gate", "up", "down")]
    name, dtype = f"{layer}/{expert}", checkpoint.dtype
    header = encode_header(_expert_tensors(checkpoint.shape, dtype, weights), {})
    if weights is None:
        size = len(header) + sum(tensor.span.size for tensor in matrices)
        return Recipe(name, size, (_Given(header), *(_Copied(tensor.span) for tensor in matrices)))
    size = len(header) + sum(tensor.elements + 4 * tensor.shape[0] for tensor in matrices)
    return Recipe(name, size, (_Given(header), _Quantised(tuple(matrices))))


def _expert_tensors(
    shape: ModelShape, dtype: str, weights: str | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of what an expert's object holds, in its order."""
    wide, narrow = shape.intermediate_size, shape.hidden_size
    kind = dtype if weights is None else "I8"
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "gate_up_proj": (kind, (2 * wide, narrow)),
        "down_proj": (kind, (narrow, wide)),
    }
    if weights is not None:
        tensors |= {"gate_up_scale": ("F32", (2 * wide,)), "down_scale": ("F32", (narrow,))}
    return tensors
