"""What readers ask of a batcher, and how it writes texts that share no steps with others."""

import dataclasses

import jax

from gpt2_jax.generation.pausing import Pausing
from gpt2_jax.generation.request import Request
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.serving.stream import Score, Stream


@dataclasses.dataclass
class Job:
    """A prompt, and those of its texts that still wait for a row."""

    request: Request
    waiting: list[Stream]
    read: int = 0  # tokens of the prompt that the model has read


def write_alone(lm: LanguageModel, job: Job) -> Pausing[None]:
    """Writes the texts of a job; pauses after each token. Those of a search are known at its end only."""
    request, streams = job.request, job.waiting
    if request.options.search != "sample" or request.options.best_of is not None:
        results = yield from lm.run(request, chunk=1)
        for stream in streams:
            stream.give(results[stream.number])
        return
    for stream in streams:
        stream.start()
    start = len(request.prompts[0])
    shown = dict.fromkeys(streams, start)
    for state in lm.states(request, chunk=1):
        tokens, lengths, scores = jax.device_get((state.history.tokens, state.history.lengths, state.scores))
        for stream in streams:
            for place in range(shown[stream], lengths[stream.number]):
                at = stream.number, place - start
                score = scores and Score(float(scores.chosen[at]), scores.top[at], scores.top_tokens[at])
                hand(stream, int(tokens[stream.number, place]), score)
            shown[stream] = lengths[stream.number]
        yield
    for stream in streams:
        if not stream.over:
            stream.stop("time")


def hand(stream: Stream, token: int, score: Score | None) -> None:
    """Gives a text its next token, if it is not over; a fault of one text is its own."""
    if stream.over:
        return
    try:
        stream.add(token, score)
    except Exception as error:
        stream.fail(error)
