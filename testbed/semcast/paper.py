"""A frame of a rival, played on paper: images in, what each user would see out.

Digital schemes send a file for each user. What a user cannot decode, or what was never small enough to be sent, is
shown as grey (:func:`testbed.semcast.codecs.grey`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from testbed.semcast.belief import Link, link_of
from testbed.semcast.codecs import curve_of, decoded
from testbed.semcast.digital import play_digital
from testbed.semcast.practical import play_practical

if TYPE_CHECKING:
    import torch

__all__ = ["Gain", "OnPaper", "PaperScheme", "play_on_paper"]

Pixels = NDArray[np.uint8]


class PaperScheme(Protocol):
    """What a scheme has to say of itself; the campaign file's schemes do."""

    @property
    def kind(self) -> str:
        """``digital``: an ideal code at capacity; ``practical``: 5G LDPC and QAM."""

    @property
    def codec(self) -> str | None:
        """One of :data:`testbed.semcast.codecs.CODECS`."""

    @property
    def sharing(self) -> str | None:
        """``time_division`` or ``superposition``."""

    @property
    def downscale(self) -> bool:
        """Whether an image may be coded at a half or a quarter of its sides."""

    @property
    def outage(self) -> float:
        """With an estimation error, how likely a gain may be worse than the rate is chosen for."""

    @property
    def rate_for_snr_db(self) -> Sequence[float] | None:
        """The SNRs that the rates are chosen for; None for those that the transmitter believes."""

    @property
    def block_errors(self) -> float:
        """How often a transport block may be lost where the rate is chosen; of ``practical`` only."""


class Gain(NamedTuple):
    """What a user's block is multiplied with.

    Attributes:
        true: The complex gain.
        believed: The estimate of it that both sides have.
    """

    true: complex
    believed: complex


class OnPaper(NamedTuple):
    """What one user has of a frame.

    Attributes:
        pixels: (H, W, 3), the image; None where nothing was received.
        bits: The bits of the file that was sent; 0 where none was small enough.
        offered_bits: The bits that there was room for.
    """

    pixels: Pixels | None
    bits: int
    offered_bits: int


def play_on_paper(
    scheme: PaperScheme,
    images: Pixels,
    snr_db: Sequence[float],
    shares: Sequence[float],
    symbols: int,
    gains: Sequence[Gain],
    generator: torch.Generator,
    *,
    fading: str = "none",
    csi_error: float = 0.0,
) -> tuple[OnPaper, ...]:
    """Return what each user has of a frame.

    Args:
        scheme: The scheme.
        images: (U, H, W, 3), one image a user.
        snr_db: The users' mean SNRs.
        shares: The users' shares of the symbols or of the power; they sum to 1.
        symbols: The complex symbols of the frame.
        gains: One a user.
        generator: Where noise comes from.
        fading: How gains are drawn: one of :data:`payloads.semcast.channels.FADINGS`.
        csi_error: The variance of the error of the gains' estimates.

    Raises:
        InputError: A practical scheme, and the library that codes is not installed.
        ValueError: The scheme, the shares or their numbers are wrong.
    """
    if scheme.codec is None or scheme.sharing is None:
        raise ValueError(f"a {scheme.kind} scheme has a codec and a sharing")
    links = [
        link_of(snr, gain.true, gain.believed, csi_error, fading=fading != "none")
        for snr, gain in zip(snr_db, gains, strict=True)
    ]
    counted_on_db = _counted_on(scheme, links)
    curves = [curve_of(scheme.codec, pixels, downscale=scheme.downscale) for pixels in images]
    if scheme.kind == "digital":
        deliveries = play_digital(
            curves, links, counted_on_db, sharing=scheme.sharing, shares=shares, symbols=symbols
        )
    elif scheme.kind == "practical":
        deliveries = play_practical(
            scheme.codec,
            curves,
            links,
            counted_on_db,
            sharing=scheme.sharing,
            shares=shares,
            symbols=symbols,
            block_errors=scheme.block_errors,
            generator=generator,
        )
    else:
        raise ValueError(f"digital or practical was expected, not {scheme.kind!r}")
    height, width = images.shape[1:3]
    return tuple(
        OnPaper(
            pixels=_image(one.data, height, width),
            bits=one.sent.bits if one.sent else 0,
            offered_bits=one.offered_bits,
        )
        for one in deliveries
    )


def _image(data: bytes | None, height: int, width: int) -> Pixels | None:
    """Return what a user sees of a file; None where it has none, or where a checksum held by chance and it is none."""
    try:
        return None if data is None else decoded(data, height, width)
    except OSError:
        return None


def _counted_on(scheme: PaperScheme, links: Sequence[Link]) -> list[float]:
    if scheme.rate_for_snr_db is not None:
        if len(scheme.rate_for_snr_db) != len(links):
            raise ValueError(f"one SNR a user was expected: {len(links)}, not {len(scheme.rate_for_snr_db)}")
        return list(scheme.rate_for_snr_db)
    if scheme.kind == "practical":
        return [link.reliable_equalised_snr_db(scheme.outage) for link in links]
    return [link.reliable_snr_db(scheme.outage) for link in links]
