"""Secrets of a lab: SSH keys for its client and each host, a password for sudo. New at each start, never kept."""

from __future__ import annotations

import secrets
import subprocess
from typing import Any

from testbed.emulation.spec import LabSpec
from testbed.errors import TestbedError

__all__ = ["NO_PASSWORD", "lab_keys", "new_key", "new_password"]

NO_PASSWORD = {"plain": "", "hash": "*"}


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


def new_password() -> dict[str, str]:
    """Return a new password as ``plain`` text, and its ``hash`` as in ``/etc/shadow``.

    Raises:
        TestbedError: The program ``openssl`` cannot be run.
    """
    plain = secrets.token_urlsafe(12)
    try:
        # Through standard input, since everybody can read a command line.
        done = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"],
            input=plain,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise TestbedError(f"openssl made no password for users of sudo: {error}") from error
    return {"plain": plain, "hash": done.stdout.strip()}


def lab_keys(spec: LabSpec) -> dict[str, Any]:
    """Return the keys of a lab: ``client``, ``hosts`` by name, and the ``password`` of ordinary users."""
    return {
        "password": new_password() if any(host.sudo == "password" for host in spec.hosts) else NO_PASSWORD,
        "client": new_key(f"testbed-{spec.lab}"),
        "hosts": {host.name: new_key(f"{host.name}@{spec.lab}") for host in spec.hosts},
    }
