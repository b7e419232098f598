"""What the networks are made of: residual blocks on the grid of patches, each told what a frame is sent under.

Sizes: B images, C channels, h x w patches, A numbers that say what the frame is sent under.
"""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["Convolutions", "Film", "Trunk", "Windows"]

_FILM_WIDTH = 32


class Film(nn.Module):
    """Scales and shifts channels by what a frame is sent under (feature-wise linear modulation)."""

    def __init__(self, width: int, about: int) -> None:
        super().__init__()
        self.inner = nn.Linear(about, _FILM_WIDTH)
        self.outer = nn.Linear(_FILM_WIDTH, 2 * width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, features: torch.Tensor, about: torch.Tensor) -> torch.Tensor:
        """Return features (B, C, h, w) modulated by ``about`` (B, A)."""
        scale, shift = self.outer(torch.tanh(self.inner(about)))[..., None, None].chunk(2, dim=1)
        modulated: torch.Tensor = features * (1 + scale) + shift
        return modulated


class Convolutions(nn.Module):
    """A residual block of two 3 x 3 convolutions."""

    def __init__(self, width: int, about: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.film = Film(width, about)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)
        with torch.no_grad():
            self.second.weight.mul_(0.5)

    def forward(self, features: torch.Tensor, about: torch.Tensor) -> torch.Tensor:
        """Return features (B, C, h, w)."""
        inner = self.film(nn.functional.gelu(self.first(features)), about)
        answer: torch.Tensor = features + self.second(inner)
        return answer


class Windows(nn.Module):
    """A residual block of attention within windows and a small network for each patch, as in a Swin transformer.

    Windows that reach over the edge are filled with zeros, which a mask keeps from being attended to; a shifted window
    holds patches of both edges of the image (the grid is rolled), and those of one edge do not attend to the other's.
    """

    SIDE = 4

    def __init__(self, width: int, about: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.heads = max(1, width // 32)
        self.before = nn.GroupNorm(1, width)
        self.between = nn.GroupNorm(1, width)
        self.queries = nn.Conv2d(width, 3 * width, 1)
        self.joined = nn.Conv2d(width, width, 1)
        self.inner = nn.Conv2d(width, 4 * width, 1)
        self.outer = nn.Conv2d(4 * width, width, 1)
        self.near = nn.Parameter(torch.zeros(self.heads, (2 * self.SIDE - 1) ** 2))
        self.film = Film(width, about)

    def forward(self, features: torch.Tensor, about: torch.Tensor) -> torch.Tensor:
        """Return features (B, C, h, w)."""
        features = features + self.joined(self._attended(self.before(features)))
        inner = self.film(self.between(features), about)
        answer: torch.Tensor = features + self.outer(nn.functional.gelu(self.inner(inner)))
        return answer

    def _attended(self, features: torch.Tensor) -> torch.Tensor:
        side, (batch, _, high, wide) = self.SIDE, features.shape
        # One window is the whole of a small image: then there is nothing to shift.
        shift = self.shift if max(high, wide) > side else 0
        padded = nn.functional.pad(features, (0, -wide % side, 0, -high % side))
        regions = self._regions(high, wide, shift).to(features.device)
        if shift:
            padded = padded.roll((-shift, -shift), (2, 3))
        query, key, value = (self._cut(part, self.heads) for part in self.queries(padded).chunk(3, dim=1))
        region = self._cut(regions[None, None], 1)
        together = (region == region.transpose(-1, -2)) & (region >= 0).transpose(-1, -2)
        # A place that is only filling attends to itself: its answer is cut off, and has to be finite.
        together |= torch.eye(side * side, dtype=torch.bool, device=features.device)
        mask = self._bias().unsqueeze(0).masked_fill(~together, float("-inf"))
        answer = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.repeat(batch, 1, 1, 1).to(query.dtype)
        )
        joined = self._joined(answer, batch, padded.shape[2], padded.shape[3])
        if shift:
            joined = joined.roll((shift, shift), (2, 3))
        return joined[:, :, :high, :wide]

    def _regions(self, high: int, wide: int, shift: int) -> torch.Tensor:
        """Return a number for each place of the rolled grid; only equal ones see each other, -1 is filling."""
        side = self.SIDE
        rows, columns = (torch.arange(-(-size // side) * side) for size in (high, wide))
        there = (rows < high)[:, None] & (columns < wide)[None]
        # After the roll the first `shift` rows and columns stand at the far edge.
        number = 2 * (rows < shift).long()[:, None] + (columns < shift).long()[None]
        number = number.masked_fill(~there, -1)
        return number.roll((-shift, -shift), (0, 1)) if shift else number

    def _cut(self, part: torch.Tensor, heads: int) -> torch.Tensor:
        """Return (B windows, heads, 16, dim) of (B, heads dim, h, w)."""
        side, (batch, width, high, wide) = self.SIDE, part.shape
        cut = part.reshape(batch, heads, width // heads, high // side, side, wide // side, side)
        return cut.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, heads, side * side, width // heads)

    def _joined(self, windows: torch.Tensor, batch: int, high: int, wide: int) -> torch.Tensor:
        """Return (B, heads dim, h, w) of (B windows, heads, 16, dim)."""
        side, (_, heads, _, dim) = self.SIDE, windows.shape
        cut = windows.reshape(batch, high // side, wide // side, heads, side, side, dim)
        return cut.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, heads * dim, high, wide)

    def _bias(self) -> torch.Tensor:
        """Return (heads, 16, 16): what two patches' places in a window add to their attention."""
        side = self.SIDE
        place = torch.arange(side * side, device=self.near.device)
        down = place[:, None] // side - place[None] // side + side - 1
        right = place[:, None] % side - place[None] % side + side - 1
        return self.near[:, down * (2 * side - 1) + right]


class Trunk(nn.Module):
    """From some channels to others over residual blocks; its output is zero at the start.

    Args:
        before: Channels that come in.
        after: Channels that go out.
        width: Channels in between.
        blocks: How many residual blocks.
        backbone: ``convolution`` or ``window``.
        about: A, how many numbers say what a frame is sent under.

    Attributes:
        low_precision: Whether matrix products run in bfloat16 (training on a processor); off at the start.
    """

    def __init__(
        self, before: int, after: int, *, width: int, blocks: int, backbone: str, about: int
    ) -> None:
        super().__init__()
        self.low_precision = False
        self.enter = nn.Conv2d(before, width, 1)
        if backbone == "window":
            self.blocks = nn.ModuleList(Windows(width, about, 2 * (number % 2)) for number in range(blocks))
        else:
            self.blocks = nn.ModuleList(Convolutions(width, about) for _ in range(blocks))
        self.film = Film(width, about)
        self.leave = nn.Conv2d(width, after, 1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: torch.Tensor, about: torch.Tensor) -> torch.Tensor:
        """Return (B, after, h, w) in float32, of features (B, before, h, w) and ``about`` (B, A)."""
        with torch.autocast(features.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
            features = self.film(self.enter(features), about)
            for block in self.blocks:
                features = block(features, about)
            answer: torch.Tensor = self.leave(nn.functional.gelu(features))
        return answer.float()
