"""What semantic broadcast is trained on: random crops of photographs at several scales, and links drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from payloads.semcast.channels import Gains, draw_gains, effective_snr_db
from payloads.semcast.klt import PATCH, Klt, fit_klt, to_patches
from payloads.semcast.settings import Conditions

__all__ = ["Links", "Pictures", "draw_links", "load_pictures", "read_set", "read_sets"]

LONGEST_SIDE = 1536
#: How often what is drawn fades, and then the most that the estimate of a gain is wrong by (variance).
FADES, WORST_CSI_ERROR = 0.25, 0.1


@dataclass(frozen=True)
class Pictures:
    """Photographs, each at several scales.

    Attributes:
        scales: For each photograph its versions (3, H, W) of 8 bits, the largest first.
    """

    scales: tuple[tuple[torch.Tensor, ...], ...]

    def crops(self, count: int, side: int, generator: torch.Generator) -> torch.Tensor:
        """Return random squares (count, 3, side, side), colours from 0 to 1: any photograph, any scale."""
        return torch.stack([self._crop(side, generator) for _ in range(count)]).float() / 255

    def klt(self, generator: torch.Generator) -> Klt:
        """Return the transform of patches of many crops, with the precision that models are kept in."""
        rows = []
        for side, count in ((32, 1600), (128, 100)):
            patches = to_patches(self.crops(count, side, generator))
            rows.append(patches.permute(0, 2, 3, 1).reshape(-1, 3 * PATCH**2))
        return Klt(*(part.half().float() for part in fit_klt(torch.cat(rows))))

    def _crop(self, side: int, generator: torch.Generator) -> torch.Tensor:
        def below(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=generator))

        scales = self.scales[below(len(self.scales))]
        fitting = [picture for picture in scales if min(picture.shape[1:]) >= side]
        picture = fitting[below(len(fitting))]
        top, left = below(picture.shape[1] - side + 1), below(picture.shape[2] - side + 1)
        crop = picture[:, top : top + side, left : left + side]
        return crop.flip(2) if below(2) else crop


def load_pictures(folder: Path, cache: Path) -> Pictures:
    """Return the photographs in a folder, scaled once and then kept in ``cache``."""
    if not cache.exists():
        paths = sorted(folder.glob("*.jpg"))
        if not paths:
            raise SystemExit(f"{folder}: no photographs; run scripts/semcast_images.py photographs first")
        kept = {}
        for number, path in enumerate(paths):
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            for step in range(12):
                size = LONGEST_SIDE / 2 ** (step / 2)
                scaled = picture.copy()
                scaled.thumbnail((round(size), round(size)), Image.Resampling.LANCZOS)
                if min(scaled.size) >= 32:
                    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()
                    kept[f"{number:03d}.{step:02d}"] = pixels
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_suffix(".new")
        save_file(kept, fresh)
        fresh.replace(cache)
    tensors: Mapping[str, torch.Tensor] = load_file(cache)
    numbers = sorted({name.split(".")[0] for name in tensors})
    return Pictures(
        tuple(
            tuple(tensors[name] for name in sorted(tensors) if name.startswith(number + "."))
            for number in numbers
        )
    )


@dataclass(frozen=True)
class Links:
    """What a batch of frames is sent under.

    Attributes:
        snr_db: (B, U), the mean SNRs.
        gains: Each user's gains.
        conditions: What both ends believe.
    """

    snr_db: torch.Tensor
    gains: tuple[Gains, ...]
    conditions: Conditions


def draw_links(count: int, users: int, slots: int, generator: torch.Generator) -> Links:
    """Return random links: SNRs from -4 to 20 dB, user 1 the strongest, some of them fading and wrongly estimated.

    Args:
        count: B.
        users: U.
        slots: S of the frames.
        generator: Where everything comes from.
    """

    def uniform(least: float, most: float, *shape: int) -> torch.Tensor:
        return least + (most - least) * torch.rand(*shape, generator=generator)

    first = uniform(1, 20, count, 1)
    gaps = uniform(0, 13, count, users - 1) * (torch.rand(count, users - 1, generator=generator) < 0.85)
    snr_db = torch.cat([first, (first - gaps.cumsum(dim=1)).clamp_min(-4)], dim=1)
    fades = (torch.rand(count, 1, generator=generator) < FADES).float()
    errors = uniform(0, WORST_CSI_ERROR, count, 1) * (torch.rand(count, 1, generator=generator) < 0.5) * fades
    still = torch.tensor([1.0, 0.0])
    gains, believed_db = [], []
    for user in range(users):
        drawn = draw_gains(count, "rayleigh", 1.0, generator)
        true = torch.where(fades > 0, drawn.true, still)
        believed = true + (drawn.believed - drawn.true) * errors.sqrt()
        gains.append(Gains(true, believed))
        believed_db.append(effective_snr_db(snr_db[:, user], believed))
    if users == 2:
        one = uniform(0.1, 0.9, count, 1)
        shares = torch.cat([one, 1 - one], dim=1)
    else:
        drawn_shares = 0.1 + torch.empty(count, users).exponential_(generator=generator)
        shares = drawn_shares / drawn_shares.sum(dim=1, keepdim=True)
    return Links(snr_db, tuple(gains), Conditions(torch.stack(believed_db, dim=1), shares, slots))


def read_sets(folder: Path) -> dict[str, torch.Tensor]:
    """Return the held-out sets in a folder by name."""
    return {one.name: read_set(one) for one in sorted(folder.glob("natural-*"))}


def read_set(folder: Path) -> torch.Tensor:
    """Return the pictures of a held-out set (N, 3, H, W), colours from 0 to 1, in the order of their names."""
    paths: Sequence[Path] = sorted(folder.glob("*.png"))
    pictures = []
    for path in paths:
        with Image.open(path) as opened:
            pictures.append(torch.from_numpy(np.array(opened.convert("RGB"))))
    return torch.stack(pictures).permute(0, 3, 1, 2).float() / 255
