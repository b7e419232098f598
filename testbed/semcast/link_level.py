"""Transport blocks of 5G NR, really coded and decoded: CRC, segmentation, LDPC, rate matching, scrambling, QAM.

The chain is sionna-no-rt's (Apache-2.0; extra ``link-level``), on the CPU, with 20 iterations of belief propagation. A
block takes exactly the symbols it is given. Its payload is the largest transport block size of TS 38.214 that keeps,
checksums included, to the code rate of the scheme, so that short blocks pay for their checksums too.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from testbed.errors import InputError
from testbed.semcast.mcs import MCS_TABLE, Mcs, limit_db, threshold_db

__all__ = ["BlockSize", "Code", "best_mcs", "block_errors", "block_size", "code_of"]

Bits = NDArray[np.uint8]
Symbols = NDArray[np.complex64]

_ITERATIONS = 20
#: The smallest transport block.
_LEAST_PAYLOAD = 24
_DEVICE = "cpu"
#: From this rate downwards TS 38.212 takes base graph 2, whose blocks are shorter.
_LOW_RATE = 0.25
#: The library has no repetition for base graph 1, which longer blocks would take: below 1/3 they are cut as at 1/4.
_LEAST_RATE_OF_LONG, _LONGEST_SHORT = 1 / 3, 3824
_KEPT_SIZES, _KEPT_CODES = 4096, 256


class BlockSize(NamedTuple):
    """How a payload fills symbols.

    Attributes:
        payload_bits: What the user has of it.
        code_blocks: How many code blocks it is cut into.
        code_block_bits: The size of each, with all checksums.
        coded_bits: What is sent, without repetitions.
    """

    payload_bits: int
    code_blocks: int
    code_block_bits: int
    coded_bits: int


def _library() -> ModuleType:
    try:
        import sionna.phy.nr as library
    except ImportError as error:
        raise InputError(
            f"the practical scheme codes with sionna-no-rt, which cannot be imported: {error}",
            hint="in testbed's folder: pip install -c constraints.txt -e '.[link-level]'",
        ) from error
    return library  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=_KEPT_SIZES)
def block_size(mcs: Mcs, symbols: int) -> BlockSize | None:
    """Return how large a transport block is that fills so many symbols; None where they are too few.

    Raises:
        InputError: The library is not installed.
    """
    coded = symbols // mcs.repeats * mcs.bits
    room = int(coded * mcs.code_rate)
    target = 8 * (room // 8)
    while target >= _LEAST_PAYLOAD:
        size = _quantised(mcs, target, coded)
        over = size.code_blocks * size.code_block_bits - room
        # The sizes that there are stay what they are; a wish between two becomes one of them.
        if over <= 0 and _quantised(mcs, size.payload_bits, coded) == size:
            return size
        target = min(target - 8, 8 * ((target - over) // 8))
    return None


def _quantised(mcs: Mcs, payload_bits: int, coded: int) -> BlockSize:
    """Return the size that the standard has near a wanted one."""
    size, block, blocks, *_ = _library().utils.calculate_tb_size(
        modulation_order=mcs.bits,
        target_coderate=_segmenting_rate(mcs, payload_bits),
        target_tb_size=payload_bits,
        num_coded_bits=coded,
        return_cw_length=False,
        device=_DEVICE,
    )
    return BlockSize(int(size), int(blocks), int(block), coded)


def _segmenting_rate(mcs: Mcs, payload_bits: int) -> float:
    if payload_bits > _LONGEST_SHORT and mcs.code_rate < _LEAST_RATE_OF_LONG:
        return _LOW_RATE
    return mcs.code_rate


@dataclass(frozen=True, eq=False)
class Code:
    """A transport block's code and modulation.

    Attributes:
        mcs: The scheme.
        symbols: How many symbols the block takes: n.
        size: The sizes.
        encoder: The library's encoder.
        decoder: The library's decoder.
        mapper: Its mapper to symbols.
        demapper: Its demapper, to log-likelihood ratios.
    """

    mcs: Mcs
    symbols: int
    size: BlockSize
    encoder: Any
    decoder: Any
    mapper: Any
    demapper: Any

    def sent(self, payloads: Bits) -> Symbols:
        """Return the symbols (blocks, n) of payloads (blocks, payload bits), with a mean power of about 1.

        What is left where n is no multiple of the repetitions is zero.
        """
        import torch

        with torch.no_grad():
            coded = self.encoder(torch.from_numpy(payloads.astype(np.float32)))
            once: Symbols = self.mapper(coded).numpy()
        symbols = np.zeros((len(once), self.symbols), dtype=np.complex64)
        symbols[:, : once.shape[1] * self.mcs.repeats] = np.tile(once, self.mcs.repeats)
        return symbols

    def received(self, symbols: Symbols, noise_variance: float) -> tuple[Bits, NDArray[np.bool_]]:
        """Return the payloads (blocks, payload bits) and whether the checksum of each holds.

        Args:
            symbols: (blocks, n), equalised.
            noise_variance: The variance of the complex noise in them.
        """
        import torch

        repeats, once = self.mcs.repeats, self.size.coded_bits // self.mcs.bits
        copies = symbols[:, : once * repeats].reshape(len(symbols), repeats, once)
        with torch.no_grad():
            seen = torch.from_numpy(np.ascontiguousarray(copies.mean(axis=1), dtype=np.complex64))
            ratios = self.demapper(seen, torch.tensor(noise_variance / repeats, dtype=torch.float32))
            payloads, whole = self.decoder(ratios)
        return payloads.numpy().astype(np.uint8), whole.numpy().reshape(-1)


@functools.lru_cache(maxsize=_KEPT_CODES)
def code_of(mcs: Mcs, symbols: int, stream: int = 0) -> Code:
    """Return the code of a scheme that fills so many symbols.

    Args:
        mcs: The scheme.
        symbols: How many complex symbols the block takes.
        stream: Streams that are sent at once are scrambled differently.

    Raises:
        ValueError: So few symbols hold nothing.
        InputError: The library is not installed.
    """
    size = block_size(mcs, symbols)
    if size is None:
        raise ValueError(f"{symbols} symbols are too few for scheme {mcs.number}")
    library = _library()
    from sionna.phy.mapping import Demapper, Mapper

    encoder = library.TBEncoder(
        target_tb_size=size.payload_bits,
        num_coded_bits=size.coded_bits,
        target_coderate=_segmenting_rate(mcs, size.payload_bits),
        num_bits_per_symbol=mcs.bits,
        n_rnti=stream + 1,
        channel_type="PDSCH",
        device=_DEVICE,
    )
    return Code(
        mcs,
        symbols,
        size,
        encoder,
        library.TBDecoder(encoder, num_bp_iter=_ITERATIONS, device=_DEVICE),
        Mapper("qam", mcs.bits, device=_DEVICE),
        Demapper("app", "qam", mcs.bits, device=_DEVICE),
    )


def best_mcs(symbols: int, snr_db: float, error_rate: float) -> Mcs | None:
    """Return the scheme of the largest payload that is lost with at most this probability; None where there is none."""
    best, most = None, 0
    for mcs in sorted(MCS_TABLE, key=lambda one: one.efficiency, reverse=True):
        if symbols * mcs.efficiency <= most:
            break
        if limit_db(mcs.efficiency) > snr_db:
            continue  # no code could, so that the sizes need not be known
        size = block_size(mcs, symbols)
        if size is None or size.payload_bits <= most:
            continue
        needed_db = threshold_db(mcs, size.code_block_bits, size.code_blocks, size.coded_bits, error_rate)
        if needed_db <= snr_db:
            best, most = mcs, size.payload_bits
    return best


def block_errors(code: Code, snr_db: float, blocks: int, rng: np.random.Generator) -> int:
    """Return how many of so many random transport blocks are lost over white Gaussian noise.

    A block is lost whose checksum fails, or whose payload is another one although the checksum holds.
    """
    payloads = rng.integers(0, 2, (blocks, code.size.payload_bits), dtype=np.uint8)
    symbols = code.sent(payloads)
    variance = 10 ** (-snr_db / 10)
    noise = rng.standard_normal((*symbols.shape, 2), dtype=np.float32) @ np.array([1, 1j], dtype=np.complex64)
    decoded, whole = code.received(symbols + (variance / 2) ** 0.5 * noise, variance)
    return int((~whole | (decoded != payloads).any(axis=1)).sum())
