"""Scripted hosts behind the real command line."""

import pytest
from typer.testing import CliRunner

from testbed.cli.main import app
from testbed.hosts.fake import FakeTransport
from testbed.hosts.steps import Command

INVENTORY = """
lab: two
network: {network}
hosts:
  bs: {{role: base_station, address: 10.0.0.1, python: {{manage: false}}}}
  left: {{role: device, address: 10.0.0.2, python: {{manage: false}}}}
  right: {{role: device, address: 10.0.0.3, python: {{manage: false}}}}
"""
CAMPAIGN = """
campaign: channels
inventory: two.yaml
model: {model}
prompts: {{file: prompts.jsonl}}
policies: [{{name: top-1, selection: {{kind: top_k, k: 1}}}}]
scenarios:
  - name: fading
    channel: {{model: shannon, bandwidth_mhz: 10, duration_s: 2, devices: {{default: {{snr_db: 15}}}}}}
  - name: even
    links: {{default: {{downlink_mbit: 8, uplink_mbit: 8}}}}
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Return what writes an inventory and scripts its hosts; the transports that were made are kept."""
    script = {"bs": [], "left": [], "right": []}
    made = {}

    def connect(host):
        made[host.name] = FakeTransport(host.name, script[host.name])
        return made[host.name]

    monkeypatch.setattr("testbed.hosts.ssh.ssh_connect", lambda *_args, **_kwargs: connect)

    def write(network="{}"):
        path = tmp_path / "two.yaml"
        path.write_text(INVENTORY.format(network=network))
        monkeypatch.setenv("TESTBED_INVENTORY", str(path))
        return path

    write.script, write.made = script, made
    write()
    return write


@pytest.fixture
def campaign(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"num_local_experts": 8}')
    (tmp_path / "prompts.jsonl").write_text('{"id": "p1", "text": "so it was"}\n')
    path = tmp_path / "channels.yaml"
    path.write_text(CAMPAIGN.format(model=tmp_path / "model"))
    return path


@pytest.fixture
def shape():
    """Return what runs `testbed shape` in this process."""
    return lambda *arguments: CliRunner().invoke(app, ["shape", *map(str, arguments)])


@pytest.fixture
def asked():
    """Return what tells the payload commands that a host was given."""

    def of(transport):
        commands = [step for step in transport.steps if isinstance(step, Command)]
        return [step.shell.rpartition("payloads.")[2] for step in commands]

    return of


@pytest.fixture
def link():
    """Return what makes a link as the daemon shows it."""

    def make(device, **changes):
        counts = {"bytes": 3000, "packets": 2, "drops": 1, "backlog_bytes": 0}
        return {
            "device": device,
            "downlink_mbit": 8.0,
            "uplink_mbit": 2.5,
            "delay_ms": 0.0,
            "jitter_ms": 0.0,
            "loss_percent": 0.0,
            "shares": {"downlink": 0.5, "uplink": 0.5},
            "backends": {"downlink": "bs-htb-tbf", "uplink": "bs-htb-tbf"},
            "downlink": counts,
            "uplink": counts,
            **changes,
        }

    return make
