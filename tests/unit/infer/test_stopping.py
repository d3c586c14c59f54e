"""Stop strings: trimmed, held back while possible, and found however the text is cut."""

from hypothesis import given
from hypothesis import strategies as st

from langwright.infer.stopping import StopScanner


def run(stops, pieces):
    scanner = StopScanner(stops)
    out = [scanner.push(piece) for piece in pieces]
    return "".join(out) + scanner.finish(), scanner.found


def expected(stops, text):
    """The text before the stop string that is complete first."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def test_text_without_stops_passes_at_once():
    scanner = StopScanner(())
    assert scanner.push("hello") == "hello"
    assert scanner.finish() == ""


def test_a_stop_across_pieces_is_cut_off():
    assert run(["\n\nQ:"], ["A: yes", ".\n", "\n", "Q", ": no"]) == ("A: yes.", "\n\nQ:")


def test_a_possible_beginning_is_held_back_and_then_let_go():
    scanner = StopScanner(["END"])
    assert [scanner.push(piece) for piece in ("a E", "N", "ough", "E")] == ["a ", "", "ENough", ""]
    assert scanner.finish() == "E"
    assert scanner.found is None


def test_nothing_comes_after_a_stop():
    scanner = StopScanner(["x"])
    assert scanner.push("axb") == "a"
    assert scanner.push("more") == ""
    assert scanner.finish() == ""


def test_self_overlapping_stop():
    assert run(["aab"], ["a", "a", "a", "b"]) == ("a", "aab")


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("ab", max_size=3), max_size=12),
)
def test_the_outcome_does_not_depend_on_the_cuts(stops, pieces):
    assert run(stops, pieces) == expected(stops, "".join(pieces))


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_at_every_moment_no_more_is_held_than_needed(text, stops):
    scanner, out = StopScanner(stops), ""
    for letter in text:
        out += scanner.push(letter)
        if scanner.found is None:
            held = text[len(out) : len(out) + len(scanner.held)]
            assert held == scanner.held
            assert held == "" or any(stop.startswith(held) for stop in stops)
