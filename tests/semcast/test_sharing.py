from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.semcast.sharing import joint_slots, owned_slots

#: Deviations that fall as those of pictures do.
DEVIATION = 3.0 * torch.arange(1, 193).double() ** -0.9


def least_error(power: float, noise: float, room: int) -> float:
    """What a linear code leaves, its power poured over up to ``room`` components one little bit after the other."""
    variance = DEVIATION[:room].square()
    low, high = 1e-12, 1e12
    for _ in range(200):
        level = math.sqrt(low * high)
        poured = (DEVIATION[:room] * math.sqrt(noise / level) - noise).clamp_min(0)
        low, high = (low, level) if float(poured.sum()) < power else (level, high)
    sent = (variance * noise / (noise + poured)).sum() + DEVIATION[room:].square().sum()
    return float(sent)


def worth(owned: tuple[int, int], snr_db: tuple[float, float], share: float, slots: int) -> float:
    """The users' log errors, weighted by their shares."""
    total = 0.0
    for room, snr, part in zip(owned, snr_db, (share, 1 - share), strict=True):
        total += part * math.log(least_error(part * slots / 2, 10 ** (-snr / 10) / 2, room))
    return total


@pytest.mark.parametrize("snr_db", [(10.0, 1.0), (15.0, 5.0), (10.0, 10.0), (20.0, -4.0), (-6.0, 3.0)])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_no_other_way_to_share_the_slots_is_better(snr_db: tuple[float, float], share: float) -> None:
    slots = 32
    owned = joint_slots(torch.tensor([[share, 1 - share]]), torch.tensor([snr_db]), slots, DEVIATION)[0]
    first, second = int(owned[0]), int(owned[1])
    assert first + second == slots
    best = min(worth((m, slots - m), snr_db, share, slots) for m in range(2, slots - 1, 2))
    assert worth((first, second), snr_db, share, slots) == pytest.approx(best, abs=1e-3)


def test_between_equal_links_it_is_time_division() -> None:
    for share in (0.2, 0.35, 0.5, 0.65, 0.8):
        shares = torch.tensor([[share, 1 - share]])
        joint = joint_slots(shares, torch.tensor([[10.0, 10.0]]), 64, DEVIATION)
        assert torch.all((joint - owned_slots(shares, 64)).abs() <= 2)


def test_the_stronger_link_gets_slots_that_the_weaker_has_no_power_for() -> None:
    shares = torch.tensor([[0.5, 0.5]] * 3)
    snr_db = torch.tensor([[10.0, 10.0], [10.0, 1.0], [20.0, -4.0]])
    first = joint_slots(shares, snr_db, 64, DEVIATION)[:, 0]
    assert first.tolist() == sorted(first.tolist())
    assert first[0] == 32
    assert first[2] > 50


@settings(max_examples=60)
@given(
    weights=st.lists(st.floats(0.01, 1), min_size=2, max_size=5),
    half=st.integers(5, 40),
    data=st.data(),
)
def test_slots_are_shared_out_whole(weights: list[float], half: int, data: st.DataObject) -> None:
    users = len(weights)
    snr_db = data.draw(st.lists(st.floats(-20, 30), min_size=users, max_size=users))
    shares = torch.tensor([[weight / sum(weights) for weight in weights]])
    alone = owned_slots(shares, 2 * half)[0]
    joint = joint_slots(shares, torch.tensor([snr_db]), 2 * half, DEVIATION)[0]
    for owned in (alone, joint):
        assert owned.sum() == 2 * half
        assert torch.all(owned >= 2)
        assert torch.all(owned % 2 == 0)
    # Under time division nobody is off by more than a symbol and what lifting others to one takes.
    assert torch.all((alone - 2 * half * shares[0]).abs() <= 2 * users)


def test_a_frame_of_a_batch_is_shared_out_as_if_alone() -> None:
    draw = torch.Generator().manual_seed(1)
    shares = torch.rand(16, 3, generator=draw) + 0.1
    shares = shares / shares.sum(dim=1, keepdim=True)
    snr_db = 30 * torch.rand(16, 3, generator=draw) - 5
    together = joint_slots(shares, snr_db, 64, DEVIATION)
    alone = [joint_slots(shares[row : row + 1], snr_db[row : row + 1], 64, DEVIATION) for row in range(16)]
    assert torch.equal(together, torch.cat(alone))
