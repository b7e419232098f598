"""How a campaign is served: under which policy, in which scenario, and where clients reach it. Plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from payloads.wdmoe.serve.access import (
    LEAST_CONTEXT_TOKENS,
    MOST_AT_ONCE,
    AccessError,
    is_loopback,
    parse_address,
    read_token,
)
from testbed.campaigns.trials import Trial
from testbed.config.campaign import Campaign
from testbed.config.known_models import read_config
from testbed.errors import InputError
from testbed.hosts.steps import Put, Step

__all__ = ["SERVED", "Serving", "serving_of"]

SERVED = "serve-001"
"""The name of the trial that a serving is recorded as."""

#: Where the base station holds it.
REMOTE_FILE = "~/.testbed/http-token"


@dataclass(frozen=True)
class Serving:
    """How a campaign is served.

    Attributes:
        policy: The policy's name.
        scenario: The scenario's name.
        concurrency: How many requests are answered at once.
        address: Where the base station listens, as ``ADDRESS:PORT``.
        token_file: The local file of the token that clients must show; None where they need none.
        context_tokens: The most tokens of a request, prompt and answer; None for as many as the model reads.
    """

    policy: str
    scenario: str
    concurrency: int
    address: str
    token_file: Path | None = None
    context_tokens: int | None = None

    @property
    def trial(self) -> Trial:
        """What it is in the records."""
        return Trial(SERVED, self.policy, self.scenario, 0, self.concurrency)

    @property
    def listens(self) -> tuple[str, int]:
        """The address and the port at the base station."""
        return parse_address(self.address)

    @property
    def words(self) -> list[str]:
        """The options of the command line that ask for it."""
        words = ["--policy", self.policy, "--scenario", self.scenario]
        words += ["--concurrency", str(self.concurrency), *self._context, "--listen", self.address]
        return words + (["--token-file", str(self.token_file)] if self.token_file else [])

    def as_text(self) -> str:
        """Return how it is served, for people."""
        text = f"{self.policy} in {self.scenario}, {self.concurrency} at once"
        return text if self.context_tokens is None else f"{text}, {self.context_tokens} tokens each at most"

    def base_station_options(self) -> list[str]:
        """Return what the base station is started with beside what every run needs."""
        token = ["--http-token-file", REMOTE_FILE] if self.token_file else []
        return ["--http", self.address, *token]

    def request(self, spec: str, trial: Trial) -> list[str]:
        """Return what the base station is asked to do.

        Args:
            spec: The run's specification on the base station.
            trial: What it is in the records.
        """
        words = ["serve", "--spec", spec, "--policy", self.policy, "--trial", trial.name]
        return [*words, "--concurrency", str(self.concurrency), *self._context]

    @property
    def _context(self) -> list[str]:
        return [] if self.context_tokens is None else ["--context", str(self.context_tokens)]

    def files(self, base_station: str) -> Iterator[Step]:
        """Yield what is staged for it."""
        if self.token_file is not None:
            content = read_token(self.token_file).encode()
            yield Put(base_station, content, REMOTE_FILE, "token of the API", 0o600, secret=True)


def serving_of(
    campaign: Campaign,
    policy: str | None,
    scenario: str | None,
    concurrency: int | None,
    address: str,
    token_file: Path | None,
    context_tokens: int | None = None,
) -> Serving:
    """Return how a campaign is to be served.

    Args:
        campaign: The campaign.
        policy: The policy's name; the campaign's first where left out.
        scenario: The scenario's name; the campaign's first where left out.
        concurrency: How many requests are answered at once; as many as in the scenario where left out.
        address: Where the base station listens, as ``ADDRESS:PORT``.
        token_file: The local file of the token that clients must show.
        context_tokens: The most tokens of a request, prompt and answer; as many as the model reads where left out.

    Raises:
        InputError: There is no such policy or scenario, the address would be open to everybody, so many requests
            are not answered at once, or the model does not read so many tokens.
    """
    policy = _one_of("policy", policy, [one.name for one in campaign.policies])
    scenario = _one_of("scenario", scenario, [one.name for one in campaign.scenarios])
    try:
        host, _ = parse_address(address)
        if token_file is not None:
            read_token(token_file)
    except (ValueError, AccessError) as error:
        raise InputError(str(error)) from None
    if token_file is None and not is_loopback(host):
        raise InputError(
            f"{host} is not a loopback address: others reach it, so a token is needed",
            hint="make one: (umask 077; openssl rand -hex 32 > token); then --token-file token",
        )
    count = campaign.scenario(scenario).concurrency if concurrency is None else concurrency
    if not 1 <= count <= MOST_AT_ONCE:
        raise InputError(f"concurrency: expected 1 to {MOST_AT_ONCE}, got {count}")
    if context_tokens is not None:
        _check_context(context_tokens, campaign.model)
    return Serving(policy, scenario, count, address, token_file, context_tokens)


def _check_context(context_tokens: int, model: Path) -> None:
    """Refuse a context that the model does not read, as far as its config.json says; the base station knows."""
    try:
        most = read_config(model).get("max_position_embeddings")
    except ValueError as error:
        raise InputError(str(error)) from None
    if context_tokens < LEAST_CONTEXT_TOKENS or (isinstance(most, int) and context_tokens > most):
        upper = f"to {most} tokens, which {model.name} reads" if isinstance(most, int) else "tokens or more"
        raise InputError(f"context: expected {LEAST_CONTEXT_TOKENS} {upper}, got {context_tokens}")


def _one_of(what: str, name: str | None, known: list[str]) -> str:
    if name is None:
        return known[0]
    if name not in known:
        raise InputError(f"the campaign has no {what} {name!r}", hint=f"it has {', '.join(known)}")
    return name
