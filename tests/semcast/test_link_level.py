"""5G transport blocks: sizes, schemes, and when they are lost, beside what the library documents."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sionna.phy.nr.utils import decode_mcs_index

from testbed.errors import InputError
from testbed.semcast import link_level
from testbed.semcast.link_level import best_mcs, block_errors, block_size, code_of
from testbed.semcast.mcs import MCS_TABLE, Mcs, threshold_db, waterfall_of, waterfalls

ONCE = [mcs for mcs in MCS_TABLE if mcs.repeats == 1]
BY_NUMBER = {mcs.number: mcs for mcs in ONCE}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, above all where several tests run at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Documented(NamedTuple):
    """A point of the tables that come with the library: so many of the code blocks are lost at this SNR."""

    mcs: Mcs
    code_block_bits: int
    snr_db: float
    error_rate: float


def documented(least_bits: int) -> Iterator[Documented]:
    """Yield the points on a slope for PDSCH (category 1), table 1, whose schemes are ours."""
    text = resources.files("sionna.sys.bler_tables").joinpath("PDSCH_table1.json").read_text()
    for number, rows in json.loads(text)["category"]["1"]["index"]["1"]["MCS"].items():
        for bits, row in rows["CBS"].items():
            for snr_db, error_rate in zip(rows["SNR_db"], row["BLER"], strict=True):
                if int(bits) >= least_bits and 0.02 < error_rate < 0.98:
                    yield Documented(BY_NUMBER[int(number)], int(bits), snr_db, error_rate)


def test_the_schemes_are_those_of_the_standard() -> None:
    assert sorted(BY_NUMBER) == list(range(3, 29))
    for number, mcs in BY_NUMBER.items():
        bits, rate = decode_mcs_index(number, table_index=1, is_pusch=False)
        assert (mcs.bits, mcs.code_rate) == (int(bits), pytest.approx(float(rate)))


def test_measured_thresholds_are_within_half_a_decibel_of_the_documented_ones() -> None:
    points = list(documented(least_bits=500))
    assert len({point.mcs for point in points}) >= 20
    for mcs, bits, snr_db, error_rate in points:
        slope = waterfall_of(mcs, bits, bits / mcs.code_rate)
        assert slope.threshold_db(error_rate) == pytest.approx(snr_db, abs=0.5), (mcs, bits)


def test_lost_blocks_are_fewer_the_higher_the_snr_with_the_documented_threshold() -> None:
    [point] = [one for one in documented(least_bits=500) if one[:2] == (BY_NUMBER[13], 1000)]
    code = code_of(point.mcs, 525)
    assert code.size.code_blocks == 1
    assert code.size.code_block_bits == pytest.approx(1000, rel=0.02)
    blocks, rng = 50, np.random.default_rng(1)
    offsets_db = (-1.0, -0.5, 0.5, 1.0)
    lost = [block_errors(code, point.snr_db + offset, blocks, rng) / blocks for offset in offsets_db]
    assert lost == sorted(lost, reverse=True)
    assert (lost[0], lost[-1]) == (1, 0)
    assert lost[1] > point.error_rate > lost[2]


def test_every_scheme_was_measured_and_its_errors_fall_with_the_snr() -> None:
    assert sorted(waterfalls()) == sorted(BY_NUMBER)
    for slopes in waterfalls().values():
        sizes = [slope.code_block_bits for slope in slopes]
        assert sizes == sorted(set(sizes))
        for slope in slopes:
            assert slope.blocks >= 60
            rates = [slope.error_rate(slope.middle_db + offset) for offset in (-2, -0.1, 0, 0.1, 2)]
            assert rates == sorted(rates, reverse=True)
            assert slope.error_rate(slope.threshold_db(0.01)) == pytest.approx(0.01)


def test_a_faster_scheme_needs_a_higher_snr() -> None:
    for bits in (2, 4, 6):
        of_bits = [mcs for mcs in MCS_TABLE if mcs.bits == bits]
        for slower, faster in itertools.pairwise(of_bits):
            needed = [
                threshold_db(mcs, 2000, 1, round(2000 / mcs.code_rate), 0.01) for mcs in (slower, faster)
            ]
            assert needed[0] < needed[1]


@pytest.mark.parametrize("symbols", [100, 512, 1638, 8192])
def test_a_block_keeps_to_the_rate_of_its_scheme(symbols: int) -> None:
    for mcs in MCS_TABLE:
        size = block_size(mcs, symbols)
        if size is None:
            assert symbols * mcs.efficiency < 48
            continue
        total = size.code_blocks * size.code_block_bits
        assert total <= symbols * mcs.efficiency
        assert total >= 0.85 * symbols * mcs.efficiency - 24
        assert size.payload_bits < total


def test_few_symbols_hold_nothing() -> None:
    assert block_size(ONCE[0], 10) is None
    assert best_mcs(3, 40, 0.01) is None
    with pytest.raises(ValueError, match="too few"):
        code_of(ONCE[0], 10)


@pytest.mark.parametrize("mcs", [MCS_TABLE[0], ONCE[1], ONCE[-1]])
def test_a_payload_comes_back_whole(mcs: Mcs) -> None:
    # At the second scheme's rate a long block is cut, since the library's longer graph does not reach it.
    code = code_of(mcs, 7001)
    payload = np.random.default_rng(0).integers(0, 2, (1, code.size.payload_bits), dtype=np.uint8)
    symbols = code.sent(payload)
    assert symbols.shape == (1, 7001)
    assert np.square(np.abs(symbols)).mean() == pytest.approx(1, abs=0.03)
    back, whole = code.received(symbols, 1e-3)
    assert whole.tolist() == [True]
    assert (back == payload).all()


def test_repetition_is_worth_its_energy() -> None:
    blocks, rng = 20, np.random.default_rng(3)
    four_times = next(mcs for mcs in MCS_TABLE if mcs.repeats == 4)
    limit = threshold_db(ONCE[0], 240, 1, 1024, 0.5)
    for mcs, symbols, snr_db in ((ONCE[0], 512, limit), (four_times, 2048, limit - 6.02)):
        code = code_of(mcs, symbols)
        assert block_errors(code, snr_db + 1.5, blocks, rng) <= 2
        assert block_errors(code, snr_db - 1.5, blocks, rng) >= blocks - 2


def test_the_rate_follows_the_snr() -> None:
    payloads = []
    for snr_db in range(-12, 24, 2):
        mcs = best_mcs(1024, snr_db, 0.01)
        size = mcs and block_size(mcs, 1024)
        payloads.append(size.payload_bits if size else 0)
    assert payloads == sorted(payloads)
    assert payloads[0] == 0
    assert len(set(payloads)) > 12


def test_a_missing_library_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sionna.phy.nr", None)
    with pytest.raises(InputError, match="sionna-no-rt") as raised:
        link_level.block_size.__wrapped__(ONCE[0], 512)
    assert "link-level" in raised.value.hint
    assert raised.value.exit_code == 2
