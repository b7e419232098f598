"""Who is refused over TLS, what the log says of it, and that everybody else is served on. Real sockets on loopback."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from payloads.wire import server
from payloads.wire.auth import AuthError
from payloads.wire.client import DeviceLostError, Request
from payloads.wire.connection import MAX_HANDSHAKE_BYTES
from payloads.wire.credentials import PlainKey
from payloads.wire.header import HEADER, MAGIC, PROTOCOL_VERSION, Kind, pack_header
from payloads.wire.tls import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE
from testbed.hosts.authority import Authority, new_authority
from tests.runtime import tls_fleet
from tests.runtime.tls_fleet import BS, NOW, ORIN, connect, echoed, gone, mixed, named, still_serves

exchange, fleet, start = tls_fleet.exchange, tls_fleet.fleet, tls_fleet.start


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("another fleet's", "certificate is not accepted: "),
        ("expired", "certificate is not accepted: certificate has expired"),
        (
            "a device",
            "certificate is not accepted: unsuitable certificate purpose|unsupported certificate purpose",
        ),
    ],
)
def test_a_client_that_does_not_belong_is_refused(start, exchange, fleet, capsys, who, reason):
    certificate = {
        "another fleet's": lambda: mixed(fleet, fleet.certificate(BS, by=new_authority("rack", NOW))),
        "expired": lambda: fleet.certificate(BS, now=NOW - timedelta(days=31)),
        "a device": lambda: fleet.certificate(ORIN),
    }[who]()
    port = start()
    with pytest.raises(DeviceLostError, match=r"device orin lost: handshake with 127\.0\.0\.1:\d+: "):
        connect(exchange, port, certificate)
    still_serves(exchange, port, fleet)
    log = capsys.readouterr().err
    assert any(option in log for option in reason.split("|")), log
    assert log.count("refused: ") == 1


def test_a_client_without_a_certificate_is_refused(start, exchange, fleet, capsys):
    port = start()
    context = fleet.certificate(BS).files.context(server_side=False)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(str(fleet.certificate(BS).files.folder / AUTHORITY_FILE))
    assert context.verify_mode == ssl.CERT_REQUIRED
    with socket.create_connection(("127.0.0.1", port), 5) as raw, bare.wrap_socket(raw) as connection:
        assert gone(connection)
    still_serves(exchange, port, fleet)
    assert "refused: it shows no certificate" in capsys.readouterr().err


def test_older_tls_is_refused(start, exchange, fleet, capsys):
    port = start()
    folder = fleet.certificate(BS).files.folder
    older = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    older.check_hostname = False
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    older.load_verify_locations(str(folder / AUTHORITY_FILE))
    older.load_cert_chain(str(folder / CERTIFICATE_FILE), str(folder / KEY_FILE))
    with socket.create_connection(("127.0.0.1", port), 5) as raw, pytest.raises(ssl.SSLError):
        older.wrap_socket(raw)
    still_serves(exchange, port, fleet)
    assert "refused: it does not speak TLS 1.3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("another device", "its certificate is that of nano, not of orin"),
        (
            "a base station",
            "certificate is not accepted: unsuitable certificate purpose|unsupported certificate purpose",
        ),
        ("another fleet's", "certificate is not accepted: "),
    ],
)
def test_a_server_that_does_not_belong_is_refused(start, exchange, fleet, who, reason):
    certificate = {
        "another device": lambda: fleet.certificate(named(ORIN, "nano")),
        "a base station": lambda: fleet.certificate(named(BS, "orin")),
        "another fleet's": lambda: fleet.certificate(ORIN, by=new_authority("rack", NOW)),
    }[who]()
    with pytest.raises(DeviceLostError) as caught:
        connect(exchange, start(certificate), fleet.certificate(BS))
    assert any(option in str(caught.value) for option in reason.split("|")), caught.value


def test_a_certificate_of_the_fleet_without_the_role_is_not_enough(start, exchange, fleet, capsys):
    """Good for asking and signed by the authority, but not the base station's."""
    from payloads.wire import tls
    from testbed.hosts import authority

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authority, "BASE_STATION", tls.DEVICE)
        odd = fleet.certificate(BS)
    port = start()
    with pytest.raises(DeviceLostError):
        connect(exchange, port, odd)
    assert "refused: its certificate is not that of a base station" in capsys.readouterr().err
    still_serves(exchange, port, fleet)


def test_a_device_certifies_nobody(start, exchange, fleet, capsys):
    """A board that was taken over signs a base station's certificate with its own."""
    device = fleet.certificate(ORIN).files.folder
    board = Authority(
        x509.load_pem_x509_certificate((device / CERTIFICATE_FILE).read_bytes()),
        load_pem_private_key((device / KEY_FILE).read_bytes(), None),
    )
    forged = mixed(fleet, fleet.certificate(BS, by=board))
    with (forged.files.folder / CERTIFICATE_FILE).open("ab") as chain:
        chain.write((device / CERTIFICATE_FILE).read_bytes())
    port = start()
    with pytest.raises(DeviceLostError):
        connect(exchange, port, forged)
    still_serves(exchange, port, fleet)
    log = capsys.readouterr().err
    assert "certificate is not accepted: invalid CA certificate" in log, log


