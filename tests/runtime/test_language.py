"""A real tokenizer behind the API: bytes of tokens, chats by its template, and many threads at once."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from payloads.wdmoe.serve.api import Api
from payloads.wdmoe.serve.errors import ApiError
from payloads.wdmoe.serve.language import Language
from payloads.wdmoe.serve.openai_requests import Message
from payloads.wdmoe.serve.text import Writer, tail_of
from tests.payloads.serve.conftest import Script
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


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A tokenizer as SentencePiece's models have: spaces before words, bytes of what it has no token for."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    made.train_from_iterator(
        [TEXT * 3], trainers.BpeTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )
    learnt = json.loads(made.to_str())["model"]
    vocabulary = learnt["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(pair) for pair in learnt["merges"]]
    made.model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    spaces = decoders.Replace("▁", " "), decoders.Strip(content=" ", left=1)
    made.decoder = decoders.Sequence([spaces[0], decoders.ByteFallback(), decoders.Fuse(), spaces[1]])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = tmp_path_factory.mktemp("pieces")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **names)
    tokenizer.save_pretrained(folder)
    return Language(folder, "small", len(vocabulary), 512, [2])


LETTERS = st.sampled_from("aI tis.é€🙂山\n") | st.characters(
    exclude_categories=["Cs"], exclude_characters="\ufffd"
)


@pytest.mark.parametrize("kind", ["plain", "pieces"])
@given(text=st.text(LETTERS, min_size=1, max_size=40), data=st.data())
@settings(deadline=None)
def test_an_answer_is_what_the_whole_text_has_behind_the_prompt(request, kind, text, data):
    language = request.getfixturevalue(kind)
    tokens = language.encode(text)
    begin = data.draw(st.integers(0, len(tokens)))
    prompt, whole = language.decode(tokens[:begin]), language.decode(tokens)
    while not whole.startswith(prompt):  # it ends within a character
        prompt = prompt[:-1]
    writer = Writer(language.decode, [], 0, tail_of(tokens[:begin], language.decode))
    written = [writer.add(token, None).text for token in tokens[begin:]]
    assert "".join(written) + writer.end().text == whole[len(prompt) :]
    # What is told of a text's tokens is where they are in it.
    offsets = language.offsets(text)
    assert len(offsets) == len(tokens)
    assert offsets == sorted(offsets)
    for token, place in zip(tokens, offsets, strict=True):
        spelled = language.spell(token).decode(errors="replace").lstrip(" ")
        assert token == 1 or "\ufffd" in spelled or text[place:].lstrip(" ").startswith(spelled)


def test_words_keep_their_spaces_behind_a_prompt_and_tell_where_they_are(pieces):
    script = Script()
    api = Api(pieces)
    api.open(script)
    prompt, whole = pieces.encode("It is"), pieces.encode("It is a truth, 🙂")
    script.says = lambda _: [*whole[len(prompt) :], 2]

    def complete(**changes):
        asked = {"model": "small", "prompt": "It is", "max_tokens": 50, **changes}
        return json.loads(api.handle("POST", "/v1/completions", json.dumps(asked).encode()).body)["choices"][
            0
        ]

    assert complete()["text"] == " a truth, 🙂"
    assert complete(stop=" truth")["text"] == " a"
    assert complete(echo=True)["text"] == "It is a truth, 🙂"
    body = json.dumps({"model": "small", "prompt": "It is", "max_tokens": 50, "stream": True}).encode()
    events = [
        event.decode().partition("data: ")[2] for event in api.handle("POST", "/v1/completions", body).events
    ]
    assert "".join(json.loads(one)["choices"][0]["text"] for one in events[:-1]) == " a truth, 🙂"

    # What is echoed has no text for a token that the tokenizer put before it; one that was sent stands there.
    echoed = {"echo": True, "logprobs": 0, "max_tokens": 50}
    for asked, shift in (("It is", 0), (prompt[1:], 0), (prompt, len("<s> "))):
        choice = complete(prompt=asked, **echoed)
        told = choice["logprobs"]
        begin = len(told["tokens"]) - len(script.says(())) - (len(asked) if shift else len(prompt[1:]))
        text = {0: "It is a truth, 🙂", 4: "<s> It is a truth, 🙂"}[shift]
        assert choice["text"] == text
        for token, place in zip(told["tokens"], told["text_offset"], strict=True):
            if not token.startswith("bytes:") and token not in ("<s>", "</s>"):
                assert text[place:].startswith(token if place else token.lstrip(" ")), (token, place)
        assert told["text_offset"][begin] == 0

    # An answer to a chat is a text of its own: it begins with no space.
    said = {"model": "small", "messages": [{"role": "user", "content": "It is"}]}
    chat = json.loads(api.handle("POST", "/v1/chat/completions", json.dumps(said).encode()).body)
    assert chat["choices"][0]["message"]["content"] == "a truth, 🙂"


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
