from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from payloads.semcast.model_folder import ModelError, load_network
from payloads.semcast.network import Broadcast
from payloads.semcast.play import play_frame
from testbed.semcast.images import held_out
from testbed.semcast.pairs import image_of
from tests.semcast.networks import conditions, scenes, stirred

SHIPPED = Path(__file__).parents[2] / "payloads" / "models"


def written(folder: Path, one: Broadcast, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in one.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    config = {"model_type": "semcast", **one.settings._asdict(), **changed}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("scheme", ["fusion", "superposition"])
def test_a_model_is_read_as_it_was_written(scheme: str, tmp_path: Path) -> None:
    one = stirred(scheme=scheme, backbone="window")
    found = load_network(written(tmp_path / "model", one))
    assert found.settings == one.settings
    assert not found.training
    halved = one.state_dict()
    for name, value in found.state_dict().items():
        assert torch.equal(value, halved[name].half().float())
    with torch.no_grad():
        frames = [each.encode(scenes(1, 2, 32), conditions(1)) for each in (one, found)]
    assert torch.allclose(frames[0].symbols, frames[1].symbols, atol=0.05)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"users": "2"}, "config.json: users: int was expected, not '2'"),
        ({"sees_csi": 1}, "config.json: sees_csi: bool was expected, not 1"),
        ({"width": None}, "config.json: width: int was expected, not None"),
        ({"blocks": 1}, "config.json: blocks: 2 to 64 was expected, not 1"),
        ({"slots": 63}, "config.json: slots: an even number was expected, not 63"),
        ({"users": 16, "slots": 30}, "config.json: slots: 16 users need 32 at least, not 30"),
        (
            {"scheme": "tdma"},
            "config.json: scheme: one of fusion, joint_division, time_division, superposition was expected, not 'tdma'",
        ),
        ({"backbone": "swin"}, "config.json: backbone: one of convolution, window was expected, not 'swin'"),
        ({"width": 48}, r"model.safetensors: encoder.enter.weight of shape \(48, 192, 1, 1\) was expected"),
        ({"blocks": 3}, "model.safetensors: .* is missing"),
        ({"scheme": "time_division"}, "model.safetensors: fusion.* belongs to no part"),
    ],
)
def test_a_config_that_is_wrong_is_named(changed: dict[str, Any], expected: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "model", stirred(), **changed)
    with pytest.raises(ModelError, match=expected):
        load_network(folder)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", stirred())
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="reaches behind the end of the file"):
        load_network(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read: No such file"):
        load_network(folder)
    for text, expected in (("{", "no JSON"), ("[]", "a JSON object was expected")):
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=f"config.json: {expected}"):
            load_network(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        load_network(folder)


@pytest.mark.parametrize(
    "name",
    ["semcast-fusion", "semcast-time-division", "semcast-superposition", "semcast-fusion-no-csi"],
)
def test_a_shipped_model_reaches_what_its_card_says(name: str) -> None:
    folder = SHIPPED / name
    assert (folder / "model.safetensors").stat().st_size < 2.5e6
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    one = load_network(folder)
    images = torch.from_numpy(held_out("natural-32").pixels)
    total = [0.0, 0.0]
    for pair in range(48):
        both = images[[image_of(pair, user, 2, 48) for user in range(2)]]
        played = play_frame(one, both, (10.0, 1.0), (0.5, 0.5), 64, seed=1, labels=("card", 0, pair))
        for user, image in enumerate(both):
            error = (played.users[user].pixels.double() - image.double()).square().mean()
            total[user] += float(20 * torch.log10(255 / error.sqrt())) / 48
    # Numbers rounded for the wire, and other noise: by that alone such a mean is off by about 0.1 dB.
    assert total == pytest.approx(config["training"]["psnr_db"]["natural-32 64 10/1 0.5"], abs=0.3)
