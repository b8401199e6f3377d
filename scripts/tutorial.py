# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A GPT-2 of your own
#
# Train a small GPT-2, let it write, measure it, teach it verse, and look inside. It needs a CPU and about five
# minutes; no GPU and no network. This is a notebook in the form of a script: VS Code and PyCharm run it cell by cell,
# `jupytext --to ipynb scripts/tutorial.py` makes a file for Jupyter, and `python scripts/tutorial.py` runs all of it
# and keeps the pictures.

# %%
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow, which feeds the training, has much to say
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import gpt2_jax
from gpt2_jax.analysis.attention_maps import attention_of, head_statistics
from gpt2_jax.analysis.attention_plots import head_map, layer_grid, statistics_grid
from gpt2_jax.analysis.curves import curves
from gpt2_jax.analysis.diversity_plots import quality_diversity
from gpt2_jax.analysis.probabilities import token_probabilities
from gpt2_jax.analysis.probability_plots import rank_histogram
from gpt2_jax.analysis.side_by_side import grid, side_by_side
from gpt2_jax.analysis.sweep import Sweep, run
from gpt2_jax.evaluation.perplexity import perplexity
from gpt2_jax.training.loop import train

# %% [markdown]
# These numbers are for two cores of a laptop. Everything is written below `FOLDER`; a second time through the notebook
# finds the runs there and trains no more.

# %% tags=["parameters"]
FOLDER = Path("runs/tutorial")
LIBRARY = Path(os.__file__).parent  # Python's own
MODULES = "*.py"  # of it to train on: 5 MB
LAYERS, VOCABULARY = 2, 2048
STEPS, VERSE_STEPS = 1000, 150


# %%
def show(found, name):
    """In a notebook the thing itself; from the shell a file of it."""
    if "get_ipython" in globals():
        return found
    file = FOLDER / (name + (".png" if hasattr(found, "savefig") else ".html"))
    file.write_bytes(found._repr_png_() if file.suffix == ".png" else found._repr_html_().encode())
    print(file)


# %% [markdown]
# ## Train
#
# A run is a config and a folder. Every option has a default, most of them GPT-2's own; here the model shrinks to two
# layers of 128, a context of 128 tokens and a vocabulary of 2,048, which is learnt from the text, too. With four
# windows of 128 tokens a step, a thousand steps are half a million tokens.
#
# Interrupt the kernel while it trains, if you like: it ends its step and saves, and the same cell goes on from there
# as if nothing had been.

