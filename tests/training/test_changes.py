from gpt2_jax.config import Config
from gpt2_jax.training.changes import differences


def test_differences_name_what_a_resumed_run_may_not_change():
    saved = Config.from_dict({}).to_dict()
    free = {
        "optimizer": {"learning_rate": 1e-4},
        "training": {"steps": 5000, "log_every": 1},
        "model": {"dtype": "bfloat16"},
    }
    assert differences(saved, Config.from_dict(free).to_dict()) == []
    fixed = {"model": {"n_layer": 6}, "training": {"seed": 1, "batch_size": 4}, "data": {"vocab_size": 300}}
    assert differences(saved, Config.from_dict(fixed).to_dict()) == [
        "data.vocab_size (4096 there, 300 here)",
        "model.n_layer (12 there, 6 here)",
        "training.batch_size (8 there, 4 here)",
        "training.seed (0 there, 1 here)",
    ]


def test_every_option_may_or_may_not_change_when_a_run_goes_on():
    """The table in the README, option by option: one that is new may not, until it is known to be harmless."""
    saved = Config.from_dict({}).to_dict()
    may = set()
    for group, options in saved.items():
        for option in options:
            changed = saved | {group: options | {option: "something else"}}
            if not differences(saved, changed):
                may.add(f"{group}.{option}")
    whole = ("evaluation", "checkpoint", "guard", "mesh", "distributed", "profile")
    assert may == {
        *(f"{group}.{option}" for group in whole for option in saved[group]),
        "finetune.layer_decay",
        *(f"optimizer.{option}" for option in saved["optimizer"] if option not in ("name", "moments_dtype")),
        *(f"training.{option}" for option in ("steps", "accumulation_steps", "loss_chunks", "log_every")),
        *(f"training.sample_{option}" for option in ("every", "prompt", "tokens")),
        *(f"model.{option}" for option in ("dtype", "attention", "remat", "scan_unroll")),
        *(f"data.{option}" for option in ("prepared", "fill_prepared", "accept_changes")),
        *(f"data.{option}" for option in ("retries", "encoder", "workers")),
    }
