#!/usr/bin/env python3
"""Fetch text and questions to measure quality on, and write them as campaigns read them.

    python scripts/fetch_eval_data.py

Everything comes out of one package of PyPI, ``evals`` (OpenAI, 46 MB), whose checksum pip checks: extracts of
Wikipedia and OpenWebText, 1,000 items of MMLU and the 2,224 of SocialIQA's test set. What is written goes to
``$XDG_CACHE_HOME/testbed/eval``, with the licences beside it; nothing of it is part of this project. A second call
finds it there, checks it and fetches nothing.

The questions are written for a likelihood that is taken over the words of each answer, not over its letter: the
answers are no part of the question. See docs/quality.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wheels import WheelError, fetch_wheel

PACKAGE = "evals==3.0.1.post1"
SHA256 = "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"
DATA = "evals/registry/data"
SUMS = "SHA256SUMS"
MMLU = re.compile(
    r"(?s)(?P<question>.+?)\s*\nA\. (.*?)\s*\nB\. (.*?)\s*\nC\. (.*?)\s*\nD\. (.*?)\s*\nAnswer:\s*"
)
SOCIAL_IQA = re.compile(r"(?s)(?P<question>.+?) A: (.*?); B: (.*?); C: (.*?)\.?\s*")


class FetchError(Exception):
    """Something is not as it should be; one line."""


@dataclass(frozen=True)
class Part:
    """One file that is made of the package.

    Attributes:
        name: The file's name.
        member: Where its data stand in the package.
        make: Makes the file's text of the data's rows.
        about: What it is, and whose.
        licence: Under what terms.
        source: Where it comes from.
    """

    name: str
    member: str
    make: Callable[[list[dict[str, Any]]], str]
    about: str
    licence: str
    source: str


def mmlu(rows: list[dict[str, Any]]) -> str:
    """Return the items of MMLU as questions."""
    return _lines(
        _question(f"mmlu-{number:04d}", MMLU, str(row["question"]), str(row["answer"]), "\nAnswer:")
        for number, row in enumerate(rows)
    )


def social_iqa(rows: list[dict[str, Any]]) -> str:
    """Return the items of SocialIQA as questions."""
    return _lines(
        _question(f"siqa-{number:04d}", SOCIAL_IQA, str(row["input"][0]["content"]), str(row["ideal"]), "")
        for number, row in enumerate(rows)
    )


def extracts(rows: list[dict[str, Any]]) -> str:
    """Return the extracts, each as it was published: the other columns are shuffled copies of it."""
    return "\n\n".join(" ".join(str(row["0"]).split()) for row in rows) + "\n"


PARTS = (
    Part(
        "wikipedia.txt",
        f"{DATA}/schelling_point/wikipedia_5.jsonl",
        extracts,
        "1,000 extracts of English Wikipedia, by its authors",
        "CC BY-SA 3.0 and GFDL: https://creativecommons.org/licenses/by-sa/3.0/",
        "https://huggingface.co/datasets/wikipedia",
    ),
    Part(
        "openwebtext.txt",
        f"{DATA}/schelling_point/owt_5.jsonl",
        extracts,
        "1,000 extracts of OpenWebText",
        "CC0 1.0 (the collection): https://creativecommons.org/publicdomain/zero/1.0/",
        "https://huggingface.co/datasets/openwebtext",
    ),
    Part(
        "mmlu.jsonl",
        f"{DATA}/sandbagging/samples-all-large.jsonl",
        mmlu,
        "1,000 items of MMLU (Hendrycks et al., Measuring Massive Multitask Language Understanding)",
        "MIT: https://opensource.org/license/mit/",
        "https://huggingface.co/datasets/cais/mmlu",
    ),
    Part(
        "social-iqa.jsonl",
        f"{DATA}/theory_of_mind/socialiqa/test.jsonl",
        social_iqa,
        "2,224 items of Social IQa (Sap et al., Social IQa: Commonsense Reasoning about Social Interactions)",
        "CC BY 4.0: https://creativecommons.org/licenses/by/4.0/; changed: answers taken out of the question",
        "https://allenai.org/data/socialiqa",
    ),
)


def main() -> int:
    """Parse the command line, fetch what is missing, and say what is there; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--out", type=Path, default=cache / "testbed" / "eval", help="where the files go")
    parser.add_argument("--wheel", type=Path, help="the package, where it was fetched before")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    try:
        there = _is_there(options.out)
        if not there:
            with tempfile.TemporaryDirectory() as folder:
                wheel = options.wheel or fetch_wheel(PACKAGE, SHA256, Path(folder))
                _write(options.out, _checked(wheel))
    except (FetchError, WheelError, OSError) as error:
        print(f"fetch_eval_data: {error}", file=sys.stderr)
        return 1
    files = {part.name: (options.out / part.name).stat().st_size for part in PARTS}
    if options.json:
        print(json.dumps({"folder": str(options.out), "fetched": not there, "bytes": files}))
        return 0
    print(f"{options.out}: {'there already, checksums right' if there else 'written'}")
    for part in PARTS:
        print(f"  {part.name:16} {files[part.name]:9,d} bytes  {part.licence.partition(':')[0]}")
    return 0


def _checked(wheel: Path) -> Path:
    if _sha256(wheel) != SHA256:
        raise FetchError(f"{wheel}: this is not {PACKAGE}: its checksum is another")
    return wheel


def _write(out: Path, wheel: Path) -> None:
    """Write all files; the list of checksums comes last and says that they are whole."""
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as package:
        for part in PARTS:
            text = package.read(part.member).decode("utf-8")
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            (out / part.name).write_text(part.make(rows), encoding="utf-8")
    notes = [f"Taken from the package {PACKAGE} of PyPI (OpenAI, MIT), each under its own terms.", ""]
    for part in PARTS:
        notes += [f"{part.name}: {part.about}", f"  licence: {part.licence}", f"  source: {part.source}", ""]
    (out / "LICENCES.txt").write_text("\n".join(notes), encoding="utf-8")
    sums = "".join(f"{_sha256(out / part.name)}  {part.name}\n" for part in PARTS)
    unfinished = out / f"{SUMS}.part"
    unfinished.write_text(sums)
    unfinished.replace(out / SUMS)


def _is_there(out: Path) -> bool:
    """Return whether all files are there and as they were written."""
    if not (out / SUMS).is_file():
        return False
    listed = [line.partition("  ") for line in (out / SUMS).read_text().splitlines()]
    return {name for _, _, name in listed} == {part.name for part in PARTS} and all(
        (out / name).is_file() and _sha256(out / name) == digest for digest, _, name in listed
    )


def _question(name: str, shape: re.Pattern[str], text: str, letter: str, end: str) -> dict[str, Any]:
    match = shape.fullmatch(text)
    if match is None:
        raise FetchError(f"{name}: this is no question with its answers: {text[:80]!r}")
    choices = list(match.groups()[1:])
    answer = "ABCD".find(letter)
    if not 0 <= answer < len(choices):
        raise FetchError(f"{name}: the answer {letter!r} is none of the choices")
    return {"id": name, "question": match["question"] + end, "choices": choices, "answer": answer}


def _lines(questions: Iterator[dict[str, Any]]) -> str:
    return "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in questions)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