# %%
config = gpt2_jax.default_config()
config.model.update(n_layer=LAYERS, n_head=4, n_embd=128, n_positions=128, initializer_range=0.05)
config.model.update(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, scan_unroll=LAYERS)
config.data.update(source="files", paths=str(LIBRARY / MODULES), tokenizer="bpe", vocab_size=VOCABULARY)
config.optimizer.update(learning_rate=2e-3, final_learning_rate=2e-4, warmup_steps=STEPS // 20, beta2=0.99)
config.training.update(steps=STEPS, batch_size=4, log_every=10, sample_prompt="    def __init__(self", sample_tokens=60)
config.evaluation.update(every=STEPS // 5, windows=64, batch_size=32)
config.checkpoint.update(every=STEPS // 2)

train(config.to_dict(), FOLDER / "python")

# %% [markdown]
# From the shell this is `python scripts/train.py --config=FILE --workdir=FOLDER`; `configs/` has such files.
#
# ## Let it write
#
# `load` opens a run, a folder of GPT-2's files as transformers or the old FlaxGPT2 wrote them, or a model of the hub.

# %%
lm = gpt2_jax.load(FOLDER / "python")
print(lm.generate("    def __init__(self", max_new_tokens=60, temperature=0.7, top_p=0.95, seed=0))

# %% [markdown]
# There are many ways to choose the next token, contrastive search, the best of several and more among them. Whichever
# it is, a prompt and a seed give the same text, alone or in a batch.

# %%
for way, options in {
    "greedy": {"temperature": 0},
    "sampled": {"seed": 1},
    "of the 40 most probable": {"seed": 1, "top_k": 40},
    "cooler, and nothing unlikely": {"seed": 1, "temperature": 0.7, "min_p": 0.05},
    "beam search": {"num_beams": 4, "no_repeat_ngram_size": 3},
}.items():
    print(f"--- {way}: {options}")
    print(lm.generate("    def read(self, ", max_new_tokens=60, **options), "\n")

# %% [markdown]
# `stream` gives the text as it comes, here up to an empty line:

# %%
for piece in lm.stream("def get", seed=1, temperature=0.7, top_p=0.9, max_new_tokens=60, stop_strings=["\n\n"]):
    print(piece, end="", flush=True)

# %% [markdown]
# ## Measure it
#
# Perplexity: among how many equally probable tokens it chooses, on average. Of Python that it has not seen, and of a
# poem by Emily Dickinson, of which it knows nothing. Bits a byte do not depend on the tokenizer.

# %%
HOPE = """Hope is the thing with feathers
That perches in the soul,
And sings the tune without the words,
And never stops at all,

And sweetest in the gale is heard;
And sore must be the storm
That could abash the little bird
That kept so many warm.
"""
HELD_OUT = {"python": (LIBRARY / "json" / "decoder.py").read_text(encoding="utf-8"), "verse": HOPE}


def measure(lm):
    for kind, text in HELD_OUT.items():
        found = perplexity(lm, [text], stride=64)
        (of_token, _), (bits, _) = found.per(found.tokens), found.bits_per(found.bytes)
        print(f"{kind:8} perplexity {of_token:9,.1f}    {bits:.2f} bits a byte")


measure(lm)

# %% [markdown]
# ## Teach it verse
#
# Fine-tuning is training that starts from a model. Here are a few more of Dickinson's poems (published from 1890 on,
# in the public domain). They are mixed with Python half and half, so that less of that is forgotten. Each document
# begins with a **control code** that says what it is, `<|verse|>` or `<|python|>`, two new tokens; one in five goes
# without. For a code to be learnt documents must be short: poems end, and methods begin, where `separator` finds it.

# %%
POEMS = """If I can stop one heart from breaking,
I shall not live in vain;
If I can ease one life the aching,
Or cool one pain,
Or help one fainting robin
Unto his nest again,
I shall not live in vain.


The heart asks pleasure first,
And then, excuse from pain;
And then, those little anodynes
That deaden suffering;

And then, to go to sleep;
And then, if it should be
The will of its Inquisitor,
The liberty to die.


I had no time to hate, because
The grave would hinder me,
And life was not so ample I
Could finish enmity.

Nor had I time to love; but since
Some industry must be,
The little toil of love, I thought,
Was large enough for me.


The morns are meeker than they were,
The nuts are getting brown;
The berry's cheek is plumper,
The rose is out of town.

The maple wears a gayer scarf,
The field a scarlet gown.
Lest I should be old-fashioned,
I'll put a trinket on.


The sky is low, the clouds are mean,
A travelling flake of snow
Across a barn or through a rut
Debates if it will go.

A narrow wind complains all day
How some one treated him;
Nature, like us, is sometimes caught
Without her diadem.


I never saw a moor,
I never saw the sea;
Yet know I how the heather looks,
And what a wave must be.

I never spoke with God,
Nor visited in heaven;
Yet certain am I of the spot
As if the chart were given.


Look back on time with kindly eyes,
He doubtless did his best;
How softly sinks his trembling sun
In human nature's west!


There is no frigate like a book
  To take us lands away,
Nor any coursers like a page
  Of prancing poetry.
This traverse may the poorest take
  Without oppress of toll;
How frugal is the chariot
  That bears a human soul!


Surgeons must be very careful
When they take the knife!
Underneath their fine incisions
Stirs the culprit, -- Life!


I'm nobody!  Who are you?
Are you nobody, too?
Then there 's a pair of us -- don't tell!
They 'd banish us, you know.

How dreary to be somebody!
How public, like a frog
To tell your name the livelong day
To an admiring bog!
"""
poems = FOLDER / "poems.txt"
poems.write_text(POEMS, encoding="utf-8")

config.finetune.start = str(FOLDER / "python")
config.model.update(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
config.data.update(source="verse=1, python=1", paths=f"verse: {poems}; python: {LIBRARY / MODULES}", tokenizer="start")
config.data.update(separator=r"\n{3,}|\n\n(?=    def )", validation_fraction=0.1)
config.data.update(control_codes=True, control_dropout=0.2)
config.optimizer.update(learning_rate=7e-4, final_learning_rate=7e-5, warmup_steps=VERSE_STEPS // 20)
config.training.update(steps=VERSE_STEPS, sample_tokens=0)
config.evaluation.update(every=VERSE_STEPS // 3, windows=16)
config.checkpoint.update(every=VERSE_STEPS)

train(config.to_dict(), FOLDER / "verse")

# %% [markdown]
# ## Control what it writes
#
# From nothing but a code, with the same seed. `guidance_scale` leads further away from what it would write without
# one.

# %%
poet = gpt2_jax.load(FOLDER / "verse")
for options in ({"control": "python"}, {"control": "verse"}, {"control": "verse", "guidance_scale": 2}):
    print(f"--- {options}")
    print(poet.generate("", max_new_tokens=60, seed=0, temperature=0.7, top_p=0.9, **options), "\n")

# %%
print("before")
measure(lm)
print("after")
measure(poet)

# %% [markdown]
# Verse that it has not seen surprises it much less than before, Python somewhat more. Seventy lines make no poet,
# though: twice as many steps, and it knows them by heart and expects other verse less again. That is what the
# validation loss is for, and `evaluation.patience`.
#
# ## Look at it
#
# The curves of both runs:

# %%
show(curves([FOLDER / "python", FOLDER / "verse"]), "curves")

# %% [markdown]
# What surprised it in a text: each token's colour is its surprisal, and pointing at one (or moving to it with the Tab
# key) shows what it had expected.

# %%
CODE = """import json


def read(path):
    with open(path) as file:
        return json.load(file)
"""
show(token_probabilities(lm, CODE), "probabilities")

# %% [markdown]
# How often the token that came was among the most probable. Of text that people wrote more are rare than of text that
# the model wrote itself.

# %%
show(rank_histogram(token_probabilities(lm, HELD_OUT["python"])), "ranks")

# %% [markdown]
# Where it looks: one head of the last layer, all heads of it, and what kind each head of the model is. This head looks
# at the last line break, in code a good place to ask how far to indent. A head with a high induction score would find
# an earlier place like the one it is at, and copy what came next; half a million tokens teach none to.

# %%
attention = attention_of(lm, CODE, layer=-1)
show(head_map(attention, head=0), "head")

# %%
show(layer_grid(attention), "heads")

# %%
show(statistics_grid(head_statistics(lm, CODE)), "statistics")

# %% [markdown]
# ## Choose how to draw
#
# Cold draws repeat themselves, hot ones lose the thread. A sweep measures both, with the same prompts and seeds under
# each setting: no setting is best in both, and the line joins those that no other beats.

# %%
prompts = ["def ", "class ", "import ", "    if "]
sweep = Sweep(temperature=(0.3, 0.7, 1.0), top_k=(10,), top_p=(0.9,), repetition_penalty=(1.2,), max_new_tokens=(60,))
results = run(lm, prompts, sweep, FOLDER / "sweep")
show(quality_diversity(results), "plane")

# %%
show(side_by_side(lm, "def ", grid(temperature=(0.3, 1.0)), grid(top_p=(0.8, 1.0)), max_new_tokens=60), "side_by_side")

# %% [markdown]
# ## Take it elsewhere
#
# A folder that transformers opens as `GPT2LMHeadModel`, and here again, with the same logits:

# %%
exported = gpt2_jax.save(poet, FOLDER / "exported")
print(*sorted(file.name for file in exported.iterdir()))
the_same = gpt2_jax.load(exported)
print(the_same.generate("The ", max_new_tokens=60, seed=0, temperature=0.7, top_p=0.9, control="verse").completion)

# %% [markdown]
# From here, on the command line:
#
# ```bash python scripts/report.py --workdir=runs/tutorial/verse --output=report.html   # all these pictures on one
# page python scripts/app.py --model=runs/tutorial/verse     # a page to write on, to look at probabilities and
# attention python scripts/serve.py --model=runs/tutorial/verse   # a server that OpenAI's client knows; requests share
# the steps python scripts/train.py --config=configs/caption.py:digits --workdir=runs/digits   # a GPT-2 that reads
# images python scripts/train.py --config=configs/finetune.py:text --workdir=runs/mine --config.data.paths=my_poems/
# # GPT-2 ```
#
# The README has them all.
