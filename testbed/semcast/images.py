"""Held-out images: the sets that come with testbed, and data sets in their published formats.

CIFAR-10, STL-10 and CelebA are read from where the user has unpacked them; nothing is fetched. CIFAR-10's Python
batches are pickles, which are never read here: its binary version is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from testbed.errors import InputError

__all__ = ["SHIPPED_SETS", "USERS_SETS", "Images", "held_out", "images_folder"]

Pixels = NDArray[np.uint8]

SHIPPED_SETS = ("natural-128", "natural-32")
"""Sets that come with testbed."""

#: Pictures of a folder of any kind, and CelebA's faces, become squares of this side.
SIDE = 128
_CIFAR_SIDE, _STL_SIDE = 32, 96
_CELEBA_TEST = 2
_KINDS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
#: Pillow's own limit, taken as an error: pictures with more pixels are refused before they are unpacked.
_MOST_PIXELS = 90_000_000


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size.

    Attributes:
        names: What each is called.
        pixels: (N, H, W, 3), uint8; H and W are multiples of 8.
    """

    names: tuple[str, ...]
    pixels: Pixels


def images_folder() -> Path:
    """Return the folder of the shipped sets."""
    import payloads

    return Path(payloads.__path__[0]) / "images"


def held_out(name: str, folder: Path | None = None, *, most: int | None = None) -> Images:
    """Return the held-out images of a set, in a fixed order.

    Args:
        name: ``natural-128`` or ``natural-32``, which come with testbed; or ``cifar-10``, ``stl-10``, ``celeba`` (their
            test images) or ``folder`` (any pictures, their middle squares scaled to 128 x 128).
        folder: Where the user has such a set; None for a shipped one.
        most: How many images are wanted at most, the first ones; None for all.

    Raises:
        InputError: The set is unknown, its folder is missing or was not expected, or a file is not what it should be.
    """
    if name in SHIPPED_SETS:
        if folder is not None:
            raise InputError(f"images: {name} comes with testbed: no folder was expected")
        return _pictures(
            images_folder() / name, most, lambda image: _whole(image, int(name.partition("-")[2]))
        )
    reader = USERS_SETS.get(name)
    if reader is None:
        known = ", ".join([*SHIPPED_SETS, *USERS_SETS])
        raise InputError(f"images: one of {known} was expected, not {name!r}")
    if folder is None:
        raise InputError(f"images: {name} needs the `folder` that you have unpacked it to")
    if not folder.is_dir():
        raise InputError(f"{folder}: no folder is there, and {name} was expected in it")
    return reader(folder, most)


def cifar10(folder: Path, most: int | None = None) -> Images:
    """Return CIFAR-10's test images (32 x 32), of its binary version: a byte of label, then red, green and blue planes.

    Args:
        folder: Where ``test_batch.bin`` lies.
        most: How many are wanted at most.

    Raises:
        InputError: The file is missing or not whole.
    """
    rows = _records(folder / "test_batch.bin", 1 + 3 * _CIFAR_SIDE**2, most)
    planes = rows[:, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    return _numbered("test", np.ascontiguousarray(planes.transpose(0, 2, 3, 1)))


def stl10(folder: Path, most: int | None = None) -> Images:
    """Return STL-10's test images (96 x 96), of its binary files: red, green and blue planes, each column by column.

    Args:
        folder: Where ``test_X.bin`` lies.
        most: How many are wanted at most.

    Raises:
        InputError: The file is missing or not whole.
    """
    planes = _records(folder / "test_X.bin", 3 * _STL_SIDE**2, most).reshape(-1, 3, _STL_SIDE, _STL_SIDE)
    return _numbered("test", np.ascontiguousarray(planes.transpose(0, 3, 2, 1)))


def celeba(folder: Path, most: int | None = None) -> Images:
    """Return the test images of CelebA, the middle squares of its aligned pictures scaled to 128 x 128.

    Args:
        folder: Where ``img_align_celeba/`` and ``list_eval_partition.txt`` lie.
        most: How many are wanted at most.

    Raises:
        InputError: A file is missing or damaged.
    """
    listed = folder / "list_eval_partition.txt"
    try:
        lines = listed.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{listed}: CelebA's list of partitions cannot be read: {error}") from error
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        name, _, part = line.strip().partition(" ")
        if Path(name).name != name or not part.strip().isdecimal():
            raise InputError.at(listed, number, "", "a file name and the number of a partition were expected")
        if int(part) == _CELEBA_TEST:
            names.append(name)
    if not names:
        raise InputError(f"{listed}: no picture of the test partition ({_CELEBA_TEST}) is listed")
    names = names[:most]
    pixels = np.stack([_square(_opened(folder / "img_align_celeba" / name)) for name in names])
    return Images(tuple(names), pixels)


def pictures(folder: Path, most: int | None = None) -> Images:
    """Return the pictures in a folder, in the order of their names: the middle square of each, scaled to 128 x 128.

    Args:
        folder: Where they lie; folders below are not looked into.
        most: How many are wanted at most.

    Raises:
        InputError: There is none, or one cannot be read.
    """
    return _pictures(folder, most, _square)


USERS_SETS: Mapping[str, Callable[[Path, int | None], Images]] = MappingProxyType(
    {"cifar-10": cifar10, "stl-10": stl10, "celeba": celeba, "folder": pictures}
)
"""Readers of the sets that a user brings."""


def _pictures(folder: Path, most: int | None, cut: Callable[[Image.Image], Pixels]) -> Images:
    paths = _sorted(path for path in folder.iterdir() if path.suffix.lower() in _KINDS and path.is_file())
    if not paths:
        raise InputError(f"{folder}: no picture is there ({', '.join(sorted(_KINDS))} were looked for)")
    chosen = paths[:most]
    return Images(tuple(path.name for path in chosen), np.stack([cut(_opened(path)) for path in chosen]))


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.name)


def _numbered(kind: str, pixels: Pixels) -> Images:
    return Images(tuple(f"{kind}-{number:05d}" for number in range(len(pixels))), pixels)


def _records(path: Path, size: int, most: int | None) -> Pixels:
    """Return a file's bytes as rows of ``size``."""
    try:
        length = path.stat().st_size
        if not length or length % size:
            raise InputError(f"{path}: {length} bytes are no whole number of images of {size} bytes")
        rows = length // size if most is None else min(most, length // size)
        data = np.fromfile(path, dtype=np.uint8, count=rows * size)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}", hint="is the data set unpacked there?"
        ) from error
    return data.reshape(-1, size)


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise InputError(f"{path}: {image.width} x {image.height} pixels are too many")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as a picture: {error}") from error


def _whole(image: Image.Image, side: int) -> Pixels:
    assert image.size == (side, side)
    return np.asarray(image)


def _square(image: Image.Image) -> Pixels:
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
