"""What a model does, measured and drawn: attention, probabilities, diversity, curves, reports."""
