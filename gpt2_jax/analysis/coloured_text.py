"""Text coloured by what a model expected of it, as HTML: each token shows its alternatives.

A fragment brings its style, runs no script and asks for no other file: it works in a notebook, in a report and alone.
Tokens are a group of radio buttons: click or tap one, or go through them with the arrow keys.
"""

import hashlib

from markupsafe import Markup

from gpt2_jax.analysis import pages
from gpt2_jax.analysis.probabilities import RANKS, TokenProbabilities
from gpt2_jax.analysis.token_labels import spaced

MOST_BITS = 16.0  # surprisal of the strongest colour


def fragment(probabilities: TokenProbabilities) -> str:
    """The part of a page that shows a text, coloured by surprisal or, by choice of the reader, by class of rank."""
    found = probabilities
    tokens = [
        {
            "label": label,
            "text": spaced(text),
            "share": f"{min(1.0, bits / MOST_BITS):.0%}",
            "bits": f"{bits:.2f}",
            "probability": percent(2.0**-bits),
            "rank": f"{rank:,}",
            "rank_class": int(rank_class),
            "entropy": f"{entropy:.2f}",
            "alternatives": [
                {"label": other, "probability": percent(p), "share": f"{p:.1%}", "chosen": token == other_token}
                for other, other_token, p in zip(others, other_tokens, ps)
            ],
        }
        for label, text, token, bits, rank, rank_class, entropy, others, other_tokens, ps in zip(
            found.labels,
            found.texts,
            found.tokens.tolist(),
            found.surprisal.tolist(),
            found.rank.tolist(),
            found.rank_class,
            found.entropy.tolist(),
            found.top_labels,
            found.top_tokens.tolist(),
            found.top_probabilities.tolist(),
        )
    ]
    name = "p" + hashlib.sha256(found.tokens.tobytes() + found.surprisal.tobytes()).hexdigest()[:12]
    summary = f"{len(tokens):,} tokens, perplexity {found.perplexity:,.2f}, {found.surprisal.mean():.2f} bits a token"
    return pages.render(
        "coloured_text.html", name=name, tokens=tokens, ranks=list(RANKS), most_bits=f"{MOST_BITS:g}", summary=summary
    )


def page(probabilities: TokenProbabilities, title: str) -> str:
    """A page of its own with a `fragment`."""
    return pages.render("coloured_text_page.html", title=title, text=Markup(fragment(probabilities)))


def percent(probability: float) -> str:
    """ "12.34 %"; below 0.01 % by its power of ten, "4.5e-07"."""
    return f"{probability:.2%}".replace("%", " %") if probability >= 1e-4 else f"{probability:.1e}"
