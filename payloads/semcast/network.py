"""The networks of semantic broadcast. Everything starts as a linear code, and is learned from there.

Each user's image becomes principal components of its patches (:mod:`payloads.semcast.klt`) and a learned residual: its
semantic features. They are sent in the *slots* of a frame (:mod:`payloads.semcast.slots`):

- ``fusion``: the fusion ratio alpha is at first user 1's share of the power, and of the slots each user's leading
  components have as many as is best for both (:mod:`payloads.semcast.sharing`): between equal links that is time
  division, else it is better. What is learned moves away from there: gains of all users in every slot, weights of all
  users' features at each patch that follow from their similarity, and a residual over all users' features. Time
  division is a point of what the fusion can do.
- ``joint_division``: power and slots are shared out as the fusion's are at first, and each user stays alone in its
  slots: the fusion without its network, or a time division that may give users unequal powers.
- ``time_division``: each user alone in its part of the slots, at unit power; no user sees the others' slots.
- ``superposition``: each user's code has all slots, and alpha is the share of the power. A user takes the stronger
  users' codes for noise; it decodes the weaker users' images first, encodes them again and subtracts them (the analogue
  of successive cancellation).

One encoder and one decoder serve all users, told for whom they work, what all users' links are like, the ratio and the
number of slots in every block (FiLM): so K users cost no more weights than two. All that is a reconstruction; the paper
(Wu et al., arXiv 2406.10556) published no code.

Sizes: B frames, U users, S slots of K, P = 192 components of a patch, h x w patches, n = S / 2 h w complex symbols.
"""

from __future__ import annotations

from typing import List, NamedTuple, Tuple

import torch
from torch import nn

from payloads.semcast.blocks import Trunk
from payloads.semcast.channels import noise_variance
from payloads.semcast.klt import Klt, from_patches, to_patches
from payloads.semcast.settings import Conditions, Frame, NetworkSettings
from payloads.semcast.sharing import joint_slots, owned_slots
from payloads.semcast.slots import as_slots, as_symbols, to_components, to_slots

__all__ = ["Broadcast"]

#: What is taken for granted of the first and the last user's SNR without CSI: the means of the training.
_USUAL_SNR_DB = (10.0, 5.0)
_SNR_RANGE_DB = (-20.0, 30.0)
_GAINS_WIDTH = 64


class _Gains(NamedTuple):
    """What a user's components are multiplied with.

    Attributes:
        sent: (B, S), at the transmitter, before the frame's scale.
        trust: (B, S), at the receiver: a factor on the linear estimate.
    """

    sent: torch.Tensor
    trust: torch.Tensor


