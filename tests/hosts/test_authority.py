"""The authority of a lab: what it keeps, what it hands out, and to whom."""

from __future__ import annotations

import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from payloads.wire.tls import AUTHORITY_FILE, BASE_STATION, CERTIFICATE_FILE, DEVICE, KEY_FILE
from testbed.config.inventory import Host
from testbed.errors import InputError, RefusedError
from testbed.hosts.authority import host_certificates, kept_authority, lab_authority, new_authority

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def test_it_is_made_once_and_for_its_owner_alone(tmp_path):
    folder = tmp_path / "data" / "authorities"
    first = kept_authority("rack", NOW, folder)
    again = kept_authority("rack", NOW + 300 * DAY, folder)
    other = kept_authority("other", NOW, folder)
    assert first.certificate == again.certificate
    assert first.certificate.public_key() != other.certificate.public_key()
    assert sorted(path.name for path in folder.iterdir()) == ["other", "rack"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "rack").iterdir()}
    assert modes == {KEY_FILE: 0o600, CERTIFICATE_FILE: 0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "rack")} == {0o700}


def test_two_that_need_it_at_once_get_the_same(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(kept_authority("rack", NOW, tmp_path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.certificate.serial_number for one in found}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rack"]


def test_what_is_wrong_is_said(tmp_path):
    place = tmp_path / "rack"
    kept_authority("rack", NOW, tmp_path)
    with pytest.raises(InputError, match=r"ends on 2036-04-28") as caught:
        kept_authority("rack", NOW + 3640 * DAY, tmp_path)
    assert f"rm -r {place}" in caught.value.hint
    (place / KEY_FILE).chmod(0o644)
    with pytest.raises(RefusedError, match="others may read the key") as refused:
        kept_authority("rack", NOW, tmp_path)
    assert refused.value.exit_code == 3
    (place / KEY_FILE).chmod(0o600)
    (place / KEY_FILE).write_bytes(new_authority("rack", NOW).files(host("a"), NOW)[KEY_FILE])
    with pytest.raises(InputError, match="damaged: its key and its certificate do not belong together"):
        kept_authority("rack", NOW, tmp_path)
    (place / CERTIFICATE_FILE).write_bytes(b"-----BEGIN nothing")
    with pytest.raises(InputError, match="the lab's authority is damaged"):
        kept_authority("rack", NOW, tmp_path)
    (place / CERTIFICATE_FILE).unlink()
    with pytest.raises(InputError, match="cannot keep the lab's authority here: No such file"):
        kept_authority("rack", NOW, tmp_path)


def host(name, role="device"):
    return Host(name=name, role=role, address="10.0.0.1")


@pytest.mark.parametrize(
    ("role", "uri", "usage"),
    [
        ("device", DEVICE, ExtendedKeyUsageOID.SERVER_AUTH),
        ("base_station", BASE_STATION, ExtendedKeyUsageOID.CLIENT_AUTH),
    ],
)
def test_a_host_gets_a_certificate_for_its_role_and_some_weeks(role, uri, usage):
    authority = new_authority("rack", NOW)
    # A name that is no host name is one all the same.
    files = authority.files(host("10.0..a_1", role), NOW)
    assert set(files) == {AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE}
    made = x509.load_pem_x509_certificate(files[CERTIFICATE_FILE])
    made.verify_directly_issued_by(authority.certificate)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["10.0..a_1"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
    usages = made.extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE)
    assert usages.critical
    assert list(usages.value) == [usage]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert made.not_valid_after_utc == NOW + 30 * DAY
    assert made.not_valid_before_utc.year == 1970, "boards do not know what time it is"
    late = authority.files(host("a"), NOW + 3640 * DAY)[CERTIFICATE_FILE]
    end = x509.load_pem_x509_certificate(late).not_valid_after_utc
    assert end == authority.certificate.not_valid_after_utc


def test_no_host_gets_the_authoritys_key_or_anothers(inventory, tmp_path):
    authority = kept_authority("two", NOW, tmp_path)
    files = host_certificates(authority, inventory, NOW)
    assert list(files) == ["bs", "left", "right"]
    keys = [contents[KEY_FILE] for contents in files.values()]
    own = (tmp_path / "two" / KEY_FILE).read_bytes()
    assert len({*keys, own}) == 4
    assert all(
        b"PRIVATE" not in contents[name]
        for contents in files.values()
        for name in contents
        if name != KEY_FILE
    )


def test_only_a_lab_over_tls_has_one(inventory, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    plain = inventory.model_copy(
        update={"network": inventory.network.model_copy(update={"security": "plain"})}
    )
    assert lab_authority(plain) is None
    assert not list(tmp_path.glob("testbed/*"))
    assert lab_authority(inventory) is not None
    assert (tmp_path / "testbed" / "authorities" / "two" / KEY_FILE).is_file()


@pytest.fixture
def inventory(tmp_path):
    from testbed.config.inventory import load_inventory

    path = tmp_path / "two.yaml"
    path.write_text(
        "lab: two\nhosts:\n  bs: {role: base_station, address: 10.0.0.1}\n"
        "  left: {role: device, address: 10.0.0.2}\n  right: {role: device, address: 10.0.0.3}\n"
    )
    return load_inventory(path)
