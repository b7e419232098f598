"""The public-domain text that tiny-mixtral is trained on, decoded from two Debian packages.

* ``r-cran-janeaustenr``: six novels of Jane Austen, stored as an R lazy-load database.
* ``sword-text-web``: the World English Bible, stored as a SWORD zText module of OSIS markup.

The packages are downloaded and unpacked into a folder; nothing is installed.
"""

from __future__ import annotations

import gzip
import html
import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK_CHARS = 20_000
HELD_OUT_EVERY = 20  # every 20th block of a source, so 5 %

AUSTEN = "r-cran-janeaustenr"
BIBLE = "sword-text-web"


@dataclass(frozen=True)
class Source:
    """One source's text, split for good into a training and a held-out part."""

    name: str
    train: str
    held_out: str


def load_corpus(cache: Path) -> list[Source]:
    """Return both sources, downloading the Debian packages into ``cache`` if they are not there."""
    austen = read_lazy_load(unpack(AUSTEN, cache) / "usr/lib/R/site-library/janeaustenr/data/Rdata")
    bible = read_ztext(unpack(BIBLE, cache) / "usr/share/sword/modules/texts/ztext/engWEB2015eb")
    return [
        split_held_out("austen", "\n\n\n".join(novel_text(lines) for lines in austen)),
        split_held_out("web-bible", "\n\n\n".join(bible)),
    ]


def unpack(package: str, cache: Path) -> Path:
    """Download a Debian package and unpack it under ``cache``, once."""
    target = cache / package
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"fetching the Debian package {package}", flush=True)
        subprocess.run(["apt-get", "download", "-q", package], cwd=cache, check=True)
        (deb,) = cache.glob(f"{package}_*.deb")
        partial = cache / f"{package}.part"
        subprocess.run(["dpkg-deb", "-x", str(deb), str(partial)], check=True)
        partial.rename(target)
    return target


def split_held_out(name: str, text: str) -> Source:
    """Hold out every 20th block of about 20,000 characters, cut at paragraph ends."""
    blocks: list[list[str]] = [[]]
    size = 0
    for paragraph in text.split("\n\n"):
        blocks[-1].append(paragraph)
        size += len(paragraph)
        if size >= BLOCK_CHARS:
            blocks.append([])
            size = 0
    texts = ["\n\n".join(block).strip("\n") for block in blocks if block]
    held = texts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    kept = [text for i, text in enumerate(texts) if (i + 1) % HELD_OUT_EVERY]
    return Source(name, "\n\n".join(kept), "\n\n".join(held))


def read_lazy_load(stem: Path) -> Iterator[list[str]]:
    """Yield the character vectors of an R lazy-load database (``stem.rdx`` and ``stem.rdb``)."""
    index = gzip.decompress(stem.with_suffix(".rdx").read_bytes())
    data = stem.with_suffix(".rdb").read_bytes()
    # Each variable is an INTSXP of two: offset and length in the .rdb file.
    for match in re.finditer(rb"\x00\x00\x00\r\x00\x00\x00\x02(.{8})", index, re.DOTALL):
        offset, length = struct.unpack(">II", match[1])
        (size,) = struct.unpack(">I", data[offset : offset + 4])
        body = zlib.decompress(data[offset + 4 : offset + length])
        if len(body) != size:
            raise ValueError(f"{stem}.rdb: {len(body)} bytes at {offset}, {size} expected")
        yield list(read_character_vector(body))


def read_character_vector(body: bytes) -> Iterator[str]:
    """Yield the strings of a serialised STRSXP (R Internals, "Serialization Formats", XDR)."""
    (version,) = struct.unpack_from(">i", body, 2)
    at = 14
    if version == 3:
        (encoding_bytes,) = struct.unpack_from(">i", body, at)
        at += 4 + encoding_bytes
    flags, count = struct.unpack_from(">ii", body, at)
    if flags & 0xFF != 16:
        raise ValueError(f"an R character vector was expected, not type {flags & 0xFF}")
    at += 8
    for _ in range(count):
        _, length = struct.unpack_from(">ii", body, at)
        at += 8
        yield body[at : at + max(length, 0)].decode()
        at += max(length, 0)


def novel_text(lines: list[str]) -> str:
    """Join a novel's printed lines into paragraphs."""
    paragraphs = re.split(r"\n{2,}", "\n".join(line.strip() for line in lines))
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs if paragraph)


def read_ztext(module: Path) -> Iterator[str]:
    """Yield the books of a SWORD zText module as plain paragraphs."""
    for testament in ("ot", "nt"):
        index = (module / f"{testament}.bzs").read_bytes()
        data = (module / f"{testament}.bzz").read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", index):
            if size:
                yield osis_text(zlib.decompress(data[offset : offset + size]).decode(errors="replace"))


def osis_text(markup: str) -> str:
    """Reduce OSIS markup to paragraphs: no notes, titles, lemmas or verse numbers."""
    text = re.sub(r"<(note|title|list|item)\b[^>]*?(?<!/)>.*?</\1>", "", markup, flags=re.DOTALL)
    text = re.sub(r"<(?:chapter|div [^>]*sID=\"gen\d+\" type=\"x-p\")[^>]*>", "\n\n", text)
    text = re.sub(r"<[^>]+>", "", text)
    text = html.unescape(text).replace("\x00", " ")
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n{2,}", text))
    joined = "\n\n".join(part for part in paragraphs if part)
    return re.sub(r" ([,.;:!?])", r"\1", joined)
