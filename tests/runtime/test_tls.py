"""The data plane over TLS with a lab's own authority: a trial, and the files that a deploy leaves."""

from __future__ import annotations

import pytest

from payloads.wire.auth import AuthError
from payloads.wire.client import DeviceLostError
from payloads.wire.connection import record_bytes
from payloads.wire.tls import CERTIFICATE_FILE, KEY_FILE
from tests.runtime import tls_fleet
from tests.runtime.tls_fleet import BS, NOW, ORIN, Fleet, connect, still_serves

exchange, fleet, start = tls_fleet.exchange, tls_fleet.fleet, tls_fleet.start


def test_a_trial_over_tls_says_the_same_and_counts_what_is_on_the_wire(make_lab):
    """A base station and three workers: the same text as without TLS, and every byte of a record explained."""
    texts, tables = {}, {}
    for tls in (False, True):
        lab = make_lab(tls=tls)
        station = lab.station()
        result, tables[tls], texts[tls] = lab.run(station)
        for channel, (out, back) in station._devices.traffic().items():
            mine = [row for row in tables[tls] if row["device"] == channel.name]
            control = result["control_bytes"][channel.name]
            assert control["out"] + sum(row["bytes_out"] for row in mine) == out
            assert control["back"] + sum(row["bytes_back"] for row in mine) == back
    assert texts[True] == texts[False]
    for plain, secured in zip(tables[False], tables[True], strict=True):
        for side in ("bytes_out", "bytes_back"):
            assert secured[side] == record_bytes(plain[side])


def test_a_new_deploy_is_noticed_without_a_restart(start, exchange, fleet):
    device = fleet.certificate(ORIN)
    port = start(device)
    still_serves(exchange, port, fleet)
    other = Fleet(fleet.folder)
    for name, content in other.authority.files(ORIN, NOW).items():
        (device.files.folder / name).write_bytes(content)
    with pytest.raises(DeviceLostError):
        connect(exchange, port, fleet.certificate(BS))
    still_serves(exchange, port, other)


def test_what_is_wrong_with_the_files_is_said(fleet):
    certificate = fleet.certificate(ORIN)
    folder = certificate.files.folder
    certificate.check()
    (folder / KEY_FILE).chmod(0o640)
    with pytest.raises(AuthError, match=r"key\.pem can be read by others: chmod 600 it"):
        certificate.check()
    (folder / KEY_FILE).chmod(0o600)
    (folder / KEY_FILE).write_bytes(fleet.authority.files(ORIN, NOW)[KEY_FILE])
    with pytest.raises(AuthError, match=r"are damaged: .*; deploy again"):
        certificate.check()
    (folder / CERTIFICATE_FILE).unlink()
    with pytest.raises(
        AuthError, match=r"cannot read .*certificate\.pem: No such file or directory; deploy makes it"
    ):
        certificate.check()
