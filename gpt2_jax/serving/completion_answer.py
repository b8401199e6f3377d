"""What is answered to a completion request, as OpenAI's API has it: texts, log-probabilities and counts."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2_jax.serving.stream import Piece, Score, Stream
from gpt2_jax.tokenizer import Tokenizer

LEAST = -9999.0  # log-probability that is told
FINISH = {"end_token": "stop", "stop_string": "stop", "length": "length", "time": "length"}


class Answer:
    """The frame of an answer, which chunks of a stream share."""

    def __init__(self, model: str):
        self._frame = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": model
        }  # fmt: skip

    def of(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An answer, or a part of one, with these choices."""
        return {**self._frame, "choices": list(choices), **more}


class Choice:
    """One text, to which pieces come.

    Attributes:
      index: among the choices.
      stream: where the pieces come from.
    """

    def __init__(
        self, index: int, stream: Stream, tokenizer: Tokenizer, *, echo: bool, prompt_scores: Sequence[Score | None]
    ):
        """`echo`: the prompt is told, too, with the scores of its tokens, if there are any."""
        self.index, self.stream = index, stream
        self._tokenizer, self._echo, self._prompt_scores = tokenizer, echo, prompt_scores
        self._decoder, self._characters = tokenizer.stream_decoder(), 0  # of the tokens so far
        self._told = 0  # characters

    def opening(self) -> dict[str, Any] | None:
        """The prompt, if it is to be told."""
        if not self._echo:
            return None
        ids = self.stream.request.prompts[0]
        return self._choice(self._tokenizer.decode(ids), ids, self._prompt_scores)

    def piece(self, piece: Piece) -> dict[str, Any]:
        """What is new in a text."""
        return self._choice(piece.text, piece.tokens, piece.scores)

    def end(self) -> dict[str, Any]:
        """What says that, and why, the text is over.

        Raises:
          Exception: what ended it early.
        """
        result = self.stream.result()
        return {"text": "", "index": self.index, "logprobs": None, "finish_reason": FINISH[result.stop_reason]}

    def _choice(self, text: str, tokens: Sequence[int], scores: Sequence[Score | None]) -> dict[str, Any]:
        self._told += len(text)
        return {
            "text": text,
            "index": self.index,
            "logprobs": self._logprobs(tokens, scores) if len(scores) else None,
            "finish_reason": None,
        }

    def _logprobs(self, tokens: Sequence[int], scores: Sequence[Score | None]) -> dict[str, list[Any]]:
        """Of the tokens that the text has told: what spells a stop string and end tokens are not part of it."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, score in zip(tokens, scores):
            offset = self._characters
            self._characters += len(self._decoder.put([token]))
            if offset >= self._told:
                break
            found["tokens"].append(spelled(self._tokenizer, token))
            found["token_logprobs"].append(None if score is None else _number(score.chosen))
            found["top_logprobs"].append(None if score is None else self._top(token, score))
            found["text_offset"].append(offset)
        return found

    def _top(self, token: int, score: Score) -> dict[str, float]:
        """The most probable tokens, and the one that was taken."""
        top = {spelled(self._tokenizer, i): _number(value) for i, value in zip(score.top_tokens.tolist(), score.top)}
        return {**top, spelled(self._tokenizer, token): _number(score.chosen)}


def join(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One choice from its opening, pieces and end."""
    lists = [part["logprobs"] for part in parts if part["logprobs"] is not None]
    logprobs = {name: [x for found in lists for x in found[name]] for name in lists[0]} if lists else None
    return {**parts[-1], "text": "".join(part["text"] for part in parts), "logprobs": logprobs}


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens that were read, each prompt once, and written; an end token counts as none."""
    lengths = {id(choice.stream.request): len(choice.stream.request.prompts[0]) for choice in choices}
    read = sum(lengths.values())
    written = sum(len(choice.stream.result().tokens) - lengths[id(choice.stream.request)] for choice in choices)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as text, or "bytes:\\xe2\\x80" where its bytes are none."""
    spelling = tokenizer.spelling(token)
    try:
        return spelling.decode() or tokenizer.decode([token], skip_special=False)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)


def _number(value: float | np.floating) -> float:
    return max(round(float(value), 6), LEAST)
