"""Many requests at once: texts that join and leave a batch, models by name, and the server of them."""
