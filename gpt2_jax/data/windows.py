"""Documents within windows of T + 1 tokens: which inputs belong together, and where each stands in its document.

A stream is documents, each followed by end-of-text, cut into windows wherever they fall. End-of-text begins the
segment of the document *after* it, whose first token is predicted from end-of-text alone, as `generate("")` does.
"""

import numpy as np


def segments(tokens: np.ndarray, end_of_text: int) -> np.ndarray:
    """The segment of each input: int [..., T+1] -> int32 [..., T], 0, 1, ... along a row."""
    begins = tokens[..., :-1] == end_of_text
    begins[..., 0] = False
    return np.cumsum(begins, axis=-1, dtype=np.int32)


def positions(tokens: np.ndarray, end_of_text: int) -> np.ndarray:
    """How far each input is from where its segment begins in the row: int [..., T+1] -> int32 [..., T]."""
    inputs = tokens[..., :-1]
    columns = np.arange(inputs.shape[-1], dtype=np.int32)
    starts = np.where(inputs == end_of_text, columns, np.int32(0))
    return columns - np.maximum.accumulate(starts, axis=-1, out=starts)


def boundaries(
    tokens: np.ndarray, end_of_text: int, *, mask_documents: bool, restart_positions: bool
) -> dict[str, np.ndarray]:
    """The entries that these options (see `DataConfig`) add to a batch of tokens [B, T+1]."""
    entries = {}
    if mask_documents:
        entries["segments"] = segments(tokens, end_of_text)
    if restart_positions:
        entries["positions"] = positions(tokens, end_of_text)
    return entries
