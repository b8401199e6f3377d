"""The text of benchmarks as people write it, and back: "the dog 's tail , well @-@ fed" <-> "the dog's tail, well-fed".

Benchmarks of words publish their text cut into words, such as GPT-2 has never seen. Its paper undoes that with
"invertible de-tokenizers"; so do these. Each corpus has a pattern, which cuts written text into words, and rules, which
guess what words are written together. A guess is taken only where the pattern cuts it into the same words again. Words
that the pattern itself would cut, such as "Col.", are found in the text first, and known from then on. So `tokenize` of
`detokenize` of any text is that text.
"""

import dataclasses
import re

OPENING = frozenset("([{\u201c\u2018$£€¥#") | {"``", "-LRB-", "-LSB-", "-LCB-"}
CLOSING = frozenset(",.;:!?)]}\u201d\u2019%°") | {"''", "-RRB-", "-RSB-", "-RCB-", "..."}
BETWEEN = frozenset({"@-@", "@,@", "@.@", "/"})
_ENDING = re.compile(r"'(?:s|t|re|ve|ll|d|m)|n't", re.IGNORECASE)
_ENDINGS = r"'(?:s|t|re|ve|ll|d|m)\b"
# What a group of a pattern finds is a word that is spelt otherwise.
_WIKITEXT = rf"""@[-,.]@ | <\w+> | (?:[^\W\d_]\.){{2,}} | \.{{2,}} | -{{2,}} | {_ENDINGS}
    | (?P<hyphen>(?<=[\w>])-(?=[\w<])) | (?P<comma>(?<=[\d>]),(?=[\d<])) | (?P<point>(?<=[\d>])\.(?=[\d<])) | \w+ | ."""
_PENN = rf"""<\w+> | n't\b | {_ENDINGS} | \w+?(?=n't\b) | \w[\w.\\/&*-]* | ."""
_NEWS = rf"""(?:[^\W\d_]\.){{2,}} | \.{{2,}} | -{{2,}} | {_ENDINGS} | \d+(?:[.,:]\d+)*\w* | \w+(?:[-&]\w+)* | ."""
_BOOKS = rf"""-[LR][RSC]B- | `` | '' | (?P<opens>(?<!.)"(?=.)) | (?P<closes>(?<=.)") | (?P<left>\() | (?P<right>\))
    | n't\b | {_ENDINGS} | \w+?(?=n't\b) | \w+(?:-\w+)* | \.{{2,}} | -{{2,}} | ."""
PATTERNS = {name: re.compile(pattern, re.VERBOSE | re.IGNORECASE | re.DOTALL) for name, pattern in (
    ("wikitext", _WIKITEXT), ("ptb", _PENN), ("1bw", _NEWS), ("cbt", _BOOKS),
)}  # fmt: skip
WORD_OF_GROUP = {
    "hyphen": "@-@", "comma": "@,@", "point": "@.@", "opens": "``", "closes": "''", "left": "-LRB-", "right": "-RRB-",
}  # fmt: skip
SPELT = {"@-@": "-", "@,@": ",", "@.@": ".", "``": '"', "''": '"', "-LRB-": "(", "-RRB-": ")"}


@dataclasses.dataclass(frozen=True)
class Detokenizer:
    """Of a text, see `of`.

    Attributes:
      pattern: what cuts written text.
      known: words of the text that the pattern would cut.
      padded: the text's lines begin and end with a space, as those of WikiText do.
    """

    pattern: re.Pattern
    known: frozenset[str]
    padded: bool

    @classmethod
    def of(cls, corpus: str, text: str) -> "Detokenizer":
        """That of a text of a corpus, one of `PATTERNS`."""
        *lines, last = text.split("\n")
        is_padded = lambda line: line == " " or (len(line) > 2 and line[0] == line[-1] == " ")
        found = cls(PATTERNS[corpus], frozenset(), padded=bool(lines) and not last and all(map(is_padded, lines)))
        words = {word for line in [*lines, last] for word in line.split(" ")}
        for _ in range(2):  # words that begin with one of the first round's are found in the second
            cut_up = {word for word in words if found.cut(word) != [word]}
            found = dataclasses.replace(found, known=found.known | cut_up)
        return found

    def detokenize(self, text: str) -> str:
        """The text, or some of its lines, as people write it."""
        return "\n".join(self._written(line[1:-1] if self.padded and line else line) for line in text.split("\n"))

    def tokenize(self, text: str) -> str:
        """What `detokenize` was given."""
        *lines, last = [self._words(line) for line in text.split("\n")]
        pad = lambda line: f" {line} " if line else " "
        return "\n".join([*(map(pad, lines) if self.padded else lines), last])

    def cut(self, piece: str) -> list[str]:
        """The words of a piece of written text, in which there are no spaces."""
        words, at = [], 0
        while at < len(piece):
            ends = range(len(piece), at, -1) if self.known else ()
            end = next((end for end in ends if piece[at:end] in self.known), None)
            if end is not None:
                words.append(piece[at:end])
            else:
                match = self.pattern.match(piece, at)
                words.append(WORD_OF_GROUP.get(match.lastgroup, match[0]))
                end = match.end()
            at = end
        return words or [""]

    def _words(self, line: str) -> str:
        return " ".join(word for piece in line.split(" ") for word in self.cut(piece))

    def _written(self, line: str) -> str:
        words, pieces, at = line.split(" "), [], 0
        bound = _bound(words)
        while at < len(words):
            end = at + 1
            while end < len(words) and bound[end]:
                end += 1
            while end > at + 1 and self.cut(_spelt(words[at:end])) != words[at:end]:
                end -= 1
            pieces.append(_spelt(words[at:end]) if end > at + 1 else words[at])
            at = end
        return " ".join(pieces)


def _spelt(words: list[str]) -> str:
    return "".join(SPELT.get(word, word) for word in words)


def _bound(words: list[str]) -> list[bool]:
    """Whether each word is written right after the one before it, as far as one can guess."""
    bound, is_open, opening = [], {'"': False, "'": False}, False
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        after = words[place + 1] if place + 1 < len(words) else ""
        here = opening or word in CLOSING or bool(_ENDING.fullmatch(word)) or (word == before == "=")
        opening = word in OPENING
        if word in BETWEEN or (word == "\N{EN DASH}" and before.isdecimal() and after.isdecimal()):
            here = opening = True
        elif word in is_open:
            possessive = word == "'" and not is_open[word] and before.endswith("s")
            here |= is_open[word] or possessive
            if not possessive:
                opening = is_open[word] = not is_open[word]
        bound.append(bool(here and before and word))
    return bound
