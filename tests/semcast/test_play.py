from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from payloads.semcast import channels, play
from payloads.semcast.air import Sent, at_unit_power, from_wire, to_wire
from payloads.semcast.play import conditions_of, digest, gains_of, hear, play_frame, transmit
from payloads.semcast.seeds import generator
from payloads.semcast.settings import SCHEMES, Frame
from tests.semcast.networks import scenes, stirred

LABELS = ("10-1", 0, 3)


def pixels(users: int, side: int = 32) -> torch.Tensor:
    return (scenes(1, users, side, "play")[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("fading", ["none", "rayleigh"])
def test_the_halves_of_the_rack_give_the_pixels_of_the_local_play(fading: str) -> None:
    one, images = stirred(), pixels(2)
    snr_db, shares = (10.0, 1.0), (0.3, 0.7)
    played = play_frame(one, images, snr_db, shares, 64, fading=fading, csi_error=0.05, seed=4, labels=LABELS)
    assert played.symbols == 512
    assert played.side_bits == 16
    gains = gains_of(4, LABELS, 2, fading, 0.05)
    under = conditions_of(snr_db, shares, 64, gains)
    sent = transmit(one, images, under)
    for user in (1, 0):
        heard = hear(
            one,
            sent,
            user,
            under,
            (4, 4),
            snr_db[user],
            gains[user],
            generator(4, *LABELS, user + 1, "noise"),
        )
        assert digest(heard.pixels) == played.users[user].digest
        assert torch.equal(heard.pixels, played.users[user].pixels)
        assert heard[1:] == played.users[user][2:5]
    assert played.users[0].noise_seed == "4/10-1/0/3/1"
    assert played.users[0].digest != played.users[1].digest


def test_every_seed_label_and_user_has_noise_of_its_own() -> None:
    one, images = stirred(), pixels(2)
    images[1] = images[0]

    def measured(seed: int, *labels: str | int) -> tuple[float, ...]:
        played = play_frame(one, images, (5.0, 5.0), (0.5, 0.5), 64, seed=seed, labels=labels)
        return tuple(user.measured_snr_db for user in played.users)

    found = [measured(1, "a", 0, 0), measured(2, "a", 0, 0), measured(1, "b", 0, 0), measured(1, "a", 1, 0)]
    assert len({value for pair in found for value in pair}) == 8
    assert measured(1, "a", 0, 0) == found[0]


def test_conditions_are_what_is_believed() -> None:
    gains = gains_of(1, LABELS, 2, "rayleigh", 0.1)
    under = conditions_of((10.0, 1.0), (0.3, 0.7), 32, gains)
    for user, mean in enumerate((10.0, 1.0)):
        power = float(gains[user].believed.square().sum())
        assert float(under.snr_db[0, user]) == pytest.approx(
            mean + 10 * torch.tensor(power).log10().item(), abs=1e-4
        )
        assert not torch.equal(gains[user].believed, gains[user].true)
    assert under.shares.tolist() == [pytest.approx([0.3, 0.7])]


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-8, 8, width=16), min_size=2, max_size=40).filter(lambda v: len(v) % 2 == 0),
    scales=st.lists(st.floats(2**-5.9, 2**5.9), min_size=2, max_size=4),
)
def test_a_frame_survives_the_wire(values: list[float], scales: list[float]) -> None:
    frame = Frame(torch.tensor(values).reshape(1, -1, 2), torch.tensor([scales]))
    sent = to_wire(frame)
    assert len(sent.data) == 2 * len(values)
    assert sent.side_bits == 8 * len(scales)
    back = from_wire(sent)
    assert torch.equal(back.symbols, frame.symbols)  # they were numbers of 16 bits before
    # A step of a scale is 1/21 of an octave: it is off by half of that at most.
    assert torch.all((back.scale.log2() - frame.scale.log2()).abs() <= 12 / 255 / 2 + 1e-6)
    # What has been rounded once stays as it is.
    assert to_wire(back) == sent


def test_scales_out_of_range_are_the_nearest() -> None:
    sent = to_wire(Frame(torch.zeros(1, 1, 2), torch.tensor([[0.0, 1e9]])))
    assert sent.scale_codes == (0, 255)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_radiated_has_mean_power_one_and_the_asked_snr(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    radiated: list[torch.Tensor] = []

    def receive_and_keep(symbols: torch.Tensor, *rest: Any) -> channels.Received:
        radiated.append(symbols)
        return channels.receive(symbols, *rest)

    monkeypatch.setattr(play, "receive", receive_and_keep)
    one, images = stirred(scheme=scheme), pixels(2, 96)
    measured_db = []
    for block, share in enumerate((0.03, 0.2, 0.5, 0.8)):
        found = play_frame(one, images, (12.0, 3.0), (share, 1 - share), 64, seed=1, labels=(0, block))
        measured_db.append([user.measured_snr_db for user in found.users])
    for symbols in radiated:
        assert float(symbols.double().square().sum(dim=2).mean()) == pytest.approx(1, abs=1e-6)
    assert len({symbols.sum().item() for symbols in radiated}) == 4  # all users hear the same frame
    for user, asked_db in enumerate((12.0, 3.0)):
        # Four frames of 4608 symbols: the mean is off by 0.03 dB, as standard deviations go.
        assert sum(row[user] for row in measured_db) / 4 == pytest.approx(asked_db, abs=0.1)


def test_nothing_stays_nothing() -> None:
    assert torch.equal(at_unit_power(torch.zeros(1, 4, 2)), torch.zeros(1, 4, 2))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (Sent(b"\0" * 7, (1, 1), 2, 16), "8 bytes were expected for 2 symbols, not 7"),
        (Sent(b"\0" * 8, (1, 256), 2, 16), "from 0 to 255"),
    ],
)
def test_a_damaged_frame_is_refused(sent: Sent, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        from_wire(sent)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (torch.zeros(3, 32, 32, 3, dtype=torch.uint8), "2 images of 8 bits"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "2 images of 8 bits"),
        (torch.zeros(2, 32, 32, 3), "2 images of 8 bits"),
        (torch.zeros(2, 32, 36, 3, dtype=torch.uint8), "multiples of 8 were expected, not 32 x 36"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: torch.Tensor, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        play_frame(stirred(), images, (10.0, 1.0), (0.5, 0.5), 64, seed=1, labels=LABELS)


def test_a_digest_is_of_the_bytes_of_the_image() -> None:
    image = torch.arange(48, dtype=torch.uint8).reshape(4, 4, 3)
    assert digest(image) == hashlib.sha256(bytes(range(48))).hexdigest()[:16]
    # The order in memory does not matter.
    assert digest(image.permute(2, 0, 1).contiguous().permute(1, 2, 0)) == digest(image)
