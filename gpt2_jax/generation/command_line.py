"""The options of generation on a command line: one flag a field of `Options`."""

import json
from typing import Any

from absl import flags

from gpt2_jax.errors import InputError
from gpt2_jax.generation.options import Options

JSON = ("sequence_bias", "early_stopping", "exponential_decay_length_penalty", "line_length")
# How an option is read; the others are numbers like their defaults.
READ = {
    **dict.fromkeys(("bad_words_ids", "stop_strings"), flags.DEFINE_multi_string),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "eos_token_id"), flags.DEFINE_multi_integer),
    **dict.fromkeys(JSON, flags.DEFINE_string),
    **dict.fromkeys(("beyond_context", "negative_prompt", "control", "negative_control"), flags.DEFINE_string),
    **dict.fromkeys(("temperature", "max_time"), flags.DEFINE_float),
}
DRAWS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_beams")


def define_options() -> None:
    """Defines the flags, of all options but `logprobs`, which are no text."""
    for field in Options.fields():
        if field.name != "logprobs":
            of_number = flags.DEFINE_float if isinstance(field.default, float) else flags.DEFINE_integer
            READ.get(field.name, of_number)(field.name, None, field.metadata["help"])


def given_options(**undirected: Any) -> dict[str, Any]:
    """The options on the command line; without any about the draw, `undirected` too.

    Raises:
      InputError: an option of JSON that is none.
    """
    values = {field.name: flags.FLAGS[field.name].value for field in Options.fields() if field.name in flags.FLAGS}
    options = {name: value for name, value in values.items() if value is not None}
    for name in JSON:
        if name in options:
            try:
                options[name] = json.loads(options[name])
            except json.JSONDecodeError:
                raise InputError(
                    f'{name} is {options[name]!r}; it must be JSON: true, "never", [40, 0.3] or {{" text": 1.5}}'
                ) from None
    return options if {*DRAWS, "penalty_alpha"} & options.keys() else options | undirected
