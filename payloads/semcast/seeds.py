"""Random numbers that follow from names, the same on every machine that draws them."""

from __future__ import annotations

import hashlib
import json
from typing import Union

import torch

__all__ = ["generator", "seed_of"]


def seed_of(seed: int, *labels: Union[str, int]) -> int:
    """Return 63 bits that follow from a seed and what they are for: a scenario, a frame, a user, ``noise``."""
    text = json.dumps([seed, *labels], ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") >> 1


def generator(seed: int, *labels: Union[str, int]) -> torch.Generator:
    """Return a generator, on the processor, whose numbers follow from a seed and what they are for."""
    return torch.Generator().manual_seed(seed_of(seed, *labels))
