"""Python that a model writes: a completion that ends where its block does, and the best of several that parse."""

import ast
import dataclasses
import itertools
import re
import string
import warnings
from collections.abc import Sequence
from typing import Any

from gpt2_jax.errors import InputError, check
from gpt2_jax.generation import batches
from gpt2_jax.language_model import Generation, LanguageModel

# Chen et al. (2021), section 3.1: what ends a function of HumanEval.
HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
DEEPEST = 8  # spaces of the definitions whose end stops a draw at once
# What another statement or a comment begins with. Brackets and quotes may end what is there, and so do the e of else,
# elif and except, and finally.
STARTS = (*sorted(set(string.ascii_letters + "_@#") - {"e", "f"}), "for ", "from ")

_DEFINITION = re.compile(r"[ \t]*(?:async[ \t]+)?(?:def|class)\b")
_LINE = re.compile(r"^[ \t]*(?=[^\s])", re.M)


@dataclasses.dataclass(frozen=True)
class Completion:
    """Code after a prompt.

    Attributes:
      text: the prompt and the code.
      code: what was added, up to the end of its block.
      valid: whether `text` parses.
      score: mean log-probability of the new tokens, in nats.
      stop_reason: of the draw: "stop_string" at the end of the block, "end_token", "length" or "time".
    """

    text: str
    code: str
    valid: bool
    score: float
    stop_reason: str

    def __str__(self) -> str:
        return self.text


def complete(
    lm: LanguageModel, prompt: str | Sequence[str], *, best_of: int = 1, batch_size: int = 8, **options: Any
) -> Completion | list[Completion]:
    """Continues Python to the end of the block that the prompt leaves open, or of its next statement.

    Args:
      lm: the model.
      prompt: code, or a list of such.
      best_of: candidates for each prompt; of those that parse, else of all, the one of the highest mean
        log-probability is kept.
      batch_size: candidates drawn together.
      **options: those of `lm.generate`, but those that this sets itself: `stop_strings`, `logprobs` and how many.

    Returns:
      A `Completion`, or one for each prompt of a list.

    Raises:
      InputError: options that this sets itself, or what `generate` refuses.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    candidates = sample(lm, prompts, best_of, batch_size=batch_size, **options)
    best = [max(those, key=lambda c: (c.valid, c.score)) for those in candidates]
    return best[0] if isinstance(prompt, str) else best


def sample(
    lm: LanguageModel, prompts: Sequence[str], number: int, *, batch_size: int = 8, seed: int = 0, **options: Any
) -> list[list[Completion]]:
    """`number` completions of each prompt, of seeds that follow each other; the rest is as of `complete`."""
    for name, value in (("the number of candidates", number), ("batch_size", batch_size)):
        check(type(value) is int and value >= 1, name, value, "a whole number, at least 1")
    check(isinstance(seed, int), "seed", seed, "one whole number: candidates have the ones from it on")
    if taken := sorted(options.keys() & {"stop_strings", "logprobs", "num_return_sequences"}):
        raise InputError(f"{taken[0]} is set by the completion of code; remove it, or call lm.generate")
    if number > 1 and options.get("temperature") == 0:
        raise InputError(f"{number} candidates at temperature 0 are all the same; set a temperature above 0")
    found: dict[int, list[Completion]] = {}
    for stop_strings in dict.fromkeys(map(stops, prompts)):
        those = [i for i, prompt in enumerate(prompts) if stops(prompt) == stop_strings]
        rows = [(prompts[i], seed + n) for i in those for n in range(number)]
        drawn = batches.generate(lm, rows, batch_size, stop_strings=stop_strings, logprobs=0, **options)
        for i in those:
            found[i] = [_completion(prompts[i], generation) for generation in itertools.islice(drawn, number)]
    return [found[i] for i in range(len(prompts))]


def parses(code: str) -> bool:
    """Whether Python's parser takes `code`, which is not run; what begins indented is read as the body of a block."""
    indented = re.match(r"(?:[ \t]*\n)*[ \t]+\S", code) is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d", which is no error
            body = ast.parse("if True:\n" + code if indented else code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deep for it
        return False
    return not indented or (len(body) == 1 and not body[0].orelse)  # else a line at the margin ended the block


def validity_rate(codes: Sequence[str]) -> float:
    """The share of `codes` that parse.

    Raises:
      InputError: there are none.
    """
    check(len(codes) >= 1, "the number of texts", len(codes), "at least 1")
    return sum(map(parses, codes)) / len(codes)


def cut_block(prompt: str, code: str) -> str:
    """`code` up to the end of the block that `prompt` leaves open, or of the first statement where it leaves none open.

    The block ends before a line that is indented no deeper than its `def` or `class`, and where what is before it
    parses: a line within brackets or a string ends nothing. Where nothing parses, at the first such line.
    """
    indent, opened = _open_definition(prompt)
    text, first = prompt + code, None
    for line in _LINE.finditer(text, len(prompt)):
        at = line.start()
        if _width(line[0]) > indent:
            continue
        if not opened and not text[len(prompt) : at].strip():
            continue  # nothing is there yet
        if parses(text[:at]):
            return text[len(prompt) : at]
        first = at if first is None else first
    return code if first is None or parses(text) else text[len(prompt) : first]


def stops(prompt: str) -> tuple[str, ...]:
    """Stop strings that end a draw where the block that `prompt` leaves open ends: a statement no deeper than its head.

    Deeper definitions than `DEEPEST` spaces stop at lines up to there alone; `cut_block` finds the rest.
    """
    indent, _ = _open_definition(prompt)
    return tuple(f"\n{' ' * spaces}{start}" for spaces in range(0, min(indent, DEEPEST) + 1, 4) for start in STARTS)


def _completion(prompt: str, generation: Generation) -> Completion:
    code = cut_block(prompt, generation.completion)
    score = float(generation.logprobs.mean()) if len(generation.logprobs) else -float("inf")
    return Completion(prompt + code, code, parses(prompt + code), score, generation.stop_reason)


def _open_definition(prompt: str) -> tuple[int, bool]:
    """(spaces before the last `def` or `class` that is open where `prompt` ends, or 0; whether its block has begun)."""
    lines = prompt.split("\n")
    lowest = None  # indentation of the lines after: one as deep as a definition or less has ended its block
    for number, line in reversed(list(enumerate(lines))):
        if not line.strip():
            continue
        width = _width(line)
        if _DEFINITION.match(line) and (lowest is None or width < lowest):
            return width, number < len(lines) - 1 or lowest is not None
        lowest = width if lowest is None else min(lowest, width)
    return 0, False


def _width(line: str) -> int:
    return len(re.match(r"[ \t]*", line)[0].expandtabs(8))