class Broadcast(nn.Module):
    """Encodes the images of all users into one frame, and decodes a user's image from what it received.

    Args:
        settings: The sizes.
        klt: The transform of patches that everything starts from.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, settings: NetworkSettings, klt: Klt) -> None:
        super().__init__()
        self.settings = settings
        slots, parts, about = settings.slots, len(klt.mean), 3 * settings.users + 1
        self.register_buffer("mean", klt.mean.clone())
        self.register_buffer("basis", klt.basis.clone())
        self.register_buffer("deviation", klt.deviation.clone())

        def trunk(before: int, after: int, blocks: int) -> Trunk:
            return Trunk(
                before, after, width=settings.width, blocks=blocks, backbone=settings.backbone, about=about
            )

        self.encoder = trunk(parts, slots, settings.blocks - 1)
        self.decoder = trunk(2 * slots, parts, settings.blocks)
        last = nn.Linear(_GAINS_WIDTH, 3 * slots)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.gains = nn.Sequential(nn.Linear(about, _GAINS_WIDTH), nn.Tanh(), last)
        self.fusion = None
        if settings.scheme == "fusion":
            placed = settings.users * slots
            self.fusion = trunk(placed + settings.users - 1, placed + slots, max(1, settings.blocks // 2))

    def encode(self, images: torch.Tensor, conditions: Conditions) -> Frame:
        """Return the frame for all users' images.

        Args:
            images: (B, U, 3, H, W), colours from 0 to 1; H and W are multiples of 8.
            conditions: What the transmitter believes of the links, and the ratio.
        """
        users, slots = self.settings.users, conditions.slots
        owned = self._owned(conditions)
        abouts = [self._about(conditions, user, user) for user in range(users)]
        features = self._features(images.flatten(0, 1), torch.stack(abouts, dim=1).flatten(0, 1), slots)
        parts = features.reshape(len(images), users, *features.shape[1:]).unbind(1)
        codes, factors = [], []
        for user, (part, about) in enumerate(zip(parts, abouts)):
            code, factor = self._code(
                part, self._gains(about, owned[:, user], slots), conditions, owned, user
            )
            codes.append(code)
            factors.append(factor)
        sent = torch.stack(codes).sum(dim=0)
        if self.fusion is not None:
            sent = sent + self._fused(parts, codes, abouts[0], conditions, owned)
        # Two slots make a symbol, whose mean power is to be 1.
        power = 2 * sent.square().mean(dim=(1, 2, 3))
        scale = power.clamp_min(1e-20).rsqrt()
        return Frame(
            as_symbols(sent * scale.view(-1, 1, 1, 1)), torch.stack(factors, dim=1) * scale.view(-1, 1)
        )

    def decode(
        self,
        symbols: torch.Tensor,
        scale: torch.Tensor,
        user: int,
        conditions: Conditions,
        grid: Tuple[int, int],
    ) -> torch.Tensor:
        """Return a user's image (B, 3, H, W); its colours may lie a little outside 0 to 1.

        Args:
            symbols: (B, n, 2), what the user received, equalised.
            scale: (B, U), the frame's scale.
            user: Which user it is, from 0.
            conditions: What the frame was sent under, as the user believes it.
            grid: h and w, the patches of the image.
        """
        received = as_slots(symbols, conditions.slots, grid)
        if self.settings.scheme == "superposition":
            owned = self._owned(conditions)
            for weaker in range(self.settings.users - 1, user, -1):
                image = self._decoded(received, scale, weaker, user, conditions)
                about = self._about(conditions, weaker, weaker)
                part = self._features(image, about, conditions.slots)
                gains = self._gains(about, owned[:, weaker], conditions.slots)
                code = gains.sent[:, :, None, None] * part * scale[:, weaker].view(-1, 1, 1, 1)
                received = received - to_slots(code, weaker, owned)
        return self._decoded(received, scale, user, user, conditions)

    def _features(self, images: torch.Tensor, about: torch.Tensor, slots: int) -> torch.Tensor:
        """Return an image's leading components (B, S, h, w), of variance 1 over many images at the start."""
        patches = to_patches(images).permute(0, 2, 3, 1) - self.mean
        parts = ((patches @ self.basis) / self.deviation).permute(0, 3, 1, 2)
        features: torch.Tensor = parts[:, :slots] + self.encoder(parts, about)[:, :slots]
        return features

    def _code(
        self, part: torch.Tensor, gains: _Gains, conditions: Conditions, owned: torch.Tensor, user: int
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return what a user's features (B, S, h, w) add to the slots, and what they were scaled with for it (B,)."""
        code = gains.sent[:, :, None, None] * part
        slots, own = conditions.slots, code
        if self.settings.scheme == "fusion":
            # The share is of the power of what is sent at the start; what is learned comes on top.
            root = self._root(slots) * self._room(owned[:, user], slots)
            own = root[:, :, None, None] * part
        # Time division has unit power within a user's own slots.
        fraction = (
            owned[:, user] / slots if self.settings.scheme == "time_division" else conditions.shares[:, user]
        )
        energy = own.square().mean(dim=(1, 2, 3))
        factor = (fraction / 2 / energy.clamp_min(1e-10)).sqrt()
        return to_slots(code, user, owned) * factor.view(-1, 1, 1, 1), factor

    def _fused(
        self,
        parts: Tuple[torch.Tensor, ...],
        codes: List[torch.Tensor],
        about: torch.Tensor,
        conditions: Conditions,
        owned: torch.Tensor,
    ) -> torch.Tensor:
        """Return what the fusion adds to the slots (B, S, h, w): features weighted anew, and a residual."""
        assert self.fusion is not None
        users, most, slots = self.settings.users, self.settings.slots, conditions.slots
        placed = [to_slots(part, user, owned) for user, part in enumerate(parts)]
        alike = [nn.functional.cosine_similarity(parts[0], part, dim=1).unsqueeze(1) for part in parts[1:]]
        if not self.settings.by_similarity:
            alike = [torch.zeros_like(one) for one in alike]
        filled = [nn.functional.pad(one, (0, 0, 0, 0, 0, most - slots)) for one in placed]
        answer = self.fusion(torch.cat([*filled, *alike], dim=1), about)
        weights = answer.reshape(len(answer), users + 1, most, *answer.shape[2:])[:, :, :slots]
        added: torch.Tensor = weights[:, users] * self._root(slots).view(1, -1, 1, 1)
        for user, code in enumerate(codes):
            added = added + weights[:, user] * code
        return added

    def _decoded(
        self, received: torch.Tensor, scale: torch.Tensor, user: int, receiver: int, conditions: Conditions
    ) -> torch.Tensor:
        """Return the image (B, 3, H, W) of ``user`` out of slots (B, S, h, w) that ``receiver`` received.

        Under superposition the weaker users' codes are no longer in there.
        """
        slots, users = conditions.slots, self.settings.users
        owned = self._owned(conditions)
        about = self._about(conditions, user, receiver)
        gains = self._gains(about, owned[:, user], slots)
        own = gains.sent * scale[:, user : user + 1]
        noise = noise_variance(self._seen_db(conditions)[:, receiver]).view(-1, 1) / 2
        received = to_components(received, user, owned)
        if self.settings.divides:
            received = received * self._room(owned[:, user], slots)[:, :, None, None]
        else:
            # Other users' components in the same slots are noise to a linear estimate.
            rivals = range(users) if self.settings.scheme == "fusion" else range(user)
            for other in rivals:
                if other != user:
                    sent = self._gains(self._about(conditions, other, other), owned[:, other], slots).sent
                    power = (sent * scale[:, other : other + 1]).square()
                    noise = noise + to_components(to_slots(power, other, owned), user, owned)
        # The least mean square error of a linear estimate of a component of variance 1.
        trusted = gains.trust * own / (own.square() + noise)
        linear = trusted[:, :, None, None] * received
        fill = (0, 0, 0, 0, 0, self.settings.slots - slots)
        told = torch.cat([nn.functional.pad(linear, fill), nn.functional.pad(received, fill)], dim=1)
        parts = self.decoder(told, about)
        parts = torch.cat([parts[:, :slots] + linear, parts[:, slots:]], dim=1).permute(0, 2, 3, 1)
        patches = (parts * self.deviation) @ self.basis.T + self.mean
        return from_patches(patches.permute(0, 3, 1, 2))

    def _gains(self, about: torch.Tensor, owned: torch.Tensor, slots: int) -> _Gains:
        """Return what a user's components are multiplied with; at first those it has no room for are not sent."""
        factor, extra, trust = (
            self.gains(about).unflatten(1, (3, self.settings.slots))[:, :, :slots].unbind(1)
        )
        sent = factor.clamp(-3, 3).exp()
        if self.settings.scheme != "superposition":
            sent = sent * self._room(owned, slots)
        if self.settings.scheme == "fusion":
            sent = sent + extra
        return _Gains(sent * self._root(slots), trust.clamp(-3, 3).exp())

    def _owned(self, conditions: Conditions) -> torch.Tensor:
        """Return how many of the slots (B, U) each user's leading components have at the start."""
        if self.settings.shares_jointly:
            seen_db = self._seen_db(conditions)
            return joint_slots(conditions.shares, seen_db, conditions.slots, self.deviation)
        return owned_slots(conditions.shares, conditions.slots)

    def _seen_db(self, conditions: Conditions) -> torch.Tensor:
        """Return the SNRs (B, U) that the linear parts reckon with."""
        if self.settings.sees_csi:
            return conditions.snr_db.clamp(*_SNR_RANGE_DB)
        usual = torch.linspace(*_USUAL_SNR_DB, self.settings.users, device=conditions.snr_db.device)
        return usual.expand_as(conditions.snr_db)

    def _root(self, slots: int) -> torch.Tensor:
        """Return (S,), the linear code's amplitudes: the roots of the deviations, which minimise its square error."""
        root = self.deviation[:slots].sqrt()
        return root / root.square().mean().sqrt()

    def _room(self, owned: torch.Tensor, slots: int) -> torch.Tensor:
        """Return (B, S): 1 for a user's leading components that its slots (B,) have room for, else 0."""
        return (torch.arange(slots, device=owned.device) < owned.view(-1, 1)).float()

    def _about(self, conditions: Conditions, user: int, receiver: int) -> torch.Tensor:
        """Return (B, 3 U + 1) numbers of about the size 1 that say what a user's image is sent under.

        The user's own SNR (at the receiver that decodes it) and share come first, then the other users' in order, the
        slots, and which user it is. SNRs that are not to be seen are zeros.
        """
        order = [user, *(other for other in range(self.settings.users) if other != user)]
        snr_db = conditions.snr_db[:, order]
        if receiver != user:
            snr_db = torch.cat([conditions.snr_db[:, receiver : receiver + 1], snr_db[:, 1:]], dim=1)
        seen = (snr_db.clamp(*_SNR_RANGE_DB) - 8) / 8 * float(self.settings.sees_csi)
        which = torch.zeros_like(seen)
        which[:, user] = 1
        room = torch.full_like(seen[:, :1], 2 * conditions.slots / self.settings.slots - 1)
        return torch.cat([seen, 2 * conditions.shares[:, order] - 1, room, which], dim=1)
