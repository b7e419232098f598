"""How models of semantic broadcast are trained: ``scripts/train_semcast.py``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from payloads.semcast.model_folder import load_network
from payloads.semcast.seeds import generator
from tests.semcast.networks import klt

SCRIPTS = str(Path(__file__).parents[2] / "scripts")


@pytest.fixture(scope="module")
def scripts() -> Any:
    sys.path.insert(0, SCRIPTS)
    try:
        import semcast_card
        import semcast_data
        import train_semcast

        return argparse.Namespace(card=semcast_card, data=semcast_data, train=train_semcast)
    finally:
        sys.path.remove(SCRIPTS)


@pytest.fixture(scope="module")
def pictures(scripts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        pixels = torch.rand(3, 12, 16, generator=generator(number, "picture"))
        Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).resize((640, 480)).save(
            folder / f"{number}.jpg"
        )
    found = scripts.data.load_pictures(folder, folder / "pictures.safetensors")
    again = scripts.data.load_pictures(folder, folder / "pictures.safetensors")
    assert [[scale.shape for scale in one] for one in found.scales] == [
        [scale.shape for scale in one] for one in again.scales
    ]
    return found


def options(scripts: Any, folder: Path, **changed: object) -> argparse.Namespace:
    return argparse.Namespace(
        out=folder / "model", work=folder / "work", steps=4, learning_rate=2e-3, seed=1, loss="log", **changed
    )


def run(scripts: Any, folder: Path, scheme: str, **changed: object) -> Any:
    settings = scripts.train.from_config(
        {
            "users": 2, "slots": 64, "width": 16, "blocks": 2, "backbone": "convolution",
            "scheme": scheme, "sees_csi": True, "by_similarity": True,
        }
    )  # fmt: skip
    return scripts.train.Run(settings, klt(), options(scripts, folder, **changed))


@pytest.mark.parametrize("scheme", ["fusion", "superposition"])
def test_a_training_that_is_cut_ends_as_one_that_is_not(
    scripts: Any, pictures: Any, scheme: str, tmp_path: Path
) -> None:
    whole = run(scripts, tmp_path / "whole", scheme)
    whole.train(pictures, {})
    cut = run(scripts, tmp_path / "cut", scheme)
    for step in range(2):
        for group in cut.optimizer.param_groups:
            group["lr"] = 2e-3 * scripts.train.learning_rate(step, 4)
        cut._step(pictures, step)
    cut.done = 2
    cut._save()
    # What came after the checkpoint is lost, and done again.
    cut._step(pictures, 2)
    resumed = run(scripts, tmp_path / "cut", scheme)
    resumed.train(pictures, {})
    assert resumed.done == 4
    for one, other in zip(whole.averages, resumed.averages, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert not any(
        torch.equal(one, other) for one, other in zip(whole.averages[:1], cut.averages[:1], strict=True)
    )
    # Another training does not go on from it.
    other = run(scripts, tmp_path / "cut", scheme)
    other.options.seed = 2
    with pytest.raises(SystemExit, match="other options"):
        other.train(pictures, {})


def test_the_links_of_a_training_are_what_the_card_says(scripts: Any) -> None:
    for users in (2, 3):
        links = scripts.data.draw_links(4000, users, 32, generator(1, "links"))
        assert links.conditions.slots == 32
        assert torch.allclose(links.conditions.shares.sum(dim=1), torch.ones(4000))
        assert links.snr_db.min() >= -4
        assert links.snr_db.max() <= 20
        assert torch.all(links.snr_db.diff(dim=1) <= 0)  # user 1 is the strongest
        still = torch.stack([(gains.true == torch.tensor([1.0, 0.0])).all(dim=1) for gains in links.gains])
        assert float(still[0].float().mean()) == pytest.approx(0.75, abs=0.03)
        assert torch.equal(still[0], still[1])
        known = torch.stack([(gains.true == gains.believed).all(dim=1) for gains in links.gains])
        assert float(known[0].float().mean()) == pytest.approx(0.875, abs=0.03)
        assert torch.all(known[still])
        # Where nothing fades, what is believed is what is.
        assert torch.allclose(links.conditions.snr_db[still[0]], links.snr_db[still[0]], atol=1e-5)


def test_a_model_is_written_with_its_card(scripts: Any, pictures: Any, tmp_path: Path) -> None:
    trained = run(scripts, tmp_path, "time_division")
    held_out = {"natural-32": pictures.crops(4, 32, generator(1, "held out"))}
    facts = {
        "steps": 4, "seed": 1, "loss": "log", "seconds": 90, "processor_seconds": 60, "threads": 1, "device": "cpu",
        "pictures": 2, "peak_learning_rate": 2e-3,
    }  # fmt: skip
    network = trained.average()
    scripts.card.write_model(tmp_path / "semcast-mine", network, facts, held_out)
    found = load_network(tmp_path / "semcast-mine")
    assert found.settings == trained.settings
    config = json.loads((tmp_path / "semcast-mine" / "config.json").read_text())
    assert config["training"]["steps"] == 4
    shares = [config["training"]["psnr_db"][f"natural-32 64 10/10 {share}"] for share in (0.2, 0.5, 0.8)]
    assert [first for first, _ in shares] == sorted(first for first, _ in shares)
    card = (tmp_path / "semcast-mine" / "README.md").read_text()
    assert "--out payloads/models/semcast-mine --scheme time_division --width 16 --blocks 2 --steps 4" in card
    first, second = shares[1]
    assert f"{first:.2f} / {second:.2f}" in card


def test_a_card_can_be_written_again(
    scripts: Any, pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = run(scripts, tmp_path, "fusion")
    facts = {
        "steps": 4, "seed": 1, "loss": "log", "seconds": 90, "processor_seconds": 60, "threads": 1, "device": "cpu",
        "pictures": 2, "peak_learning_rate": 2e-3,
    }  # fmt: skip
    model, sets = tmp_path / "semcast-mine", tmp_path / "sets"
    scripts.card.write_model(model, trained.average(), facts, {})
    weights, without = ((model / name).read_bytes() for name in ("model.safetensors", "README.md"))
    (sets / "natural-32").mkdir(parents=True)
    for number, crop in enumerate(pictures.crops(4, 32, generator(1, "held out"))):
        Image.fromarray((crop * 255).byte().permute(1, 2, 0).numpy()).save(
            sets / "natural-32" / f"{number}.png"
        )
    monkeypatch.setattr(sys, "argv", ["semcast_card.py", str(model), "--held-out", str(sets)])
    monkeypatch.setattr(scripts.card, "processor", lambda: "another machine")
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    scripts.card.main()
    assert (model / "model.safetensors").read_bytes() == weights
    card = (model / "README.md").read_bytes()
    assert card.startswith(without.rstrip(b"\n"))  # of the training nothing changed
    assert b"`natural-32` (4 pictures)" in card


def test_the_pictures_of_a_pair_on_the_card_are_cut_out_of_different_ones(
    scripts: Any, tmp_path: Path
) -> None:
    network = run(scripts, tmp_path, "fusion").average()
    encoded, encode = [], network.encode

    def seen(images: torch.Tensor, under: Any) -> Any:
        encoded.append(images[:, :, 0, 0, 0])
        return encode(images, under)

    network.encode = seen
    # As in the shipped sets every sixth is a part of the same picture; here these have the same colour.
    colours = torch.arange(24) % 6 / 6
    scripts.card.psnr_db(network, colours.view(-1, 1, 1, 1).expand(-1, 3, 8, 8), (10.0, 1.0), (0.5, 0.5), 64)
    pairs = torch.cat(encoded)
    assert pairs.shape == (24, 2)
    assert torch.all(pairs[:, 0] != pairs[:, 1])
