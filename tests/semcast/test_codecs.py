"""Codecs within a budget of bits."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from testbed.semcast.codecs import CODECS, GREY, Curve, curve_of, decoded, grey, without_padding
from testbed.semcast.measures import psnr_db
from tests.semcast.pictures import picture

SIDE = 32
IMAGE = picture(SIDE)


@pytest.fixture(scope="module")
def curves() -> dict[str, Curve]:
    return {codec: curve_of(codec, IMAGE) for codec in CODECS}


@pytest.mark.parametrize("codec", CODECS)
def test_a_longer_file_is_a_better_one(curves: dict[str, Curve], codec: str) -> None:
    files = curves[codec].attempts
    assert len(files) > 10
    for shorter, longer in itertools.pairwise(files):
        assert shorter.bits < longer.bits
        assert shorter.psnr_db < longer.psnr_db


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_is_as_good_as_it_says(curves: dict[str, Curve], codec: str) -> None:
    for file in curves[codec].attempts[::5]:
        assert psnr_db(IMAGE, decoded(file.data, SIDE, SIDE)) == file.psnr_db
        assert file.bits == 8 * len(file.data)


@settings(deadline=None)
@given(bits=st.integers(0, 30_000))
def test_the_best_file_fits_and_no_better_one_does(curves: dict[str, Curve], bits: int) -> None:
    for curve in curves.values():
        file = curve.best(bits)
        fitting = [one for one in curve.attempts if one.bits <= bits]
        assert (file is None) == (not fitting)
        if file is not None:
            assert file.psnr_db == max(one.psnr_db for one in fitting)


def test_at_a_part_of_the_size_smaller_files_are_possible(curves: dict[str, Curve]) -> None:
    whole, scaled = curve_of("webp", IMAGE, downscale=False), curves["webp"]
    assert scaled.attempts[0].bits < whole.attempts[0].bits
    assert all(scaled.best(one.bits).psnr_db >= one.psnr_db for one in whole.attempts)  # type: ignore[union-attr]


@settings(deadline=None)
@given(codec=st.sampled_from(sorted(CODECS)), at=st.floats(0, 1), zeros=st.integers(0, 300))
def test_a_file_says_where_it_ends(curves: dict[str, Curve], codec: str, at: float, zeros: int) -> None:
    files = curves[codec].attempts
    data = files[int(at * (len(files) - 1))].data
    assert without_padding(codec, data + bytes(zeros)) == data


@given(codec=st.sampled_from(sorted(CODECS)), data=st.binary(max_size=60))
def test_what_is_no_file_is_refused(codec: str, data: bytes) -> None:
    with pytest.raises(ValueError, match="no "):
        without_padding(codec, data)


def test_a_file_that_was_cut_is_refused(curves: dict[str, Curve]) -> None:
    for codec, curve in curves.items():
        with pytest.raises(ValueError, match="no "):
            without_padding(codec, curve.attempts[-1].data[:-3])


def test_code_streams_carry_no_comment(curves: dict[str, Curve]) -> None:
    plain = io.BytesIO()
    Image.fromarray(IMAGE).save(plain, format="JPEG2000", no_jp2=True)
    assert b"OpenJPEG" in plain.getvalue()
    assert not any(b"OpenJPEG" in file.data for file in curves["jpeg2000"].attempts)


def test_odd_and_tiny_images_are_coded_too() -> None:
    for height, width in ((8, 8), (9, 40)):
        image = np.ascontiguousarray(picture(40)[:height, :width])
        for codec in ("jpeg2000", "webp"):
            best = curve_of(codec, image).attempts[-1]
            assert decoded(best.data, height, width).shape == image.shape


def test_grey_is_what_is_shown_for_nothing() -> None:
    assert grey(2, 3).shape == (2, 3, 3)
    assert set(grey(2, 3).ravel().tolist()) == {GREY}


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="jpeg2000, webp, avif"):
        curve_of("bpg", IMAGE)
