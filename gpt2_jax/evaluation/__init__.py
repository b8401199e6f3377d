"""How good a model is: perplexity, the tasks of the GPT-2 paper, control, code."""
