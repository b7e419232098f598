"""`testbed policy`: the kinds of expert selection, and whether one of your own keeps their contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from testbed.cli.common import JsonOption, print_json, print_table
from testbed.errors import InputError

__all__ = ["app"]

_HINT = (
    "`testbed policy kinds` lists the kinds and their settings; one of your own is FILE:CLASS, or :NAME where it is "
    "installed"
)

app = typer.Typer(help="Kinds of expert selection, and a check of your own.", no_args_is_help=True)

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting; may be repeated."),
]


@app.command("kinds")
def kinds(as_json: JsonOption = False) -> None:
    """List the kinds that come with testbed, and their settings."""
    from payloads.wdmoe.gating import SELECTOR_KINDS
    from payloads.wdmoe.selectors.kinds import REQUIRED

    described = [
        {
            "kind": name,
            "follows_links": kind.follows_links,
            "source": kind.source,
            "settings": {
                key: {
                    "expected": setting.expected,
                    "default": None if setting.default is REQUIRED else setting.default,
                    "required": setting.default is REQUIRED,
                    "meaning": setting.meaning,
                }
                for key, setting in kind.settings.items()
            },
        }
        for name, kind in sorted(SELECTOR_KINDS.items())
    ]
    if as_json:
        print_json(described)
        return
    for entry in described:
        typer.echo(f"{entry['kind']}  ({entry['source']})")
        settings: dict[str, dict[str, Any]] = entry["settings"]  # type: ignore[assignment]
        for key, setting in settings.items():
            default = "required" if setting["required"] else _default(setting["default"])
            typer.echo(f"  {key}: {setting['expected']}; {default}. {setting['meaning']}")


@app.command("check")
def check(
    policy: Annotated[
        str, typer.Argument(help="FILE:CLASS, :NAME of an installed one, or a kind that comes with testbed.")
    ],
    given: SetOption = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Random layers that each check shows it.")
    ] = 40,
    as_json: JsonOption = False,
) -> None:
    """Check that an expert selection keeps the contract, and time it. Exit code 1 where it does not."""
    from payloads.wdmoe.user_policy import is_user_kind, split_kind

    settings = {"kind": _kind(policy), **_settings(given or [])}
    make = _maker(settings)
    from testbed.policies.contract import check_selector, time_selector

    file = split_kind(settings["kind"])[0] if is_user_kind(settings["kind"]) else None
    checks = check_selector(make, rounds=rounds, file=file)
    sound = all(entry.holds for entry in checks)
    timings = [time_selector(make, tokens=count) for count in (1, 1000)] if sound else []
    if as_json:
        print_json(
            {
                "policy": settings,
                "checks": [
                    {"name": entry.name, "holds": entry.holds, "problem": entry.problem} for entry in checks
                ],
                "timings": [vars(timing) for timing in timings],
            }
        )
    else:
        print_table([[("ok" if entry.holds else "FAILED"), entry.name] for entry in checks])
        # Code that raises does so in every check: what was seen is said once.
        seen: dict[str, list[str]] = {}
        for entry in checks:
            if not entry.holds:
                seen.setdefault(entry.problem, []).append(entry.name)
        for problem, names in seen.items():
            typer.echo("\n" + ",\n".join(names) + f":\n  {problem}")
        for timing in timings:
            plural = "token" if timing.tokens == 1 else "tokens"
            typer.echo(
                f"{timing.median_us:.0f} us for a layer of {timing.tokens} {plural}, 8 experts, 4 devices"
            )
    if not sound:
        raise typer.Exit(1)


def _default(value: Any) -> str:
    """Return the default of a setting as a campaign file would have it."""
    if value is None:
        return "optional"
    return f"default {json.dumps(value) if isinstance(value, bool) else value}"


def _settings(given: list[str]) -> dict[str, Any]:
    """Return NAME=VALUE pairs with the values read as a campaign file's would be."""
    from testbed.config.yaml import parse_yaml

    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--set: NAME=VALUE was expected, not {text!r}")
        settings[name] = parse_yaml(f"value: {value}", Path("--set")).data["value"]
    return settings


def _kind(policy: str) -> str:
    """Return the kind as policies know it; a path starts at the folder that the command is given in."""
    from payloads.wdmoe.user_policy import UserPolicyError
    from testbed.policies.resolve import resolve_kind

    try:
        return resolve_kind(policy, Path())
    except UserPolicyError as error:
        raise InputError(str(error), hint=_HINT) from error


def _maker(settings: dict[str, Any]) -> Any:
    from payloads.wdmoe.gating import check_selection, selector_of
    from payloads.wdmoe.user_policy import is_user_kind, make_user_selector

    problems = check_selection(settings)
    if problems:
        raise InputError(
            problems[0].removeprefix("kind: ").replace("got None", "and it is missing"), hint=_HINT
        )
    # One of the user's own without its guard, which would say the first fault in place of all.
    made = make_user_selector if is_user_kind(settings["kind"]) else selector_of
    return lambda: made(settings)
