"""A model of EleutherAI's lm-evaluation-harness: its tasks through the rack that `testbed serve` serves.

    python -m testbed.lm_eval run --model testbed --model_args base_url=http://127.0.0.1:8000 --tasks hellaswag

It is the harness's own `local-completions` with what the base station knows of itself filled in: the model's name, its
tokenizer, and the length of its context. Importing this module registers the model; run, it is the harness's command.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from payloads.wdmoe.serve.access import AccessError, read_token
from testbed.cli.common import print_error
from testbed.errors import InputError, TestbedError

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.openai_completions import LocalCompletionsAPI
except ImportError as error:
    missing = InputError(
        f"the lm-evaluation-harness is not here: {error}",
        hint="in testbed's folder: pip install -c constraints.txt -e '.[eval]'",
    )
    if __name__ != "__main__":
        raise missing from None
    print_error(missing.message, missing.hint)
    sys.exit(missing.exit_code)

__all__ = ["DEFAULT_URL", "TestbedModel", "asked_of", "main"]

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 30.0


@register_model("testbed")
class TestbedModel(LocalCompletionsAPI):  # type: ignore[misc]
    """The model that a base station serves.

    Args:
        base_url: Where it is served; a path is not needed.
        token_file: A file with the token that the base station asks for, where it asks for one.
        batch_size: How many texts are sent in one request.
        **kwargs: What `local-completions` takes beside, such as `num_concurrent`.
    """

    __test__ = False  # pytest would take it for a class of tests

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        token_file: str | None = None,
        batch_size: int | str = 8,
        **kwargs: Any,
    ) -> None:
        server = _server(base_url)
        token = None if token_file is None else _token(Path(token_file).expanduser())
        served = asked_of(server, token)
        header = {} if token is None else {"header": {"Authorization": f"Bearer {token}"}}
        settings = {
            "model": served["id"],
            "max_length": served["max_model_len"],
            "auth_token": token,
            **header,
            **{key: value for key, value in kwargs.items() if key != "pretrained"},
        }
        super().__init__(
            base_url=f"{server}/v1/completions", tokenizer_backend="remote", batch_size=batch_size, **settings
        )


def asked_of(server: str, token: str | None) -> dict[str, Any]:
    """Return what a base station says of the model that it serves.

    Args:
        server: Its address, such as ``http://127.0.0.1:8000``.
        token: What it asks for; None where it asks for nothing.

    Raises:
        TestbedError: It does not answer, or refuses.
    """
    request = urllib.request.Request(f"{server}/v1/models")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            model: dict[str, Any] = json.load(answer)["data"][0]
    except urllib.error.HTTPError as error:
        raise TestbedError(
            f"{server} refused: {error.code} {error.reason}",
            hint="does it ask for a token (token_file=FILE)?",
        ) from error
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise TestbedError(
            f"no base station answers at {server}: {error}",
            hint="`testbed serve CAMPAIGN` says where it serves",
        ) from error
    return model


def _token(file: Path) -> str:
    """Return the token in a file.

    Raises:
        InputError: It cannot be read, or is none.
    """
    try:
        return read_token(file)
    except AccessError as error:
        raise InputError(f"token_file: {error}") from None


def _server(url: str) -> str:
    """Return the address without what stands behind it.

    Raises:
        InputError: It is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"base_url: an address such as {DEFAULT_URL} was expected, got {url!r}")
    return f"{parts.scheme}://{parts.netloc}"


def main() -> None:
    """Run the harness's own command with this model in its registry."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except TestbedError as error:
        print_error(error.message, error.hint)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
