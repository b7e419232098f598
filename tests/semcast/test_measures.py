"""PSNR, SSIM and MS-SSIM against what they are by definition."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from testbed.semcast.measures import HIGHEST_PSNR_DB, ms_ssim, ms_ssim_window, psnr_db, ssim
from tests.semcast.pictures import picture


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are slower on several threads, above all where several tests run at once."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def flat(value: int, side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), value, dtype=np.uint8)


@given(first=st.integers(0, 255), second=st.integers(0, 255))
def test_psnr_of_even_images_is_the_closed_form(first: int, second: int) -> None:
    found = psnr_db(flat(first), flat(second))
    assert found == psnr_db(flat(second), flat(first))
    if first == second:
        assert found == HIGHEST_PSNR_DB
    else:
        assert found == pytest.approx(20 * math.log10(255 / abs(first - second)))


def test_one_value_of_a_large_image_does_not_pass_the_highest() -> None:
    image = np.zeros((512, 512, 3), dtype=np.uint8)
    other = image.copy()
    other[0, 0, 0] = 1
    assert psnr_db(image, other) == HIGHEST_PSNR_DB


@pytest.mark.parametrize(("first", "second"), [(10, 200), (100, 110)])
def test_ssim_of_even_images_is_the_closed_form(first: int, second: int) -> None:
    constant = (0.01 * 255) ** 2
    expected = (2 * first * second + constant) / (first**2 + second**2 + constant)
    assert ssim(flat(first), flat(second)) == pytest.approx(expected, abs=1e-4)


def test_an_image_is_most_like_itself_and_less_so_the_noisier() -> None:
    image = picture(128)
    assert ssim(image, image) == pytest.approx(1)
    assert ms_ssim(image, image) == pytest.approx(1)
    noise = np.random.default_rng(0).normal(size=image.shape)
    noisy = [np.clip(image + deviation * noise, 0, 255).astype(np.uint8) for deviation in (5, 15, 45)]
    for measure in (psnr_db, ssim, ms_ssim):
        values = [measure(image, other) for other in noisy]
        assert values == sorted(values, reverse=True)


def test_small_images_have_ssim_and_no_ms_ssim() -> None:
    image = picture(32)
    assert ssim(image, image) == pytest.approx(1)
    assert ms_ssim(image, image) is None


@given(side=st.integers(1, 400))
def test_the_window_fits_the_smallest_scale(side: int) -> None:
    window = ms_ssim_window(side)
    if window is None:
        assert side <= 64
    else:
        assert window % 2 == 1
        assert 5 <= window <= 11
        assert side > 16 * (window - 1)
        assert window == 11 or side <= 16 * (window + 1)


@pytest.mark.parametrize("measure", [psnr_db, ssim, ms_ssim])
def test_what_cannot_be_compared_is_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match="cannot be compared"):
        measure(flat(0), flat(0, side=17))
    with pytest.raises(ValueError, match="8-bit"):
        measure(flat(0).astype(float), flat(0).astype(float))


def test_ssim_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(flat(0, side=10), flat(0, side=10))
