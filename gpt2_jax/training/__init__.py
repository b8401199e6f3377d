"""Runs: the step, the loop, checkpoints, and what may go wrong."""
