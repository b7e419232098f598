from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testbed.errors import InputError
from testbed.semcast.images import held_out, images_folder
from testbed.semcast.pairs import image_of


def noisy(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("name", "count", "side"), [("natural-128", 24, 128), ("natural-32", 48, 32)])
def test_the_shipped_sets(name: str, count: int, side: int) -> None:
    found = held_out(name)
    assert found.pixels.shape == (count, side, side, 3)
    assert found.pixels.dtype == np.uint8
    assert len(set(found.names)) == count
    # Neighbours are of different pictures, and so are the images of a pair.
    pictures = [item.partition("-")[2] for item in found.names]
    assert all(one != other for one, other in itertools.pairwise(pictures))
    places = [(image_of(pair, 0, 2, count), image_of(pair, 1, 2, count)) for pair in range(count)]
    assert all(pictures[first] != pictures[second] for first, second in places)
    assert np.array_equal(held_out(name, most=5).pixels, found.pixels[:5])
    assert (images_folder() / "LICENCES.md").is_file()


def test_cifar_10(tmp_path: Path) -> None:
    images = noisy(3, 32, 32, 3)
    rows = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for label, image in enumerate(images)]
    (tmp_path / "test_batch.bin").write_bytes(b"".join(rows))
    found = held_out("cifar-10", tmp_path)
    assert np.array_equal(found.pixels, images)
    assert found.names == ("test-00000", "test-00001", "test-00002")
    assert np.array_equal(held_out("cifar-10", tmp_path, most=2).pixels, images[:2])


def test_stl_10(tmp_path: Path) -> None:
    images = noisy(2, 96, 96, 3)
    (tmp_path / "test_X.bin").write_bytes(b"".join(image.transpose(2, 1, 0).tobytes() for image in images))
    assert np.array_equal(held_out("stl-10", tmp_path).pixels, images)


@pytest.mark.parametrize(
    ("name", "file", "data", "expected"),
    [
        (
            "cifar-10",
            "test_batch.bin",
            b"\0" * 3074,
            "3074 bytes are no whole number of images of 3073 bytes",
        ),
        ("stl-10", "test_X.bin", b"", "0 bytes are no whole number of images of 27648 bytes"),
        ("cifar-10", "elsewhere", b"", "test_batch.bin: cannot be read: No such file"),
        ("celeba", "list_eval_partition.txt", b"1.jpg 0\n2.jpg\n", r"txt:2: .* number of a partition"),
        ("celeba", "list_eval_partition.txt", b"../1.jpg 2\n", r"txt:1: .* number of a partition"),
        ("celeba", "list_eval_partition.txt", b"1.jpg 0\n", "no picture of the test partition"),
        ("celeba", "list_eval_partition.txt", b"1.jpg 2\n", r"1\.jpg: cannot be read as a picture"),
        ("celeba", "elsewhere", b"", "partitions cannot be read"),
        ("folder", "notes.txt", b"", "no picture is there"),
        ("folder", "a.png", b"\x89PNG\r\n\x1a\nnothing", r"a\.png: cannot be read as a picture"),
    ],
)
def test_a_set_that_is_not_whole_is_refused(
    name: str, file: str, data: bytes, expected: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(data)
    with pytest.raises(InputError, match=expected):
        held_out(name, tmp_path)


def test_celeba(tmp_path: Path) -> None:
    (tmp_path / "img_align_celeba").mkdir()
    wide = np.zeros((64, 96, 3), dtype=np.uint8)
    wide[:, 16:80] = (200, 100, 50)
    for name in ("000001.png", "000002.png", "000003.png"):
        Image.fromarray(wide).save(tmp_path / "img_align_celeba" / name)
    (tmp_path / "list_eval_partition.txt").write_text("000001.png 0\n000002.png 2\n000003.png 2\n")
    found = held_out("celeba", tmp_path)
    assert found.names == ("000002.png", "000003.png")
    # The middle square and nothing of what is beside it.
    assert found.pixels.shape == (2, 128, 128, 3)
    assert np.all(found.pixels[:, 2:-2, 2:-2] == (200, 100, 50))


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    Image.fromarray(noisy(40, 30, 3)).save(tmp_path / "b.png")
    Image.fromarray(noisy(20, 20)).save(tmp_path / "a.JPG", format="JPEG")
    (tmp_path / "notes.txt").write_text("none")
    found = held_out("folder", tmp_path)
    assert found.names == ("a.JPG", "b.png")
    assert found.pixels.shape == (2, 128, 128, 3)


@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("natural-64", None, "one of natural-128, natural-32, cifar-10, stl-10, celeba, folder was expected"),
        ("cifar-10", None, "needs the `folder`"),
        ("natural-32", Path("/"), "no folder was expected"),
        ("folder", Path("/nowhere"), "/nowhere: no folder is there"),
    ],
)
def test_a_set_that_is_none_is_refused(name: str, folder: Path | None, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        held_out(name, folder)
