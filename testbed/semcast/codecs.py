"""Image codecs as rivals: what JPEG 2000, WebP and AVIF make of an image within so many bits, headers included.

Every byte that a receiver needs counts. What it does not need is not sent: the comment that OpenJPEG leaves in a code
stream is taken out, and JPEG 2000 comes without a file format around it. A file says itself where it ends
(:func:`without_padding`), so no length is sent beside it.

A codec may also be given the image at a half or a quarter of its side, which the receiver scales up again. That is how
a digital link with few bits would be used, and it reaches rates that no setting does at full size.

What is made of an image is kept for the life of the process: many budgets ask for the same image.
"""

from __future__ import annotations

import bisect
import functools
import io
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from testbed.semcast.measures import psnr_db

__all__ = ["CODECS", "GREY", "Attempt", "Curve", "curve_of", "decoded", "grey", "without_padding"]

Pixels = NDArray[np.uint8]

#: What a receiver shows that has nothing: about the mean of photographs, the same in all colours.
GREY = 118

#: The parts of an image's side that are tried, and the smallest side that is.
_SCALES, _LEAST_SIDE = (1, 2, 4), 8

_KEPT_CURVES = 256


@dataclass(frozen=True)
class Attempt:
    """An image as a file.

    Attributes:
        data: The file.
        psnr_db: How near to the image it comes.
    """

    data: bytes
    psnr_db: float

    @property
    def bits(self) -> int:
        """The file's length in bits."""
        return 8 * len(self.data)


@dataclass(frozen=True)
class Curve:
    """What a codec makes of one image: only files that are better than every smaller one, the smallest first.

    Attributes:
        attempts: The files.
    """

    attempts: tuple[Attempt, ...]

    def best(self, bits: float) -> Attempt | None:
        """Return the file of the best PSNR within so many bits; None where even the smallest is too large."""
        place = bisect.bisect_right(self.attempts, bits, key=lambda attempt: attempt.bits)
        return self.attempts[place - 1] if place else None


def grey(height: int, width: int) -> Pixels:
    """Return the image (height, width, 3) that a receiver shows that has nothing."""
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def curve_of(codec: str, pixels: Pixels, *, downscale: bool = True) -> Curve:
    """Return what a codec makes of an image (H, W, 3).

    Args:
        codec: One of :data:`CODECS`.
        pixels: The image.
        downscale: Whether it is also tried at a half and at a quarter of its sides.

    Raises:
        ValueError: There is no such codec.
    """
    if codec not in CODECS:
        raise ValueError(f"no codec is called {codec!r}; expected one of {', '.join(CODECS)}")
    height, width, _ = pixels.shape
    return _curve(codec, pixels.tobytes(), height, width, downscale)


def decoded(data: bytes, height: int, width: int) -> Pixels:
    """Return the image (height, width, 3) of a file, scaled up where it was coded smaller.

    Raises:
        OSError: It is no whole file of an image.
    """
    with Image.open(io.BytesIO(data)) as image:
        colours = image.convert("RGB")
    if colours.size != (width, height):
        colours = colours.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(colours)


def without_padding(codec: str, data: bytes) -> bytes:
    """Return a file without the zeros that fill a block behind it, as a receiver finds its end.

    Args:
        codec: One of :data:`CODECS`.
        data: The file, and zeros behind it or nothing.

    Raises:
        ValueError: It does not look like a file of this codec.
    """
    end = _ENDS[codec](data)
    if not 0 < end <= len(data) or any(data[end:]):
        raise ValueError(f"this is no {codec} file with zeros behind it")
    return data[:end]


@functools.lru_cache(maxsize=_KEPT_CURVES)
def _curve(codec: str, raw: bytes, height: int, width: int, downscale: bool) -> Curve:
    pixels = np.frombuffer(raw, dtype=np.uint8).reshape(height, width, 3)
    files: list[Attempt] = []
    for scale in _SCALES if downscale else (1,):
        size = (-(-width // scale), -(-height // scale))
        if scale > 1 and min(size) < _LEAST_SIDE:
            break
        image = Image.fromarray(pixels)
        if scale > 1:
            image = image.resize(size, Image.Resampling.LANCZOS)
        for data in CODECS[codec](image, scale == 1):
            files.append(Attempt(data, psnr_db(pixels, decoded(data, height, width))))
    front: list[Attempt] = []
    for attempt in sorted(files, key=lambda one: (one.bits, -one.psnr_db)):
        if not front or attempt.psnr_db > front[-1].psnr_db:
            front.append(attempt)
    return Curve(tuple(front))


def _saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **settings)
    return file.getvalue()


def _jpeg2000(image: Image.Image, fine: bool) -> Iterator[bytes]:
    # Irreversible wavelets by compression ratio, in fine steps of a fifteenth. A ratio too high for a number of
    # resolutions leaves nothing but headers, which are shorter the fewer resolutions there are.
    levels = [count for count in (1, 2, 3, 4, 5) if min(image.size) >= 2 ** (count + 2)] or [1]
    for resolutions in levels[-2:]:
        for ratio in np.geomspace(5, 500, 72 if fine else 24):
            data = _saved(
                image,
                "JPEG2000",
                no_jp2=True,
                irreversible=True,
                quality_mode="rates",
                quality_layers=[float(ratio)],
                num_resolutions=resolutions,
            )
            yield _without_comments(data)


def _webp(image: Image.Image, fine: bool) -> Iterator[bytes]:
    for quality in range(0, 101, 1 if fine else 3):
        yield _saved(image, "WEBP", quality=quality, method=6)


def _avif(image: Image.Image, fine: bool) -> Iterator[bytes]:
    for quality in range(0, 93, 4 if fine else 8):
        yield _saved(image, "AVIF", quality=quality, speed=4, subsampling="4:4:4", max_threads=1)


CODECS: Mapping[str, Callable[[Image.Image, bool], Iterator[bytes]]] = MappingProxyType(
    {"jpeg2000": _jpeg2000, "webp": _webp, "avif": _avif}
)
"""The codecs by name: each yields the files of an image at the settings that are tried, in fine or coarse steps."""

# Markers of a JPEG 2000 code stream (ISO/IEC 15444-1, annex A).
_START, _END, _COMMENT, _TILE = b"\xff\x4f", b"\xff\xd9", b"\xff\x64", b"\xff\x90"


def _without_comments(stream: bytes) -> bytes:
    """Return a JPEG 2000 code stream without the comments in its main header."""
    kept, at = [stream[:2]], 2
    while stream[at : at + 2] != _TILE:
        (length,) = struct.unpack_from(">H", stream, at + 2)
        if stream[at : at + 2] != _COMMENT:
            kept.append(stream[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, stream[at:]])


def _jpeg2000_end(data: bytes) -> int:
    return data.rfind(_END) + len(_END) if data.startswith(_START) else -1


def _webp_end(data: bytes) -> int:
    if data[:4] != b"RIFF" or len(data) < 8:
        return -1
    (length,) = struct.unpack_from("<I", data, 4)
    return 8 + int(length)


def _avif_end(data: bytes) -> int:
    """Return where the last box ends: zeros behind it would be a box of no length."""
    at = 0
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if length < 8:
            break
        at += length
    return at if data[4:8] == b"ftyp" else -1


_ENDS: Mapping[str, Callable[[bytes], int]] = MappingProxyType(
    {"jpeg2000": _jpeg2000_end, "webp": _webp_end, "avif": _avif_end}
)
