"""Who gets which image, and what every scheme of a campaign sends alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloads.semcast.spec import spec_of
from testbed.config.broadcast import ImageSet
from testbed.config.workloads import load_any_campaign
from testbed.errors import InputError
from testbed.semcast.blocks import blocks_of, broadcast_spec, shown_blocks
from testbed.semcast.pairs import image_of, pairs_of, sets_of
from tests.semcast.campaign_files import write_campaign


@given(st.integers(2, 8), st.integers(2, 60), st.data())
def test_the_images_of_a_pair_differ_and_no_two_pairs_are_alike(
    users: int, images: int, data: st.DataObject
) -> None:
    images = max(users, images)
    pairs = data.draw(st.integers(1, images))
    chosen = [tuple(image_of(pair, user, users, images) for user in range(users)) for pair in range(pairs)]
    assert all(len(set(row)) == users for row in chosen)
    assert all(len(set(column)) == pairs for column in zip(*chosen, strict=True))
    assert all(0 <= number < images for row in chosen for number in row)


@pytest.mark.parametrize("count", [1, 5, 7, 8, 11, 12, 24])
def test_pairs_of_a_shipped_set_are_of_different_pictures(count: int) -> None:
    pairs = pairs_of(ImageSet(set="natural-128", pairs=count), 2)
    assert pairs.pixels.shape == (count, 2, 128, 128, 3)
    for first, second in pairs.names:
        assert first.partition("-")[2] != second.partition("-")[2]
    assert pairs.name(0) == " + ".join(pairs.names[0])
    again = pairs_of(ImageSet(set="natural-128", pairs=count), 2)
    assert again.digest == pairs.digest


def test_more_pairs_than_images_are_refused() -> None:
    with pytest.raises(
        InputError, match="natural-128: 25 pairs for 2 users were asked for, and the set has 24"
    ):
        pairs_of(ImageSet(set="natural-128", pairs=25), 2)


def test_the_transmitter_reads_the_specification_and_blocks_are_in_order(tmp_path: Path) -> None:
    campaign = load_any_campaign(write_campaign(tmp_path))
    sets = sets_of(campaign.images, 2)
    blocks = blocks_of(campaign, sets)
    assert [(b["slots"], b["shares"][0], b["pair"]) for b in blocks[:5]] == [
        (64, 0.2, 0),
        (64, 0.2, 1),
        (64, 0.5, 0),
        (64, 0.5, 1),
        (32, 0.2, 0),
    ]
    spec = spec_of(broadcast_spec(campaign, "run-1", "/run", [], sets), tmp_path)
    assert len(spec.blocks) == len(blocks) == 8
    assert spec.schemes == {"fusion": ("fused",), "TD": ("divided",)}
    assert spec.sets["natural-32"].image_bytes == sets["natural-32"].pixels[0, 0].nbytes
    # Shown is the first pair of each ratio where the share is even.
    assert shown_blocks(blocks) == {2, 6}


def test_a_set_that_differs_has_another_digest(tmp_path: Path) -> None:
    pairs = pairs_of(ImageSet(set="natural-32", pairs=1), 2)
    changed = np.array(pairs.pixels)
    changed[0, 0, 0, 0, 0] ^= 1
    assert type(pairs)(pairs.set, pairs.names, changed).digest != pairs.digest
