import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tokenizers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st

from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import END_OF_TEXT, Tokenizer, pieces
from gpt2_jax.tokenizer_files import load
from gpt2_jax.tokenizer_training import train_bpe, train_characters

CORPUS = [
    "def f(x):\n    return x + 1\n\n\nfor i in range(10):\n\tprint(f(i))\n" * 20,
    "Once upon a time, the big brown fox was in a naïve café — with 猫 and 🎉🎉. It's 3 o'clock!\r\n" * 20,
]
GPT2 = Path(__file__).parents[1] / "../shared/data/gpt2_vocab"
needs_gpt2 = pytest.mark.skipif(not GPT2.exists(), reason=f"GPT-2's vocabulary is not in {GPT2}")

BPE = train_bpe(CORPUS, 330)
CHARACTERS = train_characters(CORPUS)
anything = st.text(st.characters(exclude_categories=["Cs"]))
known = st.text(st.sampled_from(sorted(set("".join(CORPUS)))))


@given(anything)
def test_bpe_round_trip(text):
    tokens = BPE.encode(text)
    assert BPE.decode(tokens) == text
    assert all(0 <= token < len(BPE) and token != BPE.end_of_text for token in tokens)


@given(known)
def test_characters_round_trip(text):
    tokens = CHARACTERS.encode(text)
    assert len(tokens) == len(text)
    assert CHARACTERS.decode(tokens) == text


@given(st.lists(st.integers(0, len(BPE) - 1)), st.booleans())
def test_decode_is_the_library_s(tokens, skip_special):
    library = tokenizers.Tokenizer.from_str(BPE.to_json())
    assert BPE.decode(tokens, skip_special=skip_special) == library.decode(tokens, skip_special_tokens=skip_special)


@given(st.lists(st.lists(st.integers(0, len(BPE) - 1))), st.booleans())
def test_stream_joins_to_decode(groups, skip_special):
    stream = BPE.stream_decoder(skip_special=skip_special)
    text = "".join(map(stream.put, groups)) + stream.end()
    assert text == BPE.decode([token for group in groups for token in group], skip_special=skip_special)


@given(anything)
def test_stream_gives_final_text_only(text):
    stream, seen = BPE.stream_decoder(), ""
    for token in BPE.encode(text):
        seen += stream.put([token])
        assert text.startswith(seen)
    assert seen == text
    assert stream.end() == ""


def test_stream_holds_an_emoji_until_it_is_whole():
    tokens = [BPE._bytes.index(bytes([byte])) for byte in "🎉".encode()]
    stream = BPE.stream_decoder()
    assert [stream.put([token]) for token in tokens] == ["", "", "", "🎉"]
    assert (stream.put(tokens[:2]), stream.end()) == ("", "�")
    assert stream.put(BPE.encode("again")) + stream.end() == "again"


@pytest.mark.parametrize("tokenizer", [BPE, CHARACTERS], ids=["bpe", "characters"])
def test_end_of_text(tokenizer):
    assert tokenizer.end_of_text == len(tokenizer) - 1
    assert tokenizer.encode("", allow_special=True) == []
    assert tokenizer.encode(f"a{END_OF_TEXT}b", allow_special=True) == [
        *tokenizer.encode("a"),
        tokenizer.end_of_text,
        *tokenizer.encode("b"),
    ]
    tokens = [*tokenizer.encode("a"), tokenizer.end_of_text, *tokenizer.encode("b")]
    assert tokenizer.decode(tokens) == "ab"
    assert tokenizer.decode(tokens, skip_special=False) == f"a{END_OF_TEXT}b"


def test_text_cannot_inject_end_of_text():
    for tokenizer in (BPE, Tokenizer.from_json(BPE.to_json()), train_characters([END_OF_TEXT])):
        tokens = tokenizer.encode(END_OF_TEXT)
        assert tokenizer.end_of_text not in tokens
        assert tokenizer.decode(tokens) == END_OF_TEXT
        assert tokenizer.encode_batch([END_OF_TEXT]) == [tokens]


def test_kinds_and_ids():
    assert (BPE.kind, CHARACTERS.kind) == ("bpe", "characters")
    characters = sorted(set("".join(CORPUS)))
    assert CHARACTERS.encode("".join(characters)) == list(range(len(characters)))
    assert len(CHARACTERS) == len(characters) + 1


