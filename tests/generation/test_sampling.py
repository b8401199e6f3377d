import jax
import pytest

from gpt2_jax import InputError
from gpt2_jax.generation.sampling import Sampling

V = 30


def test_settings_pass_through_transforms_of_trees():
    s = Sampling.of(V, top_k=12, bad_words_ids=[[5], [1, 2, 6]], sequence_bias={(7,): 2.0}, suppress_tokens=[10])
    copy = jax.tree.map(lambda x: x, s)
    assert jax.tree.structure(copy) == jax.tree.structure(s) and copy.top_k == 12
    assert Sampling.of(V, bad_words_ids=[], sequence_bias={}, suppress_tokens=()) == Sampling()


WHOLE = "it must be a whole number, 0 \\(off\\) or above$"
ONE_OFF = r"it must be in \(0, 1\], where 1 is off$"
ID = "it must be a token id from 0 to 29: encode text with the model's tokenizer$"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0.1; it must be 0 \(greedy\) or above$"),
        ({"temperature": float("nan")}, "temperature is nan; it must be 0"),
        ({"temperature": float("inf")}, "temperature is inf; it must be 0"),
        ({"temperature": True}, "temperature is True; it must be 0"),
        ({"top_k": -1}, f"top_k is -1; {WHOLE}"),
        ({"top_k": 1.5}, f"top_k is 1.5; {WHOLE}"),
        ({"top_k": float("inf")}, f"top_k is inf; {WHOLE}"),
        ({"top_p": 0}, f"top_p is 0; {ONE_OFF}"),
        ({"top_p": 1.01}, f"top_p is 1.01; {ONE_OFF}"),
        ({"top_p": float("nan")}, f"top_p is nan; {ONE_OFF}"),
        ({"min_p": -0.1}, r"min_p is -0.1; it must be in \[0, 1\], where 0 is off$"),
        ({"typical_p": 0.0}, f"typical_p is 0.0; {ONE_OFF}"),
        ({"epsilon_cutoff": 1.0}, r"epsilon_cutoff is 1.0; it must be in \[0, 1\), where 0 is off$"),
        ({"eta_cutoff": -1}, r"eta_cutoff is -1; it must be in \[0, 1\), where 0 is off$"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0, where 1 is off$"),
        ({"presence_penalty": float("inf")}, "presence_penalty is inf; it must be a finite number, where 0 is off$"),
        ({"frequency_penalty": 1e39}, r"frequency_penalty is 1e\+39; it must be a finite number, where 0 is off$"),
        ({"no_repeat_ngram_size": 0.5}, f"no_repeat_ngram_size is 0.5; {WHOLE}"),
        ({"min_new_tokens": -2}, f"min_new_tokens is -2; {WHOLE}"),
        ({"forced_bos_token_id": V}, f"forced_bos_token_id has 30; {ID}"),
        ({"forced_eos_token_id": -1}, f"forced_eos_token_id has -1; {ID}"),
        ({"bad_words_ids": [[1], []]}, "bad_words_ids has a phrase without tokens; remove it$"),
        ({"bad_words_ids": [[1, V]]}, f"bad_words_ids has 30; {ID}"),
        ({"bad_words_ids": [["a"]]}, f"bad_words_ids has 'a'; {ID}"),
        ({"sequence_bias": {(): 1.0}}, "sequence_bias has a phrase without tokens; remove it$"),
        ({"sequence_bias": {(-1,): 1.0}}, f"sequence_bias has -1; {ID}"),
        (
            {"sequence_bias": {(1, 2): "x"}},
            r"sequence_bias of \(1, 2\) is x; it must be a finite number, or -inf for a",
        ),
        ({"sequence_bias": {(1,): float("nan")}}, r"sequence_bias of \(1,\) is nan; it must be a finite number"),
        ({"sequence_bias": {(1,): float("inf")}}, r"sequence_bias of \(1,\) is inf; it must be a finite number"),
        ({"suppress_tokens": [1.0]}, f"suppress_tokens has 1.0; {ID}"),
        ({"begin_suppress_tokens": [True]}, f"begin_suppress_tokens has True; {ID}"),
        (
            {"suppress_tokens": range(29), "bad_words_ids": [[29]]},
            "suppress_tokens and bad_words_ids ban all 30 tokens of the vocabulary; leave at least one$",
        ),
        (
            {"suppress_tokens": [0], "begin_suppress_tokens": range(1, 30)},
            "begin_suppress_tokens, suppress_tokens and bad_words_ids ban all 30 tokens of the vocabulary; leave",
        ),
        (
            {"forced_bos_token_id": 3, "suppress_tokens": [3]},
            "forced_bos_token_id is 3, which suppress_tokens or bad_words_ids bans; remove one$",
        ),
        ({"exponential_decay_length_penalty": 3}, "exponential_decay_length_penalty is 3; it must be two numbers$"),
        (
            {"exponential_decay_length_penalty": (1.5, 2)},
            r"exponential_decay_length_penalty is \(1.5, 2\); it must be a whole number of new tokens, 0 or more",
        ),
        ({"exponential_decay_length_penalty": (float("nan"), 2)}, r"penalty is \(nan, 2\); it must be a whole number"),
        ({"exponential_decay_length_penalty": (1, 0)}, r"exponential_decay_length_penalty is \(1, 0\); it must be"),
        ({"line_length": "40"}, "line_length is '40'; it must be two numbers$"),
        ({"line_length": (0, 1)}, r"line_length is \(0, 1\); it must be characters a line, at least 1, and a strength"),
        ({"line_length": (40, float("inf"))}, r"line_length is \(40, inf\); it must be characters a line"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        Sampling.of(V, **options)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="top_n"):
        Sampling.of(V, top_n=3)
