"""The authority of a lab: it certifies the hosts for the data plane, at each deploy anew.

Its key is made at the first need and stays in the controller's own folder; hosts get its certificate, and one of their
own with its key. Theirs are good for some weeks, so that what is left on a board after an experiment becomes useless.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from payloads.wire.tls import AUTHORITY_FILE, BASE_STATION, CERTIFICATE_FILE, DEVICE, KEY_FILE
from testbed.config.folders import data_folder
from testbed.config.inventory import Host, Inventory
from testbed.errors import InputError, RefusedError

if TYPE_CHECKING:  # testbed --help need not wait for it
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

__all__ = ["Authority", "host_certificates", "kept_authority", "lab_authority", "new_authority"]

HOST_DAYS = 30
AUTHORITY_DAYS = 3650
#: Since when everything is good: a board without a battery, in a rack without a time server, may believe anything. What
#: counts is the end.
ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Authority:
    """What certifies the hosts of one lab.

    Attributes:
        certificate: Its certificate, which every host knows.
        key: Its key, which no host ever sees.
    """

    certificate: Certificate
    key: EllipticCurvePrivateKey

    def files(self, host: Host, now: datetime) -> dict[str, bytes]:
        """Return the files that a host is to hold, by name: the authority's certificate, its own one, and its key.

        Args:
            host: The host; what its certificate is good for follows from its role.
            now: The time, from which on its weeks count.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

        key = ec.generate_private_key(ec.SECP256R1())
        role, usage = (DEVICE, Usage.SERVER_AUTH) if host.is_device else (BASE_STATION, Usage.CLIENT_AUTH)
        names = x509.SubjectAlternativeName([x509.DNSName(host.name), x509.UniformResourceIdentifier(role)])
        # Never longer than the authority itself; then no host holds what nobody stands for.
        end = min(now + timedelta(days=HOST_DAYS), self.certificate.not_valid_after_utc)
        builder = (
            _builder(host.name, self.certificate.subject, key, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(names, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        certificate = builder.sign(self.key, hashes.SHA256())
        return {
            AUTHORITY_FILE: _pem(self.certificate),
            CERTIFICATE_FILE: _pem(certificate),
            KEY_FILE: _key_pem(key),
        }


def host_certificates(
    authority: Authority, inventory: Inventory, now: datetime
) -> dict[str, dict[str, bytes]]:
    """Return the files of every host of a lab, by its name."""
    return {name: authority.files(host, now) for name, host in inventory.hosts.items()}


def new_authority(lab: str, now: datetime) -> Authority:
    """Return a new authority that is kept nowhere."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    # A number of its own: the certificates of a new authority must not look like those of the one before.
    name = f"testbed authority of {lab[:32]} {secrets.token_hex(4)}"
    builder = (
        _builder(name, None, key, now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def lab_authority(inventory: Inventory) -> Authority | None:
    """Return the authority of a lab whose data plane is over TLS; it is made where there is none yet."""
    if inventory.network.security != "tls":
        return None
    return kept_authority(inventory.lab, datetime.now(UTC), data_folder() / "authorities")


def kept_authority(lab: str, now: datetime, folder: Path) -> Authority:
    """Return a lab's authority out of a folder; it is made where there is none yet.

    Args:
        lab: The lab's name.
        now: The time.
        folder: Where authorities are kept.

    Raises:
        InputError: Its files are damaged, cannot be written, or it has had its time.
        RefusedError: Others may read its key.
    """
    place = folder / lab
    try:
        if not place.exists():
            _keep(new_authority(lab, now), place)
        found = _kept(place)
    except OSError as error:
        raise InputError(f"{place}: cannot keep the lab's authority here: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{place}: the lab's authority is damaged: {error}", hint=_renew(place)) from error
    if found.certificate.not_valid_after_utc < now + timedelta(days=HOST_DAYS):
        end = found.certificate.not_valid_after_utc
        raise InputError(f"{place}: the lab's authority ends on {end:%Y-%m-%d}", hint=_renew(place))
    return found


def _keep(authority: Authority, place: Path) -> None:
    """Write an authority's files, all of them or none; one that somebody else wrote meanwhile stays."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    part.mkdir(mode=0o700)
    try:
        for name, content in (
            (KEY_FILE, _key_pem(authority.key)),
            (CERTIFICATE_FILE, _pem(authority.certificate)),
        ):
            descriptor = os.open(part / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(content)
        try:
            part.rename(place)
        except OSError:
            if not place.exists():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _kept(place: Path) -> Authority:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    for path in (place, place / KEY_FILE):
        if path.stat().st_mode & 0o077:
            raise RefusedError(
                f"{path}: others may read the key of the lab's authority", hint=f"chmod -R go= {place}"
            )
    key = load_pem_private_key((place / KEY_FILE).read_bytes(), password=None)
    certificate = x509.load_pem_x509_certificate((place / CERTIFICATE_FILE).read_bytes())
    if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("its key and its certificate do not belong together")
    return Authority(certificate, key)


def _renew(place: Path) -> str:
    return f"rm -r {place}; the next deploy makes a new one and certifies all hosts again"


def _builder(
    name: str, issuer: x509.Name | None, key: EllipticCurvePrivateKey, end: datetime
) -> x509.CertificateBuilder:
    """Return what all certificates begin with; without an issuer, one that stands for itself."""
    from cryptography import x509

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:64])])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ALWAYS)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
