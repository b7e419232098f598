"""A small reader of safetensors files, since boards need not have the package.

The format: eight bytes with the header's length, a JSON header that names each tensor's element type,
shape and place, then the raw bytes. Nothing in it can run code. Everything but :meth:`TensorFile.tensor`
works without torch.
"""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, NamedTuple, Optional, Tuple

from payloads.json_input import parse_json

if TYPE_CHECKING:
    import torch

__all__ = ["TORCH_NAMES", "TensorFile", "TensorFileError", "TensorInfo", "encode_header", "read_header"]

MAX_HEADER_BYTES = 100_000_000
#: Element types by their name in the format: bytes, and the name in torch.
_TYPES = {
    "F64": (8, "float64"),
    "F32": (4, "float32"),
    "F16": (2, "float16"),
    "BF16": (2, "bfloat16"),
    "F8_E4M3": (1, "float8_e4m3fn"),
    "F8_E5M2": (1, "float8_e5m2"),
    "I64": (8, "int64"),
    "I32": (4, "int32"),
    "I16": (2, "int16"),
    "I8": (1, "int8"),
    "U8": (1, "uint8"),
    "BOOL": (1, "bool"),
}
TORCH_NAMES = {name: torch_name for name, (_, torch_name) in _TYPES.items()}


class TensorFileError(Exception):
    """The file is no safetensors file, or not a whole one."""


class TensorInfo(NamedTuple):
    """Where a tensor is.

    Attributes:
        dtype: Element type as the format names it, such as ``BF16``.
        shape: The shape.
        start: First byte, from the start of the file.
        end: One past the last byte.
    """

    dtype: str
    shape: Tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count


class TensorFile:
    """An open safetensors file, mapped into memory and read only where it is looked at.

    Attributes:
        path: The file.
        tensors: What it holds, by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            # Copy-on-write instead of read-only: torch warns about buffers that it may not write to.
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except ValueError as error:
                raise TensorFileError(f"{path} is empty") from error
        try:
            length = _header_bytes(path, self._map[:8], len(self._map))
            self.tensors = _parse(path, self._map[8 : 8 + length], len(self._map))
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; tensors taken from it must be gone."""
        self._map.close()

    def info(self, name: str) -> TensorInfo:
        """Return where a tensor is.

        Raises:
            TensorFileError: The file does not hold it.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise TensorFileError(f"{self.path} does not hold {name}") from None

    def tensor(self, name: str, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
        """Return a copy of a tensor, converted to ``dtype`` if given."""
        import torch

        info = self.info(name)
        source = torch.frombuffer(
            self._map, dtype=getattr(torch, TORCH_NAMES[info.dtype]), count=info.elements, offset=info.start
        )
        return source.to(dtype or source.dtype, copy=True).reshape(info.shape)


def read_header(path: Path) -> Dict[str, TensorInfo]:
    """Return where the tensors of a file are; nothing but its header is read.

    Raises:
        TensorFileError: It is no safetensors file, or not a whole one.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        length = _header_bytes(path, start, size)
        return _parse(path, file.read(length), size)


def encode_header(tensors: Mapping[str, Tuple[str, Tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the beginning of a file that holds ``tensors`` (type and shape by name), in that order.

    The same input always gives the same bytes, so that equal content has equal digests.
    """
    entries: Dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = _TYPES[dtype][0]
        for length in shape:
            size *= length
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _header_bytes(path: Path, start: bytes, size: int) -> int:
    """Return the header's length from the first bytes of a file of ``size`` bytes."""
    length: int = struct.unpack_from("<Q", start)[0] if len(start) >= 8 else -1
    if not 0 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise TensorFileError(f"{path} is not a safetensors file, or its end is missing")
    return length


def _parse(path: Path, header: bytes, size: int) -> Dict[str, TensorInfo]:
    try:
        entries = parse_json(header)
        entries = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        tensors = {name: _info(entry, 8 + len(header)) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TensorFileError(f"{path}: the header is damaged: {error}") from error
    for name, info in tensors.items():
        if info.end > size:
            raise TensorFileError(f"{path}: {name} reaches behind the end of the file; is it whole?")
    return tensors


def _info(entry: Mapping[str, Any], base: int) -> TensorInfo:
    start, end = entry["data_offsets"]
    shape = entry["shape"]
    if not all(isinstance(value, int) and value >= 0 for value in [start, end, *shape]):
        raise ValueError("a place or a shape is not made of whole numbers")
    info = TensorInfo(entry["dtype"], tuple(shape), base + start, base + end)
    if end - start != info.elements * _TYPES[info.dtype][0]:
        raise ValueError("a tensor's place does not fit its shape")
    return info
