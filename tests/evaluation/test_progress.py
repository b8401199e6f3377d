import io

from gpt2_jax.evaluation.progress import IN_LOG, ON_TERMINAL, Progress, _duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_now_and_then():
    stream, now = io.StringIO(), 0.0
    progress = Progress("ptb", stream, lambda: now)
    with progress:
        progress(100, 10_100, "tokens")
        now = IN_LOG / 2
        progress(200, 10_100, "tokens")
        now = IN_LOG
        progress(3_100, 10_100, "tokens")
        progress(3_200, 10_100, "tokens")
    assert stream.getvalue() == "ptb: 3,100 of 10,100 tokens, 100 a second, 1 min 10 s left\n"


def test_a_terminal_has_one_line_that_is_wiped():
    stream, now = Terminal(), 0.0
    with Progress("ptb", stream, lambda: now) as progress:
        progress(1, 9, "words")
        now = ON_TERMINAL
        progress(5, 9, "words")
        progress(6, 9, "words")
    shown = "ptb: 5 of 9 words, 8 a second, 0 s left"
    assert stream.getvalue() == f"\r{shown}\r{'':{len(shown)}}\r"


def test_durations():
    assert [_duration(seconds) for seconds in (0.4, 59, 61, 7_260)] == ["0 s", "59 s", "1 min 1 s", "2 h 1 min"]
