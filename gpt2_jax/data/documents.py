"""Documents, and the parts of a corpus that they are read from: text files, JSON lines, parquet; tables.py has others.

A part is read alone, from any of its rows, so that work can be shared and gone on with. Rows count what is kept and
what is left out alike.
"""

import dataclasses
import json
import re
import tokenize
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from gpt2_jax.data.filters import clean, strip_gutenberg
from gpt2_jax.data.opening import decode, explained, open_compressed, open_parquet, records, some
from gpt2_jax.data.options import DataConfig
from gpt2_jax.errors import InputError

PARQUET_ROWS = 256
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it is from.

    Attributes:
      text: what is learnt.
      origin: "json/decoder.py", "poems.txt#3" (of a file that is divided), "corpus.jsonl:17" (line or row, counted from
        1), "corpus.jsonl@4096" (byte).
      prompt: comes before the text and is not learnt.
      control: names its control code, where that is the record's and not the source's.
    """

    text: str
    origin: str
    prompt: str = ""
    control: str = ""


class Part(Protocol):
    """A piece of a corpus that is read alone; it can be pickled, and holds nothing open.

    Attributes:
      name: the same wherever the corpus lies: "poems/a.md", "corpus.jsonl@0".
    """

    name: str

    def documents(self, start: int = 0, counts: Counter | None = None) -> Iterator[tuple[int, Document]]:
        """The documents that are kept from row `start` on, each with the row to go on from.

        Args:
          start: 0, or a row that came with a document.
          counts: gets "kept" and each reason for leaving out, one for each document.

        Raises:
          InputError: it cannot be read as the options say.
        """


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Files of one document each, or divided at `config.separator`; a row is a document."""

    name: str
    files: tuple[tuple[str, Path], ...]  # (name, path)
    config: DataConfig
    python: bool = False  # read in the encoding that each declares (PEP 263); one that breaks its own is left out

    def documents(self, start: int = 0, counts: Counter | None = None) -> Iterator[tuple[int, Document]]:
        """See `Part.documents`."""
        for row, document in enumerate(self._all(start), 1):
            if row > start:
                yield from kept(row, document, {}, self.config, counts)

    def _all(self, start: int) -> Iterator[Document | None]:
        """Each document; None for one that is not read because of its encoding, or because it is before `start`."""
        divided = bool(self.config.separator) and not self.python
        for row, (name, path) in enumerate(self.files, 1):
            if row <= start and not divided:
                yield None
                continue
            with explained(path):
                text = _python(path) if self.python else _text(path, self.config.decode_errors)
            if text is None or not divided:
                yield None if text is None else Document(text, name)
                continue
            for number, piece in enumerate(pieces_of(text, self.config), 1):
                yield Document(piece, f"{name}#{number}")


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """The lines of a .jsonl file that begin at a byte from `first` to before `end`; a row is a line."""

    name: str
    path: Path
    config: DataConfig
    first: int = 0
    end: int | None = None  # None is the file's end

    def documents(self, start: int = 0, counts: Counter | None = None) -> Iterator[tuple[int, Document]]:
        """See `Part.documents`."""
        cut = self.first > 0 or self.end is not None
        with explained(self.path), open_compressed(self.path) as file:
            position = self.first
            if self.first:
                file.seek(self.first - 1)
                position += len(file.readline()) - 1  # the line that began before
            row = 0
            while (self.end is None or position < self.end) and (line := file.readline()):
                row, begin, position = row + 1, position, position + len(line)
                if row <= start or not line.strip():
                    continue
                where = f"@{begin}" if cut else f":{row}"
                record = self._record(line.removeprefix(b"\xef\xbb\xbf") if begin == 0 else line, where)
                document = None
                if record is not None:
                    origin = f"{self.name.partition('@')[0]}{where}"
                    document = document_of(record, self.config, f"{self.path}{where}", origin)
                yield from kept(row, document, record or {}, self.config, counts)

    def keys(self) -> list[str]:
        """The fields of the first record; none where there is no record."""
        with explained(self.path), open_compressed(self.path) as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip() and (record := self._record(line, f":{number}")) is not None:
                    return list(record)
        return []

    def _record(self, line: bytes, where: str) -> dict[str, Any] | None:
        where = f"{self.path}{where}"
        if (decoded := decode(line, self.config.decode_errors, where)) is None:
            return None
        try:
            record = json.loads(decoded)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}); a .jsonl file has one object a line") from None
        except RecursionError:
            raise InputError(f"{where} is JSON nested too deeply; a .jsonl file has one object a line") from None
        if not isinstance(record, dict):
            raise InputError(f"{where} is a JSON {type(record).__name__}; a .jsonl file has one object a line")
        return record


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Row groups `first` to before `end` of a .parquet file."""

    name: str
    path: Path
    config: DataConfig
    first: int = 0
    end: int | None = None

    def documents(self, start: int = 0, counts: Counter | None = None) -> Iterator[tuple[int, Document]]:
        """See `Part.documents`."""
        config, name = self.config, self.name.partition("@")[0]
        key = config.text_key or "text"
        with open_parquet(self.path) as (file, pa):
            names = file.schema_arrow.names
            check_key(key, names, str(self.path), "text_key")
            for option in ("prompt_key", "control_key"):
                if getattr(config, option):
                    check_key(getattr(config, option), names, str(self.path), option)
            wanted = dict.fromkeys((key, config.prompt_key, config.control_key, "license", "autogenerated"))
            columns = [name for name in wanted if name in names]
            for column in {key, config.prompt_key} - {""}:
                self._check_type(file.schema_arrow.field(column), pa)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            offset = sum(sizes[: self.first])  # rows of the file before this part
            row = 0
            for group in range(self.first, self.end or len(sizes)):
                if row + sizes[group] <= start:
                    row += sizes[group]
                    continue
                for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=columns):
                    for record in records(batch):
                        row += 1
                        if row <= start:
                            continue
                        where = f":{offset + row}"
                        document = document_of(record, config, f"{self.path}{where}", f"{name}{where}")
                        yield from kept(row, document, record, config, counts)

    def keys(self) -> list[str]:
        """The columns; none where there is no row."""
        with open_parquet(self.path) as (file, _):
            return file.schema_arrow.names if file.metadata.num_rows else []

    def _check_type(self, field: Any, pa: Any) -> None:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"{self.path}: column {field.name!r} holds {kind}; it must hold strings")


def pieces_of(text: str, config: DataConfig) -> list[str]:
    """What is between matches of `config.separator`, white space around it and empty pieces left out.

    Project Gutenberg's header and footer, which have separators in them, go first.
    """
    text = strip_gutenberg(text) if config.strip_gutenberg else text
    ends = [0, *(end for match in re.finditer(config.separator, text) for end in match.span()), len(text)]
    pieces = (text[begin:end].strip() for begin, end in zip(ends[::2], ends[1::2]))
    return [f"{piece}\n" for piece in pieces if piece]


def document_of(record: dict[str, Any], config: DataConfig, where: str, origin: str) -> Document | None:
    """The document of a record; None for one that `config.decode_errors` skips."""
    if found_keys(config, record, where) is not config:
        raise InputError(
            f"{where} has 'prompt' and 'completion', and the first record of the corpus has not; give files of one "
            "kind, or make two sources of them (data.source='mine=1, other=1' with paths)"
        )
    values = []
    for option, key in (("text_key", config.text_key or "text"), ("prompt_key", config.prompt_key)):
        if not key:
            values.append("")
            continue
        check_key(key, list(record), where, option)
        value = record[key]
        value = decode(value, config.decode_errors, where) if isinstance(value, bytes) else value
        if value is None and isinstance(record[key], bytes):
            return None
        check_string(value, key, where)
        values.append(_mend_surrogates(value, config.decode_errors, where))
    text, prompt = values
    return None if text is None or prompt is None else Document(text, origin, prompt, control_of(record, config, where))


def found_keys(config: DataConfig, keys: Collection[str], where: str) -> DataConfig:
    """The options with the keys of a prompt and its completion, where a record has both and no keys are given.

    Raises:
      InputError: it has a "text" as well.
    """
    if config.text_key or config.prompt_key or not ("prompt" in keys and "completion" in keys):
        return config
    if "text" in keys:
        raise InputError(
            f"{where} has 'prompt' and 'completion', and 'text' as well; say what is learnt: --config.data.text_key="
            "text, or --config.data.text_key=completion --config.data.prompt_key=prompt"
        )
    return dataclasses.replace(config, text_key="completion", prompt_key="prompt")


def control_of(record: dict[str, Any], config: DataConfig, where: str) -> str:
    """What a record has in `config.control_key`, as text: "positive", "1", "true"; "" where it has nothing."""
    if not config.control_key:
        return ""
    check_key(config.control_key, list(record), where, "control_key")
    value = record[config.control_key]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if value is not None and not isinstance(value, (str, int)):
        raise InputError(
            f"{where}: {config.control_key!r} is {value!r:.40}, a {type(value).__name__}; it must be a string, a whole "
            "number, true or false, to name a control code"
        )
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value).strip()


def kept(
    row: int, document: Document | None, record: dict[str, Any], config: DataConfig, counts: Counter | None
) -> Iterator[tuple[int, Document]]:
    """`(row, document)` after the filters, or nothing; counted either way."""
    text, reason = ("", "not UTF-8") if document is None else clean(document.text, record, config)
    if not reason and config.control_key and document.control not in config.codes:
        reason = "without control code"
    if counts is not None:
        counts[reason or "kept"] += 1
    if not reason:
        yield row, document if text is document.text else dataclasses.replace(document, text=text)


def left_out_of(counts: Mapping[str, int]) -> str:
    """What `counts` has beside "kept": "3 too short, 1 not UTF-8"."""
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items()) if reason != "kept" and n)


def check_key(key: str, keys: list[str], where: str, option: str) -> None:
    """Raises `InputError` unless `key` is among `keys`."""
    if key not in keys:
        raise InputError(
            f"{where} has no {key!r}, only {some(keys) or 'nothing'}; choose with --config.data.{option}=..."
        )


def check_string(value: Any, key: str, where: str) -> None:
    """Raises `InputError` unless `value` is text, decoded or not."""
    if not isinstance(value, (str, bytes)):
        raise InputError(f"{where}: {key!r} is {value!r:.40}, a {type(value).__name__}; it must be a string")


def _python(path: Path) -> str | None:
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return None


def _text(path: Path, errors: str) -> str | None:
    with open_compressed(path) as file:
        text = decode(file.read(), errors, str(path))
    return None if text is None else text.removeprefix("\ufeff").replace("\r\n", "\n")


def _mend_surrogates(text: str, errors: str, where: str) -> str | None:
    """JSON's escapes can spell half a surrogate pair, which UTF-8 has no bytes for."""
    if not (half := _SURROGATE.search(text)):
        return text
    if errors == "strict":
        raise InputError(
            f"{where} has half of a surrogate pair, {half[0]!r}, at character {half.start()}; mend it, or use"
            " --config.data.decode_errors=replace or skip"
        )
    return _SURROGATE.sub("\ufffd", text) if errors == "replace" else None
