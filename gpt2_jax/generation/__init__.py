"""From a prompt to texts: logits, draws, searches, in jitted loops."""