def test_a_key_alone_opens_nothing(start, exchange, fleet, tmp_path, capsys):
    (tmp_path / "key").write_text("11" * 32)
    (tmp_path / "key").chmod(0o600)
    port = start()
    with pytest.raises(DeviceLostError):
        connect(exchange, port, PlainKey(tmp_path / "key"))
    assert "refused: it does not speak TLS 1.3; is one end in plain mode?" in capsys.readouterr().err
    with pytest.raises(DeviceLostError, match=r"plain mode|closed|left during"):
        connect(exchange, start(PlainKey(tmp_path / "key")), fleet.certificate(BS))
    still_serves(exchange, port, fleet)


class Tap:
    """A relay in front of a server that keeps what the client says."""

    def __init__(self, port: int) -> None:
        self.heard: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._relay, args=(port,))
        self.thread.start()

    def _relay(self, port: int) -> None:
        client, _ = self.listener.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as behind:
            while True:
                ready, _, _ = select.select([client, behind], [], [], 10)
                for one in ready:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    if one is client:
                        self.heard.append(data)
                    (behind if one is client else client).sendall(data)
                assert ready

    def close(self) -> list[bytes]:
        self.thread.join(10)
        self.listener.close()
        return self.heard


def test_a_replayed_handshake_opens_nothing(start, exchange, fleet, capsys):
    port = start()
    tap = Tap(port)
    channel = connect(exchange, tap.port, fleet.certificate(BS))
    echoed(exchange, channel, b"secret")
    exchange.disconnect(channel)
    heard = tap.close()
    assert len(heard) >= 3
    assert b"secret" not in b"".join(heard)
    for pace in (heard, [b"".join(heard)]):
        with socket.create_connection(("127.0.0.1", port), 5) as thief:
            for data in pace:
                try:
                    thief.sendall(data)
                    select.select([thief], [], [], 0.2)
                except ConnectionError:
                    break
            assert gone(thief)
    still_serves(exchange, port, fleet)
    log = capsys.readouterr().err
    assert log.count("refused: ") == 2
    assert log.count(" connected") == 2, "the honest client, and the one that looked afterwards"


@pytest.mark.parametrize(
    "data",
    [
        os.urandom(500),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + bytes(5),
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff" + bytes(100),
        HEADER.pack(MAGIC, PROTOCOL_VERSION, Kind.DISPATCH, 0xFFFFFFFF, 1),
    ],
    ids=["noise", "http", "long record", "long message", "4 GB frame"],
)
def test_noise_before_the_handshake_harms_nobody(start, exchange, fleet, data, capsys):
    port = start()
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert gone(connection)
    still_serves(exchange, port, fleet)
    assert capsys.readouterr().err.count("refused: ") == 1


def test_one_that_has_left_is_still_refused_by_its_reason(fleet):
    """Nobody is there any more to be told why, which is no reason to forget it."""
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(b"\x16\x03\x01\xff\xff" + bytes(5))  # a record longer than any, which is answered
        theirs.setblocking(False)
        with pytest.raises(AuthError, match=r"it does not speak TLS 1\.3"):
            fleet.certificate(ORIN).server(theirs).go_on()


def test_a_4_gb_length_field_of_a_known_client_closes_that_connection_alone(start, exchange, fleet, capsys):
    port = start()
    channel = connect(exchange, port, fleet.certificate(BS))
    other = connect(exchange, port, fleet.certificate(BS))
    with pytest.raises(DeviceLostError, match="connection closed"):
        exchange.ask(
            [Request(channel, 1, [HEADER.pack(MAGIC, PROTOCOL_VERSION, Kind.DISPATCH, 0xFFFFFFFF, 1)])],
            Kind.RESULT,
        )
    echoed(exchange, other, b"abc")
    assert "announces 4294967295 bytes, more than its limit" in capsys.readouterr().err


def test_the_silent_and_the_slow_are_put_out(start, exchange, fleet, monkeypatch, capsys):
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT_S", 1.0)
    port = start()
    with (
        socket.create_connection(("127.0.0.1", port), 5) as silent,
        socket.create_connection(("127.0.0.1", port), 5) as slow,
    ):
        slow.sendall(b"\x16\x03\x01\x02")
        still_serves(exchange, port, fleet)
        assert gone(silent)
        assert gone(slow)
    assert capsys.readouterr().err.count("no handshake in time") == 2


def test_a_handshake_without_end_is_ended(start, exchange, fleet, capsys):
    """A client hello of 98 KiB, which OpenSSL by itself would collect."""
    port = start()
    message = b"\x01" + (100_000).to_bytes(3, "big") + b"\x03\x03" + bytes(100_000)
    records = b"".join(b"\x16\x03\x01\x40\x00" + message[at : at + 16384] for at in range(0, 98_304, 16384))
    assert len(records) > 2 * MAX_HANDSHAKE_BYTES
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(records)
        assert gone(connection)
    still_serves(exchange, port, fleet)
    assert "refused: it sends more than a handshake" in capsys.readouterr().err


def test_a_changed_record_ends_the_connection(start, exchange, fleet, capsys):
    port = start()
    channel = connect(exchange, port, fleet.certificate(BS))
    connection = channel.connection
    connection._tls.write(pack_header(Kind.DISPATCH, 0, 1))
    record = bytearray(connection._outbox.read())
    record[-1] ^= 1
    connection.socket.send(record)
    assert gone(connection.socket)
    exchange.disconnect(channel)
    still_serves(exchange, port, fleet)
    assert "decryption failed" in capsys.readouterr().err
