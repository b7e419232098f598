"""Pairs of images: one image for each user, all of them different within a pair."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.config.broadcast import ImageSet
from testbed.errors import InputError
from testbed.semcast.images import held_out

__all__ = ["Pairs", "image_of", "pairs_of", "sets_of"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of one set.

    Attributes:
        set: The set's name in the records.
        names: (P, U), what each image is called.
        pixels: (P, U, H, W, 3), uint8.
    """

    set: str
    names: tuple[tuple[str, ...], ...]
    pixels: NDArray[np.uint8]

    @property
    def digest(self) -> str:
        """The sha256 of all pixels, in hexadecimal."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes()).hexdigest()

    def name(self, pair: int) -> str:
        """Return what a pair is called in the records."""
        return " + ".join(self.names[pair])


def pairs_of(images: ImageSet, users: int) -> Pairs:
    """Return the pairs that a campaign asks for of one set.

    Args:
        images: What it asks for.
        users: How many images a pair has.

    Raises:
        InputError: The set cannot be read, or has too few images.
    """
    # Shipped sets are small, and whole they are in an order in which no pair has one picture twice.
    found = held_out(images.set, images.folder, most=images.pairs * users if images.folder else None)
    count = len(found.names)
    if count < max(images.pairs, users):
        raise InputError(
            f"{images.called}: {images.pairs} pairs for {users} users were asked for, and the set has {count} images",
            hint=f"ask for {count} pairs at most" if count >= users else "",
        )
    chosen = [[image_of(pair, user, users, count) for user in range(users)] for pair in range(images.pairs)]
    names = tuple(tuple(found.names[number] for number in row) for row in chosen)
    return Pairs(images.called, names, np.ascontiguousarray(found.pixels[np.array(chosen)]))


def image_of(pair: int, user: int, users: int, images: int) -> int:
    """Return the number of a user's image in a pair.

    Neighbours in a set may be parts of one picture, and so may images half a set apart: users are a little more than
    their part of the set away from each other, where it is large enough for that.

    Args:
        pair: The pair's number, below ``images``.
        user: The user, from 0.
        users: How many users there are, at most ``images``.
        images: How many images the set has.
    """
    apart = images // users
    if (apart + 1) * (users - 1) < images:
        apart += 1
    return (pair + user * apart) % images


def sets_of(images: Iterable[ImageSet], users: int) -> dict[str, Pairs]:
    """Return the pairs of several sets, by the sets' names."""
    return {one.called: pairs_of(one, users) for one in images}
