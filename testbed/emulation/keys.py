"""SSH keys of a lab: one for its client and one for each host, new for each start, never kept."""

from __future__ import annotations

from typing import Any

from testbed.emulation.spec import LabSpec

__all__ = ["lab_keys", "new_key"]


def new_key(comment: str) -> dict[str, str]:
    """Return a new Ed25519 key pair in OpenSSH's formats, as ``private`` and ``public``."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return {"private": private, "public": f"{public} {comment}"}


def lab_keys(spec: LabSpec) -> dict[str, Any]:
    """Return the keys of a lab: ``client``, and ``hosts`` by name."""
    return {
        "client": new_key(f"testbed-{spec.lab}"),
        "hosts": {host.name: new_key(f"{host.name}@{spec.lab}") for host in spec.hosts},
    }
