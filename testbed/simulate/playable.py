"""What of a campaign the simulator cannot play: it is refused, rather than simulated as if it were not there."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.artifacts.weights import has_weights, require_tokenizer
from testbed.config.campaign import Campaign
from testbed.config.yaml import Place

__all__ = ["check_playable"]


def check_playable(campaign: Campaign) -> None:
    """Refuse a campaign that asks for what the simulator does not know of.

    Args:
        campaign: The campaign.

    Raises:
        InputError: It does; one line for each key. Or nobody could read its prompts to the model.
    """
    problems = list(_problems(campaign))
    if problems:
        raise campaign.mistake(*problems)
    if has_weights(campaign.model):
        require_tokenizer(campaign.model)


def _problems(campaign: Campaign) -> Iterator[tuple[Place, str]]:
    for number, scenario in enumerate(campaign.scenarios):
        if scenario.concurrency > 1:
            place: Place = ("scenarios", number, "concurrency")
            yield place, f"a simulation answers one request at a time, not {scenario.concurrency}"
    for number, policy in enumerate(campaign.policies):
        if policy.on_loss is not None and policy.on_loss.kind != "fail":
            place = ("policies", number, "on_loss", "kind")
            yield (
                place,
                f"no device is lost in a simulation, so that `{policy.on_loss.kind}` cannot be played",
            )
    prompts = campaign.prompts
    if prompts.through == "api":
        yield ("prompts", "through"), "a simulation has no HTTP interface to ask through"
    if prompts.prefill_chunk_tokens is not None:
        yield ("prompts", "prefill_chunk_tokens"), "a simulation reads each prompt in one pass"
    if prompts.request_deadline_s is not None:
        yield ("prompts", "request_deadline_s"), "a simulation cuts no request off"
