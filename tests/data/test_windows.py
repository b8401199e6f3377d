import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpt2_jax.data.windows import boundaries, positions, segments

END = 9


def test_end_of_text_begins_the_document_after_it():
    tokens = np.array(
        [
            [1, 2, END, 3, 4, END, 5, 6],
            [END, 1, 2, END, END, 3, END, 4],
            [1, 2, 3, 4, 5, 6, 7, END],
        ]
    )
    assert segments(tokens, END).tolist() == [
        [0, 0, 1, 1, 1, 2, 2],
        [0, 0, 0, 1, 2, 2, 3],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert positions(tokens, END).tolist() == [
        [0, 1, 0, 1, 2, 0, 1],
        [0, 1, 2, 0, 0, 1, 0],
        [0, 1, 2, 3, 4, 5, 6],
    ]


@given(st.lists(st.lists(st.integers(END - 2, END), min_size=8, max_size=8), min_size=1, max_size=5))
def test_against_a_loop(rows):
    tokens = np.array(rows, np.int32)
    before = tokens.copy()
    for row, segment, position in zip(rows, segments(tokens, END), positions(tokens, END)):
        number, place = 0, -1
        for t, token in enumerate(row[:-1]):
            number, place = (number + (t > 0), 0) if token == END else (number, place + 1)
            assert (segment[t], position[t]) == (number, place)
    assert (tokens == before).all()


def test_entries_of_a_batch():
    tokens = np.arange(16).reshape(2, 8)
    names = lambda **options: list(boundaries(tokens, END, **options))
    assert names(mask_documents=False, restart_positions=False) == []
    assert names(mask_documents=True, restart_positions=False) == ["segments"]
    assert names(mask_documents=False, restart_positions=True) == ["positions"]
    both = boundaries(tokens, END, mask_documents=True, restart_positions=True)
    assert {name: (rows.shape, rows.dtype) for name, rows in both.items()} == {
        "segments": ((2, 7), np.int32),
        "positions": ((2, 7), np.int32),
    }
