import pytest

from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer_training import train_bpe, train_characters

CORPUS = [
    "def f(x):\n    return x + 1\n\n\nfor i in range(10):\n\tprint(f(i))\n" * 20,
    "Once upon a time, the big brown fox was in a naïve café — with 猫 and 🎉🎉. It's 3 o'clock!\r\n" * 20,
]


def test_training_is_deterministic_and_bounded():
    bpe = train_bpe(CORPUS, 330)
    assert train_bpe(iter(CORPUS), 330).to_json() == bpe.to_json()
    assert len(bpe) == 330
    assert len(train_bpe(["ab"], 5000)) == 258  # the bytes, the one pair there is, end-of-text
    assert len(train_bpe(["ab ab"], 257)) == 257


def test_nothing_to_train_on():
    message = "^there is no text to train a tokenizer on: every document is empty; give some text$"
    for train in (train_characters, lambda texts: train_bpe(texts, 300)):
        for texts in ([], ["", ""]):
            with pytest.raises(InputError, match=message):
                train(texts)
    with pytest.raises(InputError, match=r"^vocab_size is 256; it must be at least 257"):
        train_bpe(CORPUS, 256)
