"""The payload code as one archive, named by the hash of its content."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

__all__ = ["PayloadCode", "code_digest", "load_payload_code"]


@dataclass(frozen=True)
class PayloadCode:
    """The code that runs on the hosts.

    Attributes:
        digest: The first 16 digits of the hash over all names and contents.
        files: The files' content by their path, such as ``payloads/wire/frames.py``.
    """

    digest: str
    files: Mapping[str, bytes] = field(repr=False)

    @cached_property
    def archive(self) -> bytes:
        """A tar.gz of the files; the same files always give the same bytes."""
        buffer = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name in sorted(self.files):
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(self.files[name]), 0o644
                tar.addfile(info, io.BytesIO(self.files[name]))
        return buffer.getvalue()


def code_digest(files: Mapping[str, bytes]) -> str:
    """Return the hash over names and contents, as the probe on a host computes it over a folder."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def load_payload_code(root: Path | None = None) -> PayloadCode:
    """Return the payload code as it is on this machine.

    Args:
        root: The folder ``payloads``; the one that is imported here where left out.
    """
    if root is None:
        import payloads

        root = Path(payloads.__path__[0])
    files = {
        f"payloads/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*.py"))
    }
    return PayloadCode(code_digest(files), files)
