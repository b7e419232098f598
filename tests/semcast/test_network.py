from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.semcast.blocks import Windows
from payloads.semcast.channels import draw_gains, receive
from payloads.semcast.klt import fit_klt, from_patches, to_patches
from payloads.semcast.network import Broadcast
from payloads.semcast.seeds import generator
from payloads.semcast.settings import SCHEMES, Conditions
from payloads.semcast.sharing import joint_slots, owned_slots
from payloads.semcast.slots import as_slots, as_symbols, to_components, to_slots
from testbed.semcast.images import held_out
from tests.semcast.networks import conditions, network, scenes, stirred

SHARES = {2: (0.35, 0.65), 3: (0.3, 0.3, 0.4)}
SNR_DB = {2: (10.0, 1.0), 3: (10.0, 4.0, 1.0)}


def decoded(one: Broadcast, images: torch.Tensor, under: Conditions) -> list[torch.Tensor]:
    grid = (images.shape[3] // 8, images.shape[4] // 8)
    with torch.no_grad():
        frame = one.encode(images, under)
        answers = []
        for user in range(images.shape[1]):
            draw = generator(1, "noise", user)
            gains = draw_gains(len(images), "none", 0.0, draw)
            symbols = receive(frame.symbols, under.snr_db[:, user], gains, draw).symbols
            answers.append(one.decode(symbols, frame.scale, user, under, grid))
    return answers


def psnr_db(answer: torch.Tensor, image: torch.Tensor) -> float:
    return float(-10 * (answer - image).square().mean().log10())


@pytest.mark.parametrize("slots", [64, 32])
@pytest.mark.parametrize("users", [2, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_frame_has_as_many_symbols_as_asked_and_mean_power_one(scheme: str, users: int, slots: int) -> None:
    images = scenes(3, users, 24)
    images[1] = 0.25  # nothing to send but the mean
    one = stirred(scheme=scheme, users=users)
    with torch.no_grad():
        frame = one.encode(images, conditions(3, SNR_DB[users], SHARES[users], slots))
    assert frame.symbols.shape == (3, slots // 2 * 9, 2)
    assert frame.scale.shape == (3, users)
    power = frame.symbols.double().square().sum(dim=2).mean(dim=1)
    assert (power - 1).abs().max() < 1e-6
    # A bandwidth ratio of 1/6 and 1/12: complex symbols for each value of an image.
    assert frame.symbols.shape[1] / (3 * 24 * 24) == pytest.approx({64: 1 / 6, 32: 1 / 12}[slots])


@pytest.mark.parametrize(("users", "slots"), [(2, 32), (2, 24), (3, 48), (3, 24)])
def test_fusion_starts_as_time_division_between_equal_links(users: int, slots: int) -> None:
    images = scenes(4, users, 32)
    fusion, alone = network(users=users), network(users=users, scheme="time_division")
    under = conditions(4, (3.0,) * users, tuple([1 / users] * users), slots)
    assert torch.equal(fusion._owned(under), alone._owned(under))
    with torch.no_grad():
        sent = [one.encode(images, under).symbols for one in (fusion, alone)]
    assert torch.allclose(*sent, atol=1e-6)
    for mine, other in zip(decoded(fusion, images, under), decoded(alone, images, under), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


@pytest.mark.parametrize(("snr_db", "gain_db"), [((10.0, 10.0), -0.1), ((15.0, 5.0), 0.2)])
def test_fusion_starts_nowhere_inside_the_region_of_time_division(
    snr_db: tuple[float, float], gain_db: float
) -> None:
    images = torch.from_numpy(held_out("natural-32").pixels).permute(0, 3, 1, 2).float() / 255
    natural = fit_klt(to_patches(images).permute(0, 2, 3, 1).reshape(-1, 192))
    pairs = torch.stack([images, images.roll(24, dims=0)], dim=1)

    def point(one: Broadcast, share: float) -> tuple[float, float]:
        answers = decoded(one, pairs, conditions(48, snr_db, (share, 1 - share)))
        return psnr_db(answers[0], pairs[:, 0]), psnr_db(answers[1], pairs[:, 1])

    fusion, alone = network(natural), network(natural, scheme="time_division")
    region = torch.tensor([point(alone, share / 16) for share in range(1, 16)])
    for share in (0.35, 0.5, 0.65):
        first, second = point(fusion, share)
        # The region's edge between the points that were swept, in its middle a straight line.
        after = int((region[:, 0] >= first).int().argmax())
        part = (first - region[after - 1, 0]) / (region[after, 0] - region[after - 1, 0])
        edge = torch.lerp(region[after - 1, 1], region[after, 1], part)
        assert second > float(edge) + gain_db


@pytest.mark.parametrize("snr_db", [(10.0, 10.0), (15.0, 5.0), (-4.0, -4.0)])
def test_fusion_starts_as_joint_division(snr_db: tuple[float, float]) -> None:
    images = scenes(4, 2, 32)
    fusion, apart = network(), network(scheme="joint_division")
    under = conditions(4, snr_db, (0.35, 0.65))
    with torch.no_grad():
        sent = [one.encode(images, under).symbols for one in (fusion, apart)]
    assert torch.allclose(*sent, atol=1e-6)
    for mine, other in zip(decoded(fusion, images, under), decoded(apart, images, under), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_joint_division_gives_each_user_its_share_of_the_power_in_slots_of_its_own() -> None:
    one = stirred(scheme="joint_division")
    under = conditions(2, (15.0, 5.0), (0.35, 0.65))
    images = scenes(2, 2, 32)
    others = images.clone()
    others[:, 1] = scenes(2, 1, 32, "others")[:, 0]
    with torch.no_grad():
        first, second = (
            as_slots(one.encode(one_of, under).symbols, 64, (4, 4)) for one_of in (images, others)
        )
    owned = int(joint_slots(under.shares, under.snr_db, 64, one.deviation)[0, 0])
    assert owned > 0.35 * 64
    assert torch.allclose(first[:, :owned], second[:, :owned], atol=1e-5)
    assert not torch.allclose(first[:, owned:], second[:, owned:], atol=1e-2)
    for part, share in ((first[:, :owned], 0.35), (first[:, owned:], 0.65)):
        power = 2 * part.square().sum(dim=1).mean(dim=(1, 2)) / 64
        assert torch.allclose(power, torch.full((2,), share), atol=1e-5)


def test_time_division_keeps_the_users_apart() -> None:
    one = stirred(scheme="time_division")
    under = conditions(2)
    images = scenes(2, 2, 32)
    others = images.clone()
    others[:, 1] = scenes(2, 1, 32, "others")[:, 0]
    with torch.no_grad():
        first, second = (
            as_slots(one.encode(one_of, under).symbols, 64, (4, 4)) for one_of in (images, others)
        )
    owned = int(owned_slots(under.shares, 64)[0, 0])
    assert owned == 22
    assert torch.equal(first[:, :owned], second[:, :owned])
    assert not torch.equal(first[:, owned:], second[:, owned:])
    # Each alone has mean power 1 in its own symbols.
    for part in (first[:, :owned], first[:, owned:]):
        assert torch.allclose(2 * part.square().mean(dim=(1, 2, 3)), torch.ones(2), atol=1e-5)
    # What a user makes of it does not depend on the other user's symbols.
    changed = first.clone()
    changed[:, owned:] += 1
    scale = torch.ones(2, 2)
    with torch.no_grad():
        answers = [one.decode(as_symbols(slots), scale, 0, under, (4, 4)) for slots in (first, changed)]
    assert torch.equal(answers[0], answers[1])


def test_superposition_gives_each_user_its_share_of_the_power_and_cancels() -> None:
    one = network(scheme="superposition")
    images = scenes(4, 2, 32)
    for share in (0.2, 0.8):
        under = conditions(4, (30.0, 1.0), (share, 1 - share))
        frame = one.encode(images, under)
        alone = images.clone()
        alone[:, 1] = one.mean.reshape(3, 8, 8).repeat(1, 4, 4)
        own = one.encode(alone, under)
        part = own.symbols / own.scale[:, :1, None] * frame.scale[:, :1, None]
        power = part.square().sum(dim=2).mean(dim=1)
        # The two codes of smooth pictures are a little alike, so that the parts do not quite add up.
        assert torch.allclose(power, torch.full((4,), share), rtol=0.35)
    # With the other's image known, what is left is user 1's alone.
    under = conditions(4, (40.0, 40.0), (0.5, 0.5))
    frame = one.encode(images, under)
    one._decoded = lambda received, scale, user, receiver, about: (  # type: ignore[method-assign]
        images[:, 1] if user == 1 else received
    )
    left = one.decode(frame.symbols, frame.scale, 0, under, (4, 4))
    features = one._features(images[:, 0], one._about(under, 0, 0), 64)
    expected = one._root(64).view(1, -1, 1, 1) * features * frame.scale[:, 0].view(-1, 1, 1, 1)
    assert torch.allclose(left, expected, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_power_or_more_slots_make_better_images(scheme: str) -> None:
    one = network(scheme=scheme)
    images = scenes(4, 2, 48, "better")
    answers = {
        (snr, slots): decoded(one, images, conditions(4, (snr, snr - 5), (0.5, 0.5), slots))
        for snr in (5.0, 15.0)
        for slots in (64, 32)
    }
    for user in (0, 1):
        best, worst = (psnr_db(answers[key][user], images[:, user]) for key in ((15.0, 64), (5.0, 64)))
        assert best > worst + 2
        assert psnr_db(answers[15.0, 64][user], images[:, user]) > psnr_db(
            answers[15.0, 32][user], images[:, user]
        )
    if scheme != "superposition":
        assert psnr_db(answers[15.0, 64][0], images[:, 0]) > 25


@pytest.mark.parametrize("backbone", ["convolution", "window"])
def test_the_linear_start_has_the_error_of_its_closed_form(backbone: str) -> None:
    """A component of variance 1 at amplitude a in noise N is estimated by a / (a^2 + N); others are not sent."""
    one = network(scheme="time_division", backbone=backbone)
    images = scenes(64, 2, 32, "closed")
    answers = decoded(one, images, conditions(64, (10.0, 10.0), (0.5, 0.5)))
    centred = to_patches(images[:, 0]).permute(0, 2, 3, 1) - one.mean
    power = (centred @ one.basis).square().mean(dim=(1, 2))
    root, noise, sent = one._root(32), 0.1 / 2, power[:, :32] / one.deviation[:32].square()
    # Of each image the mean power of a slot, in which one real number travels, is 1/2.
    amplitude = root * (0.5 / (root.square() * sent).mean(dim=1, keepdim=True)).sqrt()
    gain = amplitude / (amplitude.square() + noise)
    left = (1 - gain * amplitude).square() * sent + gain.square() * noise
    error = (left * one.deviation[:32].square()).sum(dim=1) + power[:, 32:].sum(dim=1)
    measured = (answers[0] - images[:, 0]).square().mean()
    assert float(measured) == pytest.approx(float(error.mean() / 192), rel=0.02)


def test_a_network_without_csi_sees_none() -> None:
    images = scenes(2, 2, 32)
    blind, seeing = stirred(sees_csi=False), stirred()
    low, high = conditions(2, (5.0, 0.0)), conditions(2, (20.0, 15.0))
    for one, same in ((blind, True), (seeing, False)):
        frames = [one.encode(images, under) for under in (low, high)]
        assert torch.equal(frames[0].symbols, frames[1].symbols) == same
        answers = [one.decode(frames[0].symbols, frames[0].scale, 0, under, (4, 4)) for under in (low, high)]
        assert torch.equal(answers[0], answers[1]) == same


def test_similarity_enters_the_fusion_only_where_it_may() -> None:
    images = scenes(1, 2, 32)
    alike = images.clone()
    alike[:, 1] = alike[:, 0]
    for by_similarity in (True, False):
        one = stirred(by_similarity=by_similarity)
        assert one.fusion is not None
        seen = []
        one.fusion.register_forward_hook(lambda _module, given, _answer, seen=seen: seen.append(given[0]))
        one.encode(alike, conditions(1, (10.0, 10.0), (0.5, 0.5)))
        similarity = seen[0][:, -1]
        # Two users' features of one image differ only by what the encoder is told of the user.
        assert bool((similarity > 0.5).all()) == by_similarity
        assert bool((similarity == 0).all()) != by_similarity


@settings(max_examples=30, deadline=None)
@given(users=st.integers(2, 4), half=st.integers(4, 12), data=st.data())
def test_leading_components_never_meet(users: int, half: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 1), min_size=users, max_size=users))
    slots = 2 * half
    owned = owned_slots(torch.tensor([[weight / sum(weights) for weight in weights]]), slots)
    numbers = torch.arange(slots).float().view(1, slots, 1, 1)
    taken = torch.zeros(slots)
    for user in range(users):
        placed = to_slots(numbers, user, owned)
        assert torch.equal(to_components(placed, user, owned), numbers)
        taken += (placed.flatten() < owned[0, user]).float()
    assert taken.tolist() == [1.0] * slots


def test_slots_become_symbols_and_back() -> None:
    slots = torch.randn(2, 6, 3, 5, generator=generator(1, "slots"))
    symbols = as_symbols(slots)
    assert symbols.shape == (2, 45, 2)
    assert symbols[0, 0].tolist() == slots[0, :2, 0, 0].tolist()
    assert torch.equal(as_slots(symbols, 6, (3, 5)), slots)


def test_patches_become_images_and_back() -> None:
    images = scenes(2, 1, 24)[:, 0]
    assert torch.equal(from_patches(to_patches(images)), images)
    one = network()
    assert torch.allclose(one.basis.T @ one.basis, torch.eye(192), atol=1e-5)
    assert torch.all(one.deviation.diff() <= 1e-6)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (6, 9), (4, 4), (3, 2)])
def test_windows_see_their_neighbours_and_no_filling(shift: int, size: tuple[int, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        block = Windows(32, 2, shift).eval()
    about = torch.zeros(1, 2)
    high, wide = size
    whole = torch.randn(1, 32, high, wide, generator=generator(1, "windows"))
    # What a place attends to is what its answer's gradient reaches: the norms, which see everything, are cut out.
    block.before = torch.nn.Identity()  # type: ignore[assignment]
    block.between = torch.nn.Identity()  # type: ignore[assignment]
    whole.requires_grad_()
    answer = block(whole, about)
    assert answer.shape == whole.shape
    assert torch.isfinite(answer).all()
    moved = shift if max(size) > 4 else 0
    for row, column in ((0, 0), (high - 1, wide - 1), (high // 2, wide // 2)):
        (slope,) = torch.autograd.grad(answer[0, :, row, column].sum(), whole, retain_graph=True)
        reached = slope[0].abs().sum(dim=0) > 0
        rows, columns = torch.arange(high), torch.arange(wide)
        # Windows of the rolled grid, without what comes round from the far edge.
        same_row = ((rows + 4 - moved) // 4 == (row + 4 - moved) // 4)[:, None]
        same_column = ((columns + 4 - moved) // 4 == (column + 4 - moved) // 4)[None]
        assert torch.equal(reached, same_row & same_column)


def test_pairs_of_one_batch_do_not_touch_each_other() -> None:
    one = stirred()
    images = scenes(3, 2, 32)
    with torch.no_grad():
        whole = one.encode(images, conditions(3)).symbols
        single = one.encode(images[1:2], conditions(1)).symbols
    assert torch.allclose(whole[1:2], single, atol=1e-5)
