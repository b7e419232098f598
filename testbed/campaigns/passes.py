"""The quality passes of a campaign: which policy is rated, and in which scenario. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from payloads.wdmoe.bs.spec import quality_name
from payloads.wdmoe.decision import follows_links
from testbed.config.campaign import Campaign
from testbed.errors import InputError

__all__ = ["Pass", "passes_of"]


@dataclass(frozen=True)
class Pass:
    """One policy whose quality is measured.

    Attributes:
        policy: The policy's name.
        scenario: The scenario whose links its selection follows; None where it does not look at links: then its
            quality is the same in all of them.
    """

    policy: str
    scenario: str | None

    @property
    def name(self) -> str:
        """The pass's name: that of its phase, its folder and its parts of the tables."""
        return quality_name(self.policy, self.scenario)


def passes_of(
    campaign: Campaign, policies: Sequence[str] = (), scenarios: Sequence[str] = ()
) -> tuple[Pass, ...]:
    """Return the quality passes of a campaign, in the order of its file; none where it measures no quality.

    Args:
        campaign: The campaign.
        policies: The policies that are asked for; all where empty.
        scenarios: The scenarios that are asked for; all where empty.

    Raises:
        InputError: The campaign has no policy or scenario of a name.
    """
    _check("policy", policies, [policy.name for policy in campaign.policies], campaign.campaign)
    _check("scenario", scenarios, [scenario.name for scenario in campaign.scenarios], campaign.campaign)
    if campaign.quality is None:
        return ()
    passes: list[Pass] = []
    for policy in campaign.policies:
        if policies and policy.name not in policies:
            continue
        if not follows_links(policy.selection.settings()):
            passes.append(Pass(policy.name, None))
            continue
        passes += [
            Pass(policy.name, scenario.name)
            for scenario in campaign.scenarios
            if not scenarios or scenario.name in scenarios
        ]
    return tuple(passes)


def _check(what: str, asked: Sequence[str], known: Sequence[str], campaign: str) -> None:
    for name in asked:
        if name not in known:
            raise InputError(
                f"the campaign {campaign} has no {what} {name!r}", hint=f"it has {', '.join(known)}"
            )
