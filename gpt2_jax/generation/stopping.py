"""Stop strings inside the jitted loop: an automaton over the bytes of tokens, so that no token boundary hides one.

Aho and Corasick (1975): a state is the longest suffix of the text so far that begins some stop string. Each token moves
it by all its bytes at once, by a table made beforehand.
"""

import functools
from collections.abc import Sequence

import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import Tokenizer

START = 0


def stop_table(stop_strings: Sequence[str], tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """The automaton's moves: int16 [states, vocab_size], `state = table[state, token]` from `START`.

    The last state means that a stop string is complete, and is never left. The number of states is rounded up to a
    power of two, so that other strings find the loop compiled.

    Raises:
      InputError: an empty string, or strings of more than 32,000 bytes together.
    """
    return _table(tuple(stop_strings), tokenizer, vocab_size)


@functools.lru_cache(maxsize=8)  # the table of one string takes some 20 ms for GPT-2's vocabulary
def _table(stop_strings: tuple[str, ...], tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    by_byte = _automaton(stop_strings)  # [states, 256]
    spelled = [tokenizer.spelling(i) for i in range(min(vocab_size, len(tokenizer)))]
    lengths = np.array([len(spelling) for spelling in spelled])
    table = np.repeat(np.arange(len(by_byte), dtype=np.int16)[:, None], vocab_size, axis=1)
    for i in range(lengths.max()):
        tokens = np.flatnonzero(lengths > i)
        byte = np.array([spelled[token][i] for token in tokens])
        table[:, tokens] = by_byte[table[:, tokens], byte]
    return table


class Watch:
    """The automaton outside of the loop: it is given tokens as they come."""

    def __init__(self, stop_strings: Sequence[str], tokenizer: Tokenizer):
        """Errors are those of `stop_table`."""
        self._moves, self._tokenizer, self._state = _automaton(tuple(stop_strings)), tokenizer, START

    def put(self, token: int) -> bool:
        """Whether a stop string is complete."""
        for byte in self._tokenizer.spelling(token):
            self._state = self._moves[self._state, byte]
        return bool(self._state == len(self._moves) - 1)


@functools.lru_cache(maxsize=8)
def _automaton(stop_strings: tuple[str, ...]) -> np.ndarray:
    """int16 [states, 256]; the last state, which absorbs, is "complete"."""
    if any(not string for string in stop_strings):
        raise InputError("stop_strings has an empty string, which would stop everything; give text")
    strings = [string.encode() for string in stop_strings]
    children: list[dict[int, int]] = [{}]
    complete: set[int] = set()
    for string in strings:
        node = START
        for byte in string:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
            node = children[node][byte]
        complete.add(node)

    states = 1 << len(children).bit_length()  # at least one more than the nodes: the last state is none of theirs
    if states > 2**15:
        raise InputError(f"stop_strings have {len(children) - 1:,} bytes together; at most 32,000 are allowed")
    moves = np.zeros((states, 256), np.int16)
    suffix = [START] * len(children)  # of each node, the longest proper suffix that is a node, too
    queue = [START]
    for node in queue:  # breadth first: a node's suffix is shorter, and done
        moves[node] = moves[suffix[node]]
        for byte, child in children[node].items():
            suffix[child] = int(moves[node, byte]) if node != START else START
            moves[node, byte] = child
            queue.append(child)
        if suffix[node] in complete:
            complete.add(node)
    moves = np.where(np.isin(moves, list(complete)), states - 1, moves).astype(np.int16)
    moves[states - 1] = states - 1
    return moves


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """`text` up to the first stop string in it."""
    found = [at for string in stop_strings if (at := text.find(string)) >= 0]
    return text[: min(found)] if found else text


def held_back(text: str, stop_strings: Sequence[str]) -> int:
    """How many characters at the end of `text` may turn out to begin a stop string."""
    longest = max((len(string) for string in stop_strings), default=0)
    return next(
        (n for n in range(min(longest - 1, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stop_strings)), 0
    )
