"""A practical digital broadcast: a file for each user, coded and modulated as 5G NR does it, at an adaptive rate.

Time division gives each user its own symbols. Superposition adds the users' symbols with parts of the power; a
receiver decodes the layers of the users that count as weaker, the weakest first, takes the others for noise, and
subtracts what it decoded (hard decisions: where a checksum fails it has lost its own layer too). Files are really
coded, sent through the channel, and decoded; nothing is drawn from a table. The transmitter chooses for each layer the
scheme with the largest payload that is lost rarely enough at the SNR it counts on (:mod:`testbed.semcast.mcs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from testbed.semcast.belief import Link
from testbed.semcast.capacity import SHARINGS, split_symbols, strongest_first
from testbed.semcast.codecs import Attempt, Curve, without_padding
from testbed.semcast.digital import Delivery
from testbed.semcast.link_level import Code, best_mcs, code_of

if TYPE_CHECKING:
    import torch

__all__ = ["play_practical"]

Symbols = NDArray[np.complex64]


class _Layer(NamedTuple):
    """What is sent to one user.

    Attributes:
        user: The user.
        power: Its part of the power in its symbols.
        code: How it is coded.
        file: What it holds.
        symbols: (1, n), the symbols, of mean power 1.
    """

    user: int
    power: float
    code: Code
    file: Attempt
    symbols: Symbols


def play_practical(
    codec: str,
    curves: Sequence[Curve],
    links: Sequence[Link],
    counted_on_db: Sequence[float],
    *,
    sharing: str,
    shares: Sequence[float],
    symbols: int,
    block_errors: float,
    generator: torch.Generator,
) -> tuple[Delivery, ...]:
    """Return what each user receives of a block.

    Args:
        codec: The codec's name, one of :data:`testbed.semcast.codecs.CODECS`.
        curves: What it makes of each user's image.
        links: The users' channels.
        counted_on_db: The SNRs that the transmitter counts on.
        sharing: One of :data:`testbed.semcast.capacity.SHARINGS`.
        shares: The users' shares.
        symbols: The complex symbols of the block.
        block_errors: How often a transport block may be lost at the SNR that is counted on.
        generator: Where the noise comes from: as many numbers for every user, whatever is sent.

    Raises:
        InputError: The library that codes is not installed.
        ValueError: There is no such sharing.
    """
    noises = [_noise(symbols, link, generator) for link in links]
    if sharing == "time_division":
        found, start = [], 0
        for user, count in enumerate(split_symbols(symbols, shares)):
            layer, offered = _layer(user, curves[user], 1.0, counted_on_db[user], count, block_errors)
            noise = noises[user][:, start : start + count]
            found.append(
                _delivery(codec, [] if layer is None else [layer], links[user], noise, user, layer, offered)
            )
            start += count
        return tuple(found)
    if sharing != "superposition":
        raise ValueError(f"no sharing is called {sharing!r}; expected one of {', '.join(SHARINGS)}")
    layers: list[_Layer] = []
    offers, above = [0] * len(links), 0.0
    for user in strongest_first(counted_on_db):
        # A layer that is not sent is no noise to the others.
        noise_power = above + 10 ** (-counted_on_db[user] / 10)
        sinr_db = -300.0 if shares[user] <= 0 else float(10 * np.log10(shares[user] / noise_power))
        layer, offers[user] = _layer(user, curves[user], shares[user], sinr_db, symbols, block_errors)
        if layer is not None:
            layers.append(layer)
            above += shares[user]
    of_user = {layer.user: layer for layer in layers}
    return tuple(
        _delivery(codec, layers, link, noises[user], user, of_user.get(user), offers[user])
        for user, link in enumerate(links)
    )


def _layer(
    user: int, curve: Curve, power: float, snr_db: float, symbols: int, block_errors: float
) -> tuple[_Layer | None, int]:
    """Return a user's layer, None where no scheme or no file fits, and the bits that there was room for."""
    mcs = best_mcs(symbols, snr_db, block_errors) if symbols else None
    if mcs is None:
        return None, 0
    code = code_of(mcs, symbols, stream=user)
    file = curve.best(code.size.payload_bits)
    if file is None:
        return None, code.size.payload_bits
    payload = np.zeros((1, code.size.payload_bits), dtype=np.uint8)
    payload[0, : file.bits] = np.unpackbits(np.frombuffer(file.data, dtype=np.uint8))
    return _Layer(user, power, code, file, code.sent(payload)), code.size.payload_bits


def _delivery(
    codec: str,
    layers: Sequence[_Layer],
    link: Link,
    noise: Symbols,
    user: int,
    own: _Layer | None,
    offered: int,
) -> Delivery:
    """Return what a user makes of layers, the strongest user's first, that were sent at once."""
    if own is None or abs(link.expected) ** 2 <= 0:
        return Delivery(offered, own.file if own else None, None)
    sent = np.stack([np.float32(layer.power**0.5) * layer.symbols for layer in layers]).sum(axis=0)
    seen: Symbols = (np.complex64(link.true) * sent + noise) / np.complex64(link.expected)
    # What is left of the gain's error acts on the symbols as noise of its variance does.
    variance = (10 ** (-link.snr_db / 10) + link.variance) / abs(link.expected) ** 2
    for place in range(len(layers) - 1, -1, -1):
        layer = layers[place]
        above = sum(other.power for other in layers[:place])
        payloads, whole = layer.code.received(
            seen / np.float32(layer.power**0.5), (above + variance) / layer.power
        )
        if layer.user == user:
            data = _file(codec, payloads[0]) if whole[0] else None
            return Delivery(offered, own.file, data)
        if not whole[0]:
            break
        seen = seen - np.float32(layer.power**0.5) * layer.code.sent(payloads)
    return Delivery(offered, own.file, None)


def _file(codec: str, payload: NDArray[np.uint8]) -> bytes | None:
    """Return the file in a payload; None where a checksum held by chance and there is none."""
    try:
        return without_padding(codec, np.packbits(payload).tobytes())
    except ValueError:
        return None


def _noise(symbols: int, link: Link, generator: torch.Generator) -> Symbols:
    import torch

    pairs = torch.randn((1, symbols, 2), generator=generator).numpy()
    deviation = np.float32((10 ** (-link.snr_db / 10) / 2) ** 0.5)
    noise: Symbols = (deviation * (pairs[..., 0] + 1j * pairs[..., 1])).astype(np.complex64)
    return noise
