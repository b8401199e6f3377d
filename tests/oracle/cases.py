"""What FlaxGPT2 and this package are both asked; plain data, for the interpreters of both read it."""

SMALL = {"vocab_size": 101, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4}

# What each model changes. Its random weights follow from its name.
MODELS = {
    "small": {},
    "activation gelu": {"activation_function": "gelu", "n_inner": 48},
    "activation relu": {"activation_function": "relu", "n_inner": 200},
    "activation silu": {"activation_function": "silu"},
    "activation quick_gelu": {"activation_function": "quick_gelu"},
    "activation tanh": {"activation_function": "tanh"},
    "one layer": {"vocab_size": 7, "n_positions": 17, "n_embd": 6, "n_layer": 1, "n_head": 1, "n_inner": 1},
    "whole blocks of vocabulary": {"vocab_size": 128, "layer_norm_epsilon": 1e-3},
    "scores by layer": {"scale_attn_by_inverse_layer_idx": True},
    "scores unscaled": {"scale_attn_weights": False},
    "scores in float32": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "wide": {"vocab_size": 1009, "n_positions": 64, "n_embd": 768, "n_layer": 2, "n_head": 12},
    "chatter": {"vocab_size": 9, "n_positions": 48, "n_layer": 2},
}

# Those whose attention weights are compared.
ATTENTIONS = ("small", "scores in float32", "wide")

# The published sizes, for --sizes: the last is 6.2 GB a copy.
SIZES = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}

STEPS = 10
OPTIMIZER = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 0.5}

# What "chatter", whose last token ends a text, is asked to continue, and with which options: under the names of both.
# Its few tokens let every search end before the last one allowed; at that, FlaxGPT2's beam search drops unfinished
# beams if one has finished, and fills up with rows of padding, without the prompt.
PROMPTS = {"rows": 6, "length": 5, "end": 8, "raise": 2.0}
GENERATIONS = {
    "greedy": {},
    "greedy without an end": {"eos_token_id": []},
    "greedy, long": {"min_new_tokens": 9},
    "greedy, suppressed": {"suppress_tokens": [2, 5], "begin_suppress_tokens": [1, 3, 8], "forced_eos_token_id": 4},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "beams, sum of log-probabilities": {"num_beams": 4, "length_penalty": 0.0, "num_return_sequences": 4},
    "beams, short": {"num_beams": 3, "length_penalty": -1.0, "num_return_sequences": 2},
    "beams, first found": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 4},
    "beams, never early": {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5},
    "beams, suppressed": {"num_beams": 3, "suppress_tokens": [2, 5], "num_return_sequences": 3},
}
NEW_TOKENS = 40

# Options that change logits: FlaxGPT2's class with its arguments, and ours. (Its FlaxNoRepeatNGramLogitsProcessor fails
# on this jax.)
LOGITS = {"rows": 4, "vocabulary": 50, "length": 12}
TRANSFORMS = {
    "temperature": ("FlaxTemperatureLogitsWarper", [0.7], {"temperature": 0.7}),
    "top_k 1": ("FlaxTopKLogitsWarper", [1], {"top_k": 1}),
    "top_k 7": ("FlaxTopKLogitsWarper", [7], {"top_k": 7}),
    "top_k past V": ("FlaxTopKLogitsWarper", [99], {"top_k": 99}),
    "top_p 0.1": ("FlaxTopPLogitsWarper", [0.1], {"top_p": 0.1}),
    "top_p 0.9": ("FlaxTopPLogitsWarper", [0.9], {"top_p": 0.9}),
    "suppress_tokens": ("FlaxSuppressTokensLogitsProcessor", [[0, 9, 49]], {"suppress_tokens": [0, 9, 49]}),
}
