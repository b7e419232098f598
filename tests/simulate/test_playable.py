"""What the simulator cannot play is refused by its key, before anything is simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.config.campaign import load_campaign
from testbed.errors import InputError
from testbed.simulate.playable import check_playable

CAMPAIGN = """\
campaign: first
inventory: lab.yaml
model: tiny-mixtral
prompts:
  file: prompts.jsonl
policies:
  - name: two
    selection: {kind: top_k, k: 2}
scenarios:
  - name: even
    links:
      default: {downlink_mbit: 8, uplink_mbit: 8}
"""
REFUSED = {
    "several requests at once": (
        "  - name: even\n",
        "    concurrency: 4\n",
        "run.yaml:11: scenarios[0].concurrency: a simulation answers one request at a time, not 4",
    ),
    "a lost device": (
        "    selection: {kind: top_k, k: 2}\n",
        "    on_loss: {kind: drop}\n",
        "run.yaml:9: policies[0].on_loss.kind: no device is lost in a simulation, so that `drop` cannot be played",
    ),
    "through the HTTP interface": (
        "  file: prompts.jsonl\n",
        "  through: api\n",
        "run.yaml:6: prompts.through: a simulation has no HTTP interface to ask through",
    ),
    "prompts in pieces": (
        "  file: prompts.jsonl\n",
        "  prefill_chunk_tokens: 64\n",
        "run.yaml:6: prompts.prefill_chunk_tokens: a simulation reads each prompt in one pass",
    ),
    "a deadline": (
        "  file: prompts.jsonl\n",
        "  request_deadline_s: 5\n",
        "run.yaml:6: prompts.request_deadline_s: a simulation cuts no request off",
    ),
}


def written(folder: Path, text: str) -> Path:
    (folder / "prompts.jsonl").write_text('{"id": "p1", "text": "so"}\n')
    (folder / "run.yaml").write_text(text)
    return folder / "run.yaml"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_played_is_refused_by_its_key(tmp_path: Path, name: str) -> None:
    after, line, message = REFUSED[name]
    campaign = load_campaign(written(tmp_path, CAMPAIGN.replace(after, after + line)))
    with pytest.raises(InputError) as caught:
        check_playable(campaign)
    assert str(caught.value).endswith(message)


def test_what_says_no_more_than_the_defaults_is_played(tmp_path: Path) -> None:
    text = CAMPAIGN.replace("  - name: even\n", "  - name: even\n    concurrency: 1\n")
    text = text.replace("k: 2}\n", "k: 2}\n    on_loss: {kind: fail}\n    activations: int8\n")
    check_playable(load_campaign(written(tmp_path, text)))
