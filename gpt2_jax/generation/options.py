"""Every option of `generate`, under the names that `transformers` gives them, with its default and its meaning."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gpt2_jax.errors import InputError, suggest

TokenIds = Sequence[int]
Phrase = str | TokenIds

# What `transformers` calls otherwise, does for other models or alone has: the way out, and the names that it is for.
ELSEWHERE = {
    name: way_out
    for way_out, names in {
        "temperature=0 is greedy, a temperature above 0 samples": "do_sample",
        "max_new_tokens and min_new_tokens count the new tokens alone": "max_length min_length",
        "prompts of any lengths go in one list, without padding": "pad_token_id attention_mask position_ids",
        'the prompt comes first, text or token ids; "" starts from end-of-text': "bos_token_id input_ids inputs",
        "GPT-2 has no encoder": "decoder_start_token_id encoder_no_repeat_ngram_size encoder_repetition_penalty",
        "seed=0 sets the draws": "prng_key generator",
        "the language model holds its parameters; make another for others": "params",
        "logprobs=n returns log-probabilities, of the n most probable tokens too": "output_scores output_logits",
        "call lm.model for the rest of what it computes": "output_attentions output_hidden_states",
        "a Generation always comes back": "return_dict_in_generate",
        "generation is always compiled, with a cache of keys and values": (
            "use_cache cache_config cache_implementation compile_config continuous_batching_config disable_compile "
            "low_memory max_cache_len prefill_chunk_size return_legacy_cache trace"
        ),
        "draws need it not, and logprobs are the model's own": "renormalize_logits",
        "logits that are not finite mean damaged parameters: check the checkpoint": "remove_invalid_values",
        "negative_prompt takes text or token ids": "negative_prompt_ids",
        "eos_token_id, stop_strings, max_new_tokens and max_time stop a text": "stopping_criteria",
        "chain the functions of gpt2_jax.generation.logits in a loop of your own": "logits_processor",
        "lm.stream yields the text as it comes": "streamer",
        "constrained beam search is not supported": "constraints force_words_ids",
        "assisted decoding is not supported": (
            "assistant_model assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight "
            "assistant_lookbehind is_assistant max_matching_ngram_size num_assistant_tokens "
            "num_assistant_tokens_schedule prompt_lookup_num_tokens speculation_type target_lookbehind use_mtp"
        ),
        "it is not supported": ("dola_layers token_healing top_h watermarking_config generation_kwargs"),
        "it is bookkeeping, no control": "transformers_version _from_model_config",
    }.items()
    for name in names.split()
}


def option(default: Any, help: str) -> Any:
    """A field with its meaning, which is also the help of the flag of the same name."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How texts are generated; an option at its default does nothing. Messages of errors name option and value.

    Raises:
      InputError: a value out of range, or options that contradict each other or would have no effect together.
    """

    max_new_tokens: int | None = option(None, "Tokens to add at most; by default 128, or what the context leaves.")
    min_new_tokens: int = option(0, "Tokens to add at least, before an end token may come.")
    seed: int | Sequence[int] = option(0, "The same seed gives the same texts; a list has one seed a prompt.")
    num_return_sequences: int = option(1, "Texts a prompt.")
    best_of: int | None = option(None, "Sample so many a prompt; return those of the highest mean log-probability.")

    temperature: float | None = option(
        None, "Divides the logits; 0 takes the most probable token. By default 1; beam and contrastive search: 0."
    )
    top_k: int = option(0, "Draw among the k most probable tokens (Fan et al., 2018); 0 is off.")
    top_p: float = option(
        1.0, "Draw among the fewest tokens that reach this probability (Holtzman et al., 2020); 1 is off."
    )
    min_p: float = option(0.0, "Draw among tokens with this fraction of the highest probability, at least; 0 is off.")
    typical_p: float = option(
        1.0, "Draw among the tokens of nearly the expected information (Meister et al., 2022); 1 is off."
    )
    epsilon_cutoff: float = option(
        0.0, "Draw among tokens of this probability at least (Hewitt et al., 2022); 0 is off."
    )
    eta_cutoff: float = option(
        0.0, "The same, with a bound that falls where the entropy is high (Hewitt et al.); 0 is off."
    )

    repetition_penalty: float = option(1.0, "Divides the odds of tokens already in the text (Keskar et al., 2019).")
    presence_penalty: float = option(0.0, "Taken from the logits of tokens already generated.")
    frequency_penalty: float = option(0.0, "Taken from the logits of tokens for each time they were generated.")
    no_repeat_ngram_size: int = option(0, "No n tokens in a row come twice; 0 is off.")
    bad_words_ids: Sequence[Phrase] = option((), "Phrases that must not come: texts or lists of token ids.")
    sequence_bias: Mapping[Any, float] | None = option(
        None, "Phrases (texts or tuples of ids) with a number added to the logit of their last token."
    )
    suppress_tokens: TokenIds = option((), "Ids that never come.")
    begin_suppress_tokens: TokenIds = option((), "Ids that do not come first.")
    forced_bos_token_id: int | None = option(None, "The id that comes first.")
    forced_eos_token_id: int | None = option(None, "The id that comes last, when max_new_tokens is reached.")

    control: str | Sequence[str] | None = option(
        None, 'The control code that the text begins with, such as "poetry"; a list has one a prompt.'
    )

    exponential_decay_length_penalty: Sequence[float] | None = option(
        None, "(n, factor): after n new tokens the odds of an end grow by the factor with each; below 1 they shrink."
    )
    line_length: Sequence[float] | None = option(
        None,
        "(characters, strength): with each character of a line a break gets likelier by the strength, in nats.",
    )

    num_beams: int = option(1, "Beams of a beam search; 1 is none. With a temperature above 0, beams are sampled.")
    num_beam_groups: int = option(1, "Groups of beams that avoid each other's tokens (Vijayakumar et al., 2018).")
    diversity_penalty: float = option(0.0, "What a token loses for each earlier group that takes it at the same time.")
    length_penalty: float = option(1.0, "Beams are ranked by log-probability / length ** length_penalty.")
    early_stopping: bool | Literal["never"] = option(
        False, 'True: stop at num_beams finished texts; False: when a better one is unlikely; "never": impossible.'
    )
    penalty_alpha: float = option(
        0.0,
        "Contrastive search (Su et al., 2022) among top_k tokens: the weight of being unlike what came; 0 is off.",
    )

    guidance_scale: float = option(
        1.0, "Away from the negative prompt by this factor (Sanchez et al., 2023); 1 is off."
    )
    negative_prompt: Phrase | None = option(
        None, "What guidance_scale leads away from; by default an empty text, or with control the prompt without it."
    )
    negative_control: str | Sequence[str] | None = option(
        None, "The control code of what guidance_scale leads away from; without negative_prompt that is the prompt."
    )

    eos_token_id: int | TokenIds | None = option(
        None, "Ids at which a text ends; by default end-of-text; an empty list never ends it."
    )
    stop_strings: Sequence[str] = option((), "Texts at which a completion ends; they are not returned.")
    max_time: float | None = option(None, "Seconds after which no more tokens are added.")
    beyond_context: Literal["error", "slide"] = option(
        "error", '"slide": a text that fills the context goes on from its later half; "error": it must fit.'
    )
    logprobs: int | None = option(
        None, "Return each token's log-probability, and with n > 0 the n most probable tokens' in its place."
    )

    def __post_init__(self):
        if isinstance(self.stop_strings, str):
            object.__setattr__(self, "stop_strings", (self.stop_strings,))
        at_least = {"num_return_sequences": 1, "num_beams": 1, "num_beam_groups": 1, "min_new_tokens": 0}
        optional = {"max_new_tokens": 1, "best_of": 1, "logprobs": 0}
        for name, low in {**at_least, **optional}.items():
            value = getattr(self, name)
            if name in optional and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(f"{name} is {value!r}; it must be a whole number, at least {low}")
        if self.max_time is not None and not self.max_time > 0:
            raise InputError(f"max_time is {self.max_time}; it must be above 0 seconds, or None for no bound")
        if not 0 < self.guidance_scale < float("inf"):
            raise InputError(f"guidance_scale is {self.guidance_scale}; it must be above 0, where 1 is off")
        if self.beyond_context not in ("error", "slide"):
            raise InputError(f"beyond_context is {self.beyond_context!r}; it must be 'error' or 'slide'")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"min_new_tokens is {self.min_new_tokens}; it must be at most max_new_tokens ({self.max_new_tokens})"
            )
        if self.best_of is not None and self.best_of < self.num_return_sequences:
            raise InputError(
                f"best_of is {self.best_of}; it must be at least num_return_sequences ({self.num_return_sequences})"
            )
        self._refuse_without_effect()

    @classmethod
    def fields(cls) -> tuple[dataclasses.Field, ...]:
        """The options with their defaults and, under `metadata["help"]`, their meanings."""
        return dataclasses.fields(cls)

    @property
    def search(self) -> Literal["sample", "beam", "contrastive"]:
        """The kind of search that these options ask for."""
        return "contrastive" if self.penalty_alpha else "beam" if self.num_beams > 1 else "sample"

    @property
    def drawing_temperature(self) -> float:
        """`temperature`, or its default."""
        if self.temperature is not None:
            return self.temperature
        return 1.0 if self.search == "sample" else 0.0

    def _refuse_without_effect(self) -> None:
        """Raises for what contradicts another option, and for what would silently do nothing beside it."""
        if self.penalty_alpha and self.num_beams > 1:
            raise InputError(f"num_beams is {self.num_beams} beside penalty_alpha: contrastive search has no beams")
        if self.penalty_alpha and self.num_return_sequences > 1:
            raise InputError(
                f"num_return_sequences is {self.num_return_sequences} beside penalty_alpha; contrastive search gives 1"
            )
        if self.penalty_alpha and self.temperature:
            raise InputError(
                f"temperature is {self.temperature} beside penalty_alpha: contrastive search draws nothing"
            )
        if self.search == "sample" and self.num_return_sequences > 1 and not self.drawing_temperature:
            raise InputError(
                f"num_return_sequences is {self.num_return_sequences} and temperature 0, which always gives the same "
                "text; set a temperature above 0, or num_beams"
            )
        if self.search != "sample":
            for name in ("best_of", "guidance_scale", "max_time", "beyond_context", "logprobs", "stop_strings"):
                if getattr(self, name) != DEFAULTS[name]:
                    raise InputError(
                        f"{name} is {getattr(self, name)!r}, which {self.search} search does not take; remove it, or "
                        f"{'num_beams' if self.search == 'beam' else 'penalty_alpha'}"
                    )
        groups = {
            "a temperature above 0": (
                self.drawing_temperature > 0,
                ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "best_of"),
            ),
            "num_beams above 1": (
                self.search == "beam", ("num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping")
            ),
            "guidance_scale other than 1": (self.guidance_scale != 1, ("negative_prompt", "negative_control")),
        }  # fmt: skip
        for needed, (given, names) in groups.items():
            for name in names:
                if given or getattr(self, name) == DEFAULTS[name] or (name == "top_k" and self.penalty_alpha):
                    continue
                raise InputError(f"{name} is {getattr(self, name)!r}, which has no effect without {needed}; remove one")


DEFAULTS = {field.name: field.default for field in dataclasses.fields(Options)}


def parse(options: Mapping[str, Any]) -> Options:
    """`Options(**options)`, whose unknown names are refused with the nearest valid one or the way out."""
    for name in options:
        if name in DEFAULTS:
            continue
        if name in ELSEWHERE:
            raise InputError(f"{name} is not an option here: {ELSEWHERE[name]}")
        raise InputError(f"there is no option {name!r}; {suggest(name, list(DEFAULTS))}")
    return Options(**options)
