"""The body of a completion request as OpenAI's API has it, checked, in the words of `generate`.

https://platform.openai.com/docs/api-reference/completions, and beside its fields those of
`gpt2_jax.generation.options.Options` that it has no name for.
"""

import dataclasses
import numbers
import re
import secrets
from collections.abc import Mapping
from typing import Any

from gpt2_jax import json_files
from gpt2_jax.errors import InputError, check, one_line, shown, suggest
from gpt2_jax.generation.options import DEFAULTS
from gpt2_jax.generation.request import HEAD
from gpt2_jax.language_model import LanguageModel

DEFAULT_TOKENS = 16
MOST_TOKENS, MOST_PROMPTS, MOST_CANDIDATES, MOST_ENTRIES = 4096, 64, 16, 300  # of a request; entries are of lists
MOST_STOPS, MOST_STOP_BYTES = 4, 256
# Names of the API, and those of `generate` for the same.
RENAMED = {
    "max_tokens": "max_new_tokens", "n": "num_return_sequences", "stop": "stop_strings", "logit_bias": "sequence_bias"
}  # fmt: skip
SAME = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "best_of", "seed", "logprobs")
OWN = ("model", "prompt", "suffix", "stream", "stream_options", "echo", "user")
EXTENSIONS = tuple(name for name in DEFAULTS if name not in {*RENAMED.values(), *SAME})


class RequestError(InputError):
    """A request that is refused.

    Attributes:
      param: the field that is wrong, or None.
    """

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """What a client asks for.

    Attributes:
      model: its name, not looked up yet.
      prompts: texts or token ids.
      options: of `generate`, without max_new_tokens where the client gives none.
      copies: times that the text of each prompt is given, 1 but for the n equal ones of temperature 0.
      stream, include_usage, echo: as in the API.
    """

    model: str
    prompts: list[str | list[int]]
    options: dict[str, Any]
    copies: int = 1
    stream: bool = False
    include_usage: bool = False
    echo: bool = False

    @property
    def texts(self) -> int:
        """How many texts a prompt."""
        return self.copies * self.options.get("num_return_sequences", 1)

    def options_for(self, lm: LanguageModel, prompt: str | list[int]) -> tuple[list[int], dict[str, Any]]:
        """The prompt as ids and what to generate with; by default 16 tokens, or what the context leaves."""
        ids = lm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        ids = ids or [lm.tokenizer.end_of_text]
        options = {"max_new_tokens": DEFAULT_TOKENS} | self.options
        if "max_new_tokens" not in self.options and options.get("beyond_context") != "slide":
            room = lm.config.n_positions - len(ids) - HEAD * ("control" in options)
            options["max_new_tokens"] = max(1, min(DEFAULT_TOKENS, room))
        return ids, options


def read(body: bytes) -> CompletionRequest:
    """Reads and checks a body.

    Raises:
      RequestError: it is no JSON object, has a field that is not known, or one that is wrong.
    """
    try:
        fields = json_files.parse(body)
    except ValueError as error:
        raise RequestError(f"the body is no JSON: {one_line(error)}") from None
    known = (*OWN, *RENAMED, *SAME, *EXTENSIONS)
    for name in fields:
        if name in RENAMED.values():
            api = next(api for api, own in RENAMED.items() if own == name)
            raise RequestError(f"{name} is called {api!r} here", name)
        if name not in known:
            raise RequestError(f"there is no field {shown(name)}; {suggest(name, list(known))}", name)
    given = {name: value for name, value in fields.items() if value is not None}
    for name, value in given.items():
        with_param(name, CHECKS[name], value)
    options = {RENAMED.get(name, name): value for name, value in given.items() if name not in OWN}
    if isinstance(bias := options.get("sequence_bias"), dict):
        options["sequence_bias"] = {(int(token),): number for token, number in bias.items()}
    options.setdefault("seed", secrets.randbelow(2**31))
    if options.get("best_of") == 1 == options.get("num_return_sequences", 1):  # the API's default
        del options["best_of"]
    copies = 1
    if options.get("temperature") == 0 and not options.keys() & {"num_beams", "best_of"}:
        # The API lets greedy requests say what they would draw among, and how many; `generate` refuses it.
        options.pop("top_p", None)
        copies = options.pop("num_return_sequences", 1)
    request = CompletionRequest(
        model=_required(given, "model"),
        prompts=_prompts(given.get("prompt", "")),
        options=options,
        copies=copies,
        stream=given.get("stream", False),
        include_usage=given.get("stream_options", {}).get("include_usage", False),
        echo=given.get("echo", False),
    )
    _check_together(given, request)
    return request


def with_param(name: str | None, function: Any, *arguments: Any, **options: Any) -> Any:
    """Calls the function; an `InputError` becomes the `RequestError` of the field `name`, or of one that it names."""
    try:
        return function(*arguments, **options)
    except InputError as error:
        raise in_words_of_the_api(error, name) from None


def in_words_of_the_api(error: InputError, param: str | None = None) -> RequestError:
    """An error of `generate` with the names that the client used."""
    own = {name: api for api, name in RENAMED.items()}
    message = re.sub(r"\b(?:" + "|".join(own) + r")\b", lambda match: own[match[0]], str(error))
    first = re.match(r"\w+", message)
    named = first[0] if first and first[0] in CHECKS else None
    return RequestError(message, param or named)


def _required(given: Mapping[str, Any], name: str) -> Any:
    if name not in given:
        raise RequestError(f"{name} is missing; /v1/models lists what is served", name)
    return given[name]


def _prompts(prompt: Any) -> list[str | list[int]]:
    """A list of texts or of lists of ids, from one or several."""
    if isinstance(prompt, str) or (prompt and all(_is_whole(x) for x in prompt)):
        return [prompt]
    return list(prompt)


