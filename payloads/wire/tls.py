"""TLS 1.3 of a fleet: who may speak to whom, as contexts of :mod:`ssl`, and why a handshake failed in plain words.

Every host holds three files, made by the lab's authority at each deploy: the authority's certificate, its own one, and
that one's key. Both ends show a certificate. A device's names the device and is good for answering only; the base
station's is good for asking only, and carries its role. So no device passes for another one, or for the base station.
There are no tickets: every connection makes the whole handshake, and nothing that was recorded opens one.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from payloads.wire.auth import AuthError

__all__ = [
    "AUTHORITY_FILE",
    "BASE_STATION",
    "CERTIFICATE_FILE",
    "DEVICE",
    "KEY_FILE",
    "TlsFolder",
    "check_identity",
    "refusal",
]

AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE = "authority.pem", "certificate.pem", "key.pem"
#: The roles, as URIs among a certificate's alternative names.
BASE_STATION, DEVICE = "testbed:base-station", "testbed:device"

_NO_TLS = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "UNSUPPORTED_PROTOCOL",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
}
_REFUSED = {
    "CERTIFICATE_REQUIRED": "it wants a certificate",
    "UNKNOWN_CA": "it does not know our certificate's authority; was it deployed by another fleet's?",
    "CERTIFICATE_EXPIRED": "our certificate has expired; deploy again",
    "UNSUPPORTED_CERTIFICATE": "our certificate is not for this end of a connection",
    "BAD_CERTIFICATE": "it does not accept our certificate",
    "CERTIFICATE_UNKNOWN": "it does not accept our certificate",
}


class TlsFolder:
    """The three files of a host; they are read again where they have changed, since a new deploy brings new ones.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._contexts: Dict[bool, Tuple[Tuple[int, ...], ssl.SSLContext]] = {}

    def context(self, *, server_side: bool) -> ssl.SSLContext:
        """Return the context for one end of a connection.

        Raises:
            AuthError: A file cannot be read, holds something else, or others may read the key.
        """
        stamps = self._stamps()
        known = self._contexts.get(server_side)
        if known is None or known[0] != stamps:
            known = stamps, self._made(server_side)
            self._contexts[server_side] = known
        return known[1]

    def _stamps(self) -> Tuple[int, ...]:
        stamps = []
        for name in (AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE):
            path = self.folder / name
            try:
                found = path.stat()
            except OSError as error:
                raise AuthError(f"cannot read {path}: {error.strerror}; deploy makes it") from error
            if name == KEY_FILE and found.st_mode & 0o077:
                raise AuthError(f"the key file {path} can be read by others: chmod 600 it")
            stamps += [found.st_mtime_ns, found.st_ino, found.st_size]
        return tuple(stamps)

    def _made(self, server_side: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = (
            False  # a name in the inventory need be no host name: check_identity looks at it
        )
        context.verify_mode = ssl.CERT_REQUIRED
        if server_side:
            context.num_tickets = 0
        try:
            context.load_verify_locations(str(self.folder / AUTHORITY_FILE))
            context.load_cert_chain(
                str(self.folder / CERTIFICATE_FILE), str(self.folder / KEY_FILE), _no_password
            )
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise AuthError(
                f"the certificates in {self.folder} are damaged: {error}; deploy again"
            ) from error
        return context


def check_identity(certificate: Mapping[str, Any], role: str, name: Optional[str] = None) -> None:
    """Make sure that a certificate, which its authority stands for, is that of a role, and of one host.

    Args:
        certificate: As :meth:`ssl.SSLObject.getpeercert` decodes it.
        role: :data:`BASE_STATION` or :data:`DEVICE`.
        name: The host's name in the inventory; ``None`` for any.

    Raises:
        AuthError: It is not.
    """
    names = certificate.get("subjectAltName", ())
    if ("URI", role) not in names:
        raise AuthError(f"its certificate is not that of a {role.partition(':')[2].replace('-', ' ')}")
    if name is not None and ("DNS", name) not in names:
        others = ", ".join(value for kind, value in names if kind == "DNS")
        raise AuthError(f"its certificate is that of {others or 'nobody'}, not of {name}")


def refusal(error: ssl.SSLError) -> str:
    """Return a few words on why a handshake failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {str(error.verify_message).rstrip('.')}"
    reason = str(error.reason or "")
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it shows no certificate"
    if reason in _NO_TLS:
        return "it does not speak TLS 1.3; is one end in plain mode?"
    alert = _alert(reason)
    if alert is not None:
        return _REFUSED.get(alert, f"it ended the handshake: {alert.lower().replace('_', ' ')}")
    return f"TLS: {reason.lower().replace('_', ' ') or error}"


def _alert(reason: str) -> Optional[str]:
    """Return the name of an alert of the other end, out of OpenSSL's name for the error."""
    _, found, name = reason.partition("_ALERT_")
    return name if found else None


def _no_password() -> str:
    """Refuse an encrypted key; OpenSSL would ask on a terminal."""
    raise ValueError("the key is encrypted")
