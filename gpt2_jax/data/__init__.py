"""From documents, in files or on the hub, to batches of tokens."""
