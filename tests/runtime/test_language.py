"""A real tokenizer behind the API: bytes of tokens, chats by its template, and many threads at once."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from payloads.wdmoe.serve.errors import ApiError
from payloads.wdmoe.serve.language import Language
from payloads.wdmoe.serve.openai_requests import Message
from payloads.wdmoe.serve.text import Writer
from tests.runtime.conftest import TEXT

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def plain(checkpoints):
    return Language(checkpoints["published"], "small", 320, 512, [0])


@pytest.fixture(scope="module")
def chatty(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(checkpoints["published"], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return Language(folder, "small", 320, 512, [0])


@given(st.text(max_size=40))
@settings(deadline=None)
def test_the_bytes_of_tokens_are_those_of_the_text_and_come_out_of_a_writer(plain, text):
    tokens = plain.encode(text)
    assert b"".join(plain.spell(token) for token in tokens) == text.encode()
    writer = Writer(plain.decode, [])
    assert "".join(writer.add(token, None).text for token in tokens) + writer.end().text == text


def test_a_vocabulary_of_bytes_need_not_have_all_of_them(checkpoints, tmp_path):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator([TEXT * 3], trainers.BpeTrainer(vocab_size=120, show_progress=False))
    shutil.copytree(checkpoints["published"], tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path / "model")
    language = Language(tmp_path / "model", "few", 120, 512, [])
    assert b"".join(map(language.spell, language.encode(TEXT))) == TEXT.encode()


def test_special_tokens_have_a_name_and_no_text(plain):
    assert plain.spell(0) == b"<end>"
    assert plain.decode([0, *plain.encode("man")]) == "man"
    assert plain.decode([0], skip_special=False) == "<end>"
    assert plain.spell(319) != plain.spell(100)
    assert plain.info()["eos_token"] == "<end>"


def test_tokens_are_checked(plain):
    assert plain.encode((5, 319)) == [5, 319]
    with pytest.raises(ApiError, match="half of a surrogate pair"):
        plain.encode("a\ud800b")
    for wrong in (-1, 320):
        with pytest.raises(ApiError, match="no such token"):
            plain.encode((wrong,))


def test_a_chat_becomes_a_prompt_by_the_models_own_template(plain, chatty):
    said = [Message("user", "a good man"), Message("assistant", "must"), Message("user", "be?")]
    assert chatty.decode(chatty.chat(said)) == "<user> a good man\n<assistant> must\n<user> be?\n<assistant>"
    with pytest.raises(ApiError, match="template refused them: no system here") as caught:
        chatty.chat([Message("system", "be brief")])
    assert (caught.value.status, caught.value.param) == (400, "messages")
    with pytest.raises(ApiError, match="no chat template: use /v1/completions"):
        plain.chat(said)


def test_threads_do_not_disturb_each_other(plain):
    texts = [TEXT[number:] * (number + 1) for number in range(8)]
    alone = [plain.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(plain.encode, texts)) == alone
            assert list(pool.map(plain.decode, alone)) == texts
