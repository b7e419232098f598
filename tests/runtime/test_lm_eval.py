"""EleutherAI's harness, unchanged, through our model and through its own `local-completions`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.runtime.test_serving import served

lm_eval = pytest.importorskip("lm_eval", reason="the harness is an extra: pip install -e '.[eval]'")

ROOT = Path(__file__).parents[2]
TASKS = ["testbed_choose", "testbed_perplexity", "testbed_write"]

# The harness and what it uses warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The local tasks; nothing is looked up on a network, and nothing is left in a cache."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(ROOT / "tests" / "serving" / "tasks"), include_defaults=False)


def results_of(model, settings, tasks):
    from lm_eval import simple_evaluate

    done = simple_evaluate(
        model=model, model_args=settings, tasks=TASKS, task_manager=tasks, log_samples=True
    )
    samples = {
        task: [(sample["doc_id"], sample["resps"]) for sample in rows]
        for task, rows in done["samples"].items()
    }
    return done["results"], samples


def test_the_harness_runs_its_tasks_through_the_base_station(make_lab, tasks, checkpoints):
    import testbed.lm_eval  # noqa: F401  registers the model

    with served(make_lab(), concurrency=2) as (_, one):
        url = one.server.url
        ours, samples = results_of("testbed", {"base_url": url, "batch_size": 2}, tasks)
        settings = {"base_url": f"{url}/completions", "model": "small", "max_length": 512}
        theirs, same = results_of("local-completions", settings, tasks)
        tables = one.end()
    for task in TASKS:
        assert ours[task].keys() == theirs[task].keys()
    assert _likelihoods(samples) == pytest.approx(_likelihoods(same), abs=1e-3)
    assert samples["testbed_write"] == same["testbed_write"]
    # What the harness heard are the model's own likelihoods.
    model = AutoModelForCausalLM.from_pretrained(checkpoints["published"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["published"])
    before, after = (tokenizer(text)["input_ids"] for text in ("must be in want of a", " wife"))
    with torch.inference_mode():
        scores = model(input_ids=torch.tensor([before + after])).logits[0].log_softmax(-1)
    expected = sum(float(scores[len(before) + place - 1, token]) for place, token in enumerate(after))
    heard = dict(samples["testbed_choose"])[2][0][0]
    assert float(heard[0]) == pytest.approx(expected, abs=1e-3)
    # Two models, the answers of 3 questions (2, 3 and 2), and 3 texts each of the other tasks.
    assert len(tables["requests"]) == 2 * (7 + 3 + 3)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_token_file_that_is_none_is_said(tmp_path):
    from testbed.errors import InputError
    from testbed.lm_eval import TestbedModel

    with pytest.raises(InputError, match="token_file: cannot read the token file"):
        TestbedModel(token_file=str(tmp_path / "none"))


def _likelihoods(samples):
    numbers = [answer for _, answers in samples["testbed_choose"] for answer in answers]
    numbers += [answer for _, answers in samples["testbed_perplexity"] for answer in answers]
    return [float(one[0][0] if isinstance(one[0], list | tuple) else one[0]) for one in numbers]
