"""A small broadcast campaign on disk, with the small networks of the tests as its models."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from tests.semcast.networks import stirred

__all__ = ["INVENTORY", "LINKS", "write_campaign", "write_model"]

INVENTORY = """
lab: pair
hosts:
  bs: {role: base_station, address: 10.0.0.1}
  weak: {role: device, address: 10.0.0.2, pace: {ops_per_s: 1.0e+12, bytes_per_s: 1.0e+10}}
  other: {role: device, address: 10.0.0.3}
  strong: {role: device, address: 10.0.0.4}
"""
LINKS = {"default": {"downlink_mbit": 20, "uplink_mbit": 20}}


@cache
def _small(scheme: str, **settings: Any) -> tuple[dict[str, Any], bytes]:
    """Return a small network's settings, and its weights as a file."""
    network = stirred(scheme=scheme, width=16, **settings)
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return network.settings._asdict(), save(weights)


def write_model(folder: Path, scheme: str = "fusion", seed: int = 1, **settings: Any) -> Path:
    """Write a small network as a model's folder; return the folder."""
    chosen, weights = _small(scheme, **settings)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    config = {"model_type": "semcast", **chosen, "training": {"seed": seed}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_campaign(folder: Path, **changes: Any) -> Path:
    """Write a campaign file and what it names into a folder; return the file. A key that is None is left out."""
    folder.mkdir(exist_ok=True)
    if not (folder / "pair.yaml").exists():
        (folder / "pair.yaml").write_text(INVENTORY)
        write_model(folder / "models" / "fused")
        write_model(folder / "models" / "divided", "time_division", seed=2)
    keys = {
        "campaign": "small",
        "workload": "broadcast",
        "inventory": "pair.yaml",
        "seed": 3,
        "repeats": 2,
        "users": ["strong", "weak"],
        "images": [{"set": "natural-32", "pairs": 2}],
        "bandwidth_ratios": ["1/6", "1/12"],
        "shares": [0.2, 0.5],
        "schemes": [
            {"name": "fusion", "kind": "learned", "models": ["models/fused"]},
            {"name": "webp (TD)", "kind": "digital", "codec": "webp", "sharing": "time_division"},
            {"name": "TD", "kind": "learned", "models": ["models/divided"]},
        ],
        "scenarios": [
            {"name": "10-1", "snr_db": [10, 1], "links": LINKS},
            {"name": "fading", "snr_db": [10, 1], "fading": "rayleigh", "csi_error": 0.05, "links": LINKS},
        ],
    } | changes
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in keys.items() if v is not None}, sort_keys=False))
    return path