def test_decode_takes_arrays():
    import jax.numpy as jnp

    tokens = BPE.encode("a naïve café")
    for array in (np.array(tokens, np.uint16), jnp.array(tokens), tuple(tokens)):
        assert BPE.decode(array) == "a naïve café"
    assert BPE.decode([]) == BPE.decode(np.zeros(0, np.int32)) == ""


@given(st.lists(st.sampled_from(["a", "\n", " ", "\t", "x.", "\r\n", "'s", "猫"])).map("".join), st.integers(0, 6))
def test_pieces_encode_as_the_whole(text, characters):
    cut = list(pieces(text, characters))
    assert "".join(cut) == text
    assert [token for tokens in BPE.encode_batch(cut) for token in tokens] == BPE.encode(text)


@needs_gpt2
def test_gpt2_vocabulary(tmp_path):
    gpt2 = load(GPT2)
    assert (len(gpt2), gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode(END_OF_TEXT, allow_special=True) == [50256]
    assert gpt2.decode(gpt2.encode("".join(CORPUS))) == "".join(CORPUS)
    saved = load(gpt2.save(tmp_path / "there"))
    assert len(saved) == 50257
    assert saved.encode("".join(CORPUS)) == gpt2.encode("".join(CORPUS))


@pytest.mark.parametrize("tokenizer", [BPE, CHARACTERS], ids=["bpe", "characters"])
def test_save_and_load(tokenizer, tmp_path):
    assert tokenizer.save(tmp_path / "folder") == tmp_path / "folder" / "tokenizer.json"
    assert tokenizer.save(tmp_path / "own.json") == tmp_path / "own.json"
    for path in ("folder", "folder/tokenizer.json", "own.json"):
        loaded = load(tmp_path / path)
        assert (loaded.kind, loaded.to_json()) == (tokenizer.kind, tokenizer.to_json())
        assert loaded.encode(CORPUS[1]) == tokenizer.encode(CORPUS[1])


def test_padding_and_truncation_of_a_file_are_off():
    raw = tokenizers.Tokenizer.from_str(BPE.to_json())
    raw.enable_truncation(2)
    raw.enable_padding(length=50)
    loaded = Tokenizer.from_json(raw.to_str())
    assert loaded.encode(CORPUS[0]) == BPE.encode(CORPUS[0])


def test_hub(tmp_path, monkeypatch):
    BPE.save(tmp_path)
    asked = []

    def download(name, file, revision=None):
        asked.append((name, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load("someone/model", revision="v1").to_json() == BPE.to_json()
    assert asked == [("someone/model", "tokenizer.json", "v1")]


@needs_gpt2
@pytest.mark.parametrize("error", [EntryNotFoundError, LocalEntryNotFoundError])
def test_hub_without_a_tokenizer_json(monkeypatch, error):
    def download(name, file, revision=None, local_files_only=False):
        if file == "tokenizer.json":
            raise error("no such entry")
        assert local_files_only == (error is LocalEntryNotFoundError)
        return str(GPT2 / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert load("gpt2").encode("Hello world") == [15496, 995]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (EntryNotFoundError("404"), "LookupError: it has no tokenizer.json and no vocab.json with merges.txt"),
        (LocalEntryNotFoundError("the hub is\nout of reach"), "LocalEntryNotFoundError: the hub is out of reach"),
        (ConnectionError("refused"), "ConnectionError: refused"),
    ],
)
def test_hub_failures(monkeypatch, error, says):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(InputError) as caught:
        load("openai-community/gpt2")
    assert str(caught.value) == (
        "tokenizer 'openai-community/gpt2' is no file or folder here and could not be fetched from the hub"
        f" ({says}); check the id and the network, or give a path"
    )


def test_hub_offline_raises_instead_of_an_empty_tokenizer_and_imports_are_light(tmp_path):
    script = (
        "import sys\n"
        "from gpt2_jax.tokenizer_files import load\n"
        "print([m for m in ('tensorflow', 'transformers', 'torch') if m in sys.modules])\n"
        "try: load('openai-community/gpt2')\n"
        "except ValueError as error: print(error)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=offline, capture_output=True, text=True, check=True)
    imported, error = done.stdout.splitlines()
    assert imported == "[]"
    assert error.startswith("tokenizer 'openai-community/gpt2' is no file or folder here and could not be fetched from")


PINNED = """
import sys
from gpt2_jax.config import DataConfig
from gpt2_jax.data.prepare import shared_tokenizer
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer_files import load
lengths = [len(load("some/bpe")), len(load("some/bpe@old")), len(load("some/bpe@" + "0" * 40))]
lengths += [len(load("some/bpe", revision="old")), len(load("some/bpe", revision="0" * 40))]
config = DataConfig(tokenizer="some/bpe@old")
print(*lengths, len(shared_tokenizer(config, {}, print)))
for name, revision in (("some/bpe@new", None), ("some/bpe@old", "old"), ("some/bpe@", None), ("a b@old", None)):
    try: load(name, revision=revision)
    except InputError as error: print(error)
"""


def test_a_revision_of_the_hub_is_taken_from_the_name_or_the_option(tmp_path):
    repository = tmp_path / "models--some--bpe"
    (repository / "refs").mkdir(parents=True)
    for ref, commit, size in (("old", "0" * 40, 260), ("main", "1" * 40, 270)):
        train_bpe(CORPUS, size).save(repository / "snapshots" / commit)
        (repository / "refs" / ref).write_text(commit)
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PINNED], env=offline, capture_output=True, text=True, check=True)
    lengths, unknown, twice, *none = done.stdout.splitlines()
    assert lengths == "270 260 260 260 260 260"
    assert unknown.startswith(
        "tokenizer 'some/bpe@new' is no file or folder here and could not be fetched from the hub"
    )
    assert twice == "revision is 'old', but 'some/bpe@old' has one, too; give one of them"
    assert len(none) == 2 and all("does not exist (looked in " in line for line in none)


def _raises(message: str):
    return pytest.raises(InputError, match=message)


def test_unknown_character():
    with _raises(
        r"^the character 'Z' \(U\+005A\) at position 4 is not among the \d+ characters of this tokenizer; remove it, or"
        r" train a tokenizer on text that has it \('bpe' encodes every character\)$"
    ):
        CHARACTERS.encode("cat Z ZQ")
    with _raises(r"'\\ud83d' \(U\+D83D\) at position 1"):
        CHARACTERS.encode_batch(["fine", "a\ud83d"])


def test_half_a_surrogate_pair():
    with _raises(r"half of a surrogate pair, '\\udc80', at position 2; it is not Unicode text: remove it"):
        BPE.encode("ab\udc80")


def test_wrong_tokens():
    with _raises(r"^token 330 is not in the vocabulary, whose ids go from 0 to 329$"):
        BPE.decode([1, 330])
    with _raises(r"^token -1 is not"):
        BPE.stream_decoder().put([-1])
    with _raises(r"^tokens are int64 of shape \(1, 2\); decoding takes one sequence of integers$"):
        BPE.decode([[1, 2]])
    with _raises(r"^tokens are float64 of shape \(1,\)"):
        BPE.decode([0.5])


def test_bad_paths(tmp_path):
    for path in ("./none", "/no/where", "a/b/c", "mine.json"):
        with _raises(rf"^tokenizer '{path}' does not exist \(looked in .*\); give a tokenizer.json, a folder with one"):
            load(path)
    with _raises("holds nothing; a tokenizer is a tokenizer.json or a vocab.json with a merges.txt$"):
        load(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with _raises("holds vocab.json; a tokenizer is"):
        load(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    with _raises(r"vocab.json has 0 entries and no '<\|endoftext\|>', which separates documents; use GPT-2's or train"):
        load(tmp_path)
    (tmp_path / "vocab.json").write_text("[]")
    with _raises("vocab.json and merges.txt are not a byte-level BPE: "):
        load(tmp_path)
    with _raises("^revision is 'v1', but .* is a path; only hub ids have revisions$"):
        load(tmp_path, revision="v1")
    (tmp_path / "tokenizer.json").write_text("{}")
    with _raises("tokenizer.json is not a tokenizer.json: Model missing"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with _raises("tokenizer.json is not a tokenizer.json: 'utf-8' codec"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": 1000}, "entries, and their ids do not go from 0 to"),
        ({"a": 50_000_000}, "entries, and their ids do not go from 0 to"),
        ({"a": 4_294_967_295}, "entries, and their ids do not go from 0 to"),
        ({"a": 70}, r"has \d+ entries, and their ids do not go from 0 to \d+, each once; fetch it again"),
        ({"a": -1}, "is not a tokenizer.json: invalid value: integer `-1`, expected u32"),
        ({"a": 2**33}, "is not a tokenizer.json: invalid value: integer `8589934592`, expected u32"),
        ({"a": 1.5}, "is not a tokenizer.json: invalid type: floating point `1.5`, expected u32"),
        ({"a": None}, "is not a tokenizer.json: invalid type: null, expected u32"),
    ],
)
def test_ids_with_gaps_twice_or_beyond_bounds(change, message):
    tokenizer = json.loads(own_bpe().to_json())
    tokenizer["model"]["vocab"] |= change
    with _raises(message):
        Tokenizer.from_json(json.dumps(tokenizer))


def test_what_makes_the_library_panic_is_an_error():
    tokenizer = json.loads(own_bpe().to_json())
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    with _raises("^this tokenizer is not a tokenizer.json: Precompiled: "):
        Tokenizer.from_json(json.dumps(tokenizer | {"normalizer": normalizer}))
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    slow = Tokenizer.from_json(json.dumps(tokenizer | {"pre_tokenizer": split}))
    with _raises("^this tokenizer fails to encode a text: Onig: Regex search error: retry-limit-in-match over"):
        slow.encode("a" * 30 + "b")


def test_an_entry_twice_and_a_byte_too_few():
    text = own_bpe().to_json()
    with _raises("this tokenizer is not a tokenizer.json: .*twice|duplicate"):
        Tokenizer.from_json(text.replace('"vocab":{', '"vocab":{"!":0,', 1))
    tokenizer = json.loads(text)
    tokenizer["model"]["vocab"]["~~"] = tokenizer["model"]["vocab"].pop("~")
    with _raises(r"^this tokenizer lacks 1 of the 256 bytes, '~' among them, and would leave them out of every text"):
        Tokenizer.from_json(json.dumps(tokenizer))
    with _raises(
        "^this tokenizer has a WordLevel model; only BPE and vocabularies of single characters are supported$"
    ):
        model = {"type": "WordLevel", "vocab": tokenizer["model"]["vocab"], "unk_token": "a"}
        Tokenizer.from_json(json.dumps(tokenizer | {"model": model}))


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ('{"a": 0, "b": 2}', "", "the ids of its 2 entries do not go from 0 on; fetch both again"),
        ('{"a": 0, "b": 4294967297}', "", "the ids of its 2 entries do not go from 0 on"),
        ('{"a": 0, "b": true}', "", "the ids of its 2 entries do not go from 0 on"),
        ('{"a": 0, "a": 1}', "", r"\('a' is there twice\); fetch both again"),
        ('{"a": 0, "b": 1}', "#version: 0.2\na b c\n", "'a b c' is no merge of two"),
        ('{"a": 0, "b": 1}', "a b\n", "are not a byte-level BPE: "),
        ('{"a": 0, "b": 0}', "", "has 2 entries and no"),
    ],
)
def test_gpt2_s_files_that_are_damaged(vocab, merges, message, tmp_path):
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with _raises(message):
        load(tmp_path)


def test_tokenizers_that_do_not_fit(tmp_path):
    empty = json.loads(BPE.to_json())
    empty["model"].update(vocab={}, merges=[])
    empty["added_tokens"][0]["id"] = 0
    with _raises(r"^this tokenizer is empty: '<\|endoftext\|>' is its only entry; its vocabulary file was not read$"):
        Tokenizer.from_json(json.dumps(empty))
    other = json.loads(BPE.to_json())
    other["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "bert.json").write_text(json.dumps(other))
    with _raises(r"bert.json has a WordPiece decoder; only byte-level BPE, as GPT-2's, and vocabularies of single"):
        load(tmp_path / "bert.json")


@functools.cache
def own_bpe():
    return train_bpe(
        ["the quick brown fox jumps over the lazy dog's back 123 456\n\n  def f(x):\n" * 3, "ab abc bc"], 330
    )


def test_special_tokens_come_after_the_others():
    tokenizer = own_bpe()
    more = tokenizer.with_special_tokens(["<|poetry|>", END_OF_TEXT, "<|code|>"])
    assert len(more) == len(tokenizer) + 2 and more.end_of_text == tokenizer.end_of_text
    assert more.encode("<|code|>", allow_special=True) == [len(tokenizer) + 1]
    assert more.encode("<|code|>") == tokenizer.encode("<|code|>")
    assert Tokenizer.from_json(more.to_json()).encode("<|poetry|>", allow_special=True) == [len(tokenizer)]
    assert more.decode([len(tokenizer), *tokenizer.encode("ab")]) == "ab"
    assert more.with_special_tokens(["<|poetry|>"]).to_json() == more.to_json()