def _check_together(given: Mapping[str, Any], request: CompletionRequest) -> None:
    texts = len(request.prompts) * max(request.texts, request.options.get("best_of", 1))
    if texts > MOST_PROMPTS:
        raise RequestError(f"prompt, n and best_of ask for {texts} texts; a request has at most {MOST_PROMPTS}", "n")
    if "stream_options" in given and not request.stream:
        raise RequestError("stream_options has no effect without stream; remove one", "stream_options")
    if request.stream and "best_of" in request.options:
        raise RequestError("best_of is known at the end only; a stream has none: remove one", "best_of")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_prompt(prompt: Any) -> None:
    texts = _prompts(prompt) if isinstance(prompt, (str, list)) else None
    right = texts and all(isinstance(x, str) or (x and isinstance(x, list) and all(map(_is_whole, x))) for x in texts)
    check(bool(right), "prompt", prompt, "a text, a list of texts, token ids, or a list of lists of them; none empty")
    check(len(texts) <= MOST_PROMPTS, "prompt", f"a list of {len(texts)}", f"at most {MOST_PROMPTS} prompts")
    large = next((i for x in texts if isinstance(x, list) for i in x if not 0 <= i < 2**31), None)
    check(large is None, "prompt", large, "ids from 0 to the end of the vocabulary")


def _check_stop(stop: Any) -> None:
    strings = [stop] if isinstance(stop, str) else stop
    right = isinstance(strings, list) and all(isinstance(string, str) for string in strings)
    check(right and len(strings) <= MOST_STOPS, "stop", stop, f"a text or a list of at most {MOST_STOPS}")
    size = sum(len(string.encode()) for string in strings)
    check(size <= MOST_STOP_BYTES, "stop", stop, f"at most {MOST_STOP_BYTES} bytes together")


def _check_logit_bias(bias: Any) -> None:
    right = isinstance(bias, dict) and all(re.fullmatch(r"\d{1,9}", token) for token in bias)
    right = right and all(_is_number(number) and -100 <= number <= 100 for number in bias.values())
    check(right, "logit_bias", bias, 'token ids with numbers from -100 to 100, such as {"50256": -100}')
    check(len(bias) <= MOST_ENTRIES, "logit_bias", f"of {len(bias)} tokens", f"of at most {MOST_ENTRIES}")


def _check_stream_options(options: Any) -> None:
    right = isinstance(options, dict) and options.keys() <= {"include_usage"}
    right = right and isinstance(options.get("include_usage", False), bool)
    check(right, "stream_options", options, '{"include_usage": true}')


def _check_suffix(suffix: Any) -> None:
    raise InputError(f"suffix is {shown(suffix)}; GPT-2 continues a text and does not fill in: remove it")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_list(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_ENTRIES and all(map(kind, value))


def _is_phrase(value: Any) -> bool:
    return isinstance(value, str) or _is_list(value, _is_id)


def _is_id(value: Any) -> bool:
    return _is_whole(value) and 0 <= value < 2**31


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _within(name: str, low: int, high: int):
    return lambda value: check(_is_whole(value) and low <= value <= high, name, value, f"from {low} to {high}")


def _check_kind(name: str, right: Any, words: str):
    return lambda value: check(bool(right(value)), name, value, words)


IDS = f"a list of at most {MOST_ENTRIES} token ids"
KINDS = {
    "model": (lambda x: isinstance(x, str), "a text"),
    "user": (lambda x: isinstance(x, str), "a text"),
    "control": (lambda x: isinstance(x, str), "a text"),
    "negative_control": (lambda x: isinstance(x, str), "a text"),
    "negative_prompt": (lambda x: _is_phrase(x) and x != [], "a text or token ids"),
    "beyond_context": (lambda x: isinstance(x, str), "a text"),
    "stream": (lambda x: isinstance(x, bool), "true or false"),
    "echo": (lambda x: isinstance(x, bool), "true or false"),
    "early_stopping": (lambda x: isinstance(x, (bool, str)), 'true, false or "never"'),
    "suppress_tokens": (lambda x: _is_list(x, _is_id), IDS),
    "begin_suppress_tokens": (lambda x: _is_list(x, _is_id), IDS),
    "eos_token_id": (lambda x: _is_id(x) or _is_list(x, _is_id), f"a token id or {IDS}"),
    "bad_words_ids": (lambda x: _is_list(x, _is_phrase), f"a list of at most {MOST_ENTRIES} texts or lists of ids"),
    "exponential_decay_length_penalty": (_is_pair, "two numbers"),
    "line_length": (_is_pair, "two numbers"),
}
BOUNDS = {
    "max_tokens": (1, MOST_TOKENS), "n": (1, MOST_PROMPTS), "best_of": (1, MOST_CANDIDATES), "logprobs": (0, 5),
    "num_beams": (1, MOST_CANDIDATES), "num_beam_groups": (1, MOST_CANDIDATES), "seed": (-(2**63), 2**63),
}  # fmt: skip
WHOLE = ("top_k", "no_repeat_ngram_size", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id")
CHECKS = {
    **{name: _check_kind(name, _is_number, "a number") for name in (*SAME, *EXTENSIONS)},
    **{name: _check_kind(name, _is_whole, "a whole number") for name in WHOLE},
    **{name: _check_kind(name, *kind) for name, kind in KINDS.items()},
    **{name: _within(name, *bounds) for name, bounds in BOUNDS.items()},
    "prompt": _check_prompt,
    "stop": _check_stop,
    "logit_bias": _check_logit_bias,
    "stream_options": _check_stream_options,
    "suffix": _check_suffix,
}
