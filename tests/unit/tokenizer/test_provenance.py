import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from langwright.tokenizer.provenance import MAX_ITEMS, Marked, TemplateLimit, joined, mask_of, tracked

SHORT = st.text("ab \n-<ßé", max_size=12)
# Upper-case letters are the template's, others content, so that every cut shows where it came from.
NAMED = st.text("ABab -\n", max_size=14)


def named(text: str) -> Marked:
    return Marked(text, "".join("T" if letter.isupper() else "C" for letter in text))


def consistent(text: str) -> bool:
    return isinstance(text, Marked) and all(
        letter.isupper() == (author == "T") for letter, author in zip(text, text.mask, strict=True)
    )


@given(SHORT, SHORT, st.integers(-3, 4))
@settings(deadline=None, max_examples=300)
def test_it_behaves_as_text(text: str, other: str, number: int) -> None:
    marked = Marked(text)
    assert marked == text
    assert hash(marked) == hash(text)
    assert (other in marked, marked.find(other), marked < other) == (other in text, text.find(other), text < other)
    for name in ("strip", "lstrip", "rstrip"):
        assert getattr(marked, name)() == getattr(text, name)()
        assert getattr(marked, name)(other) == getattr(text, name)(other)
    for name in ("split", "rsplit"):
        assert getattr(marked, name)() == getattr(text, name)()
        assert getattr(marked, name)(None, number) == getattr(text, name)(None, number)
        if other:
            assert getattr(marked, name)(other, number) == getattr(text, name)(other, number)
    if other:
        assert marked.replace(other, "xy", number) == text.replace(other, "xy", number)
    for name in ("upper", "lower", "title", "capitalize", "splitlines"):
        assert getattr(marked, name)() == getattr(text, name)()
    assert marked.splitlines(True) == text.splitlines(True)
    assert (marked.removeprefix(other), marked.removesuffix(other)) == (
        text.removeprefix(other),
        text.removesuffix(other),
    )
    assert (marked[number:], marked[::-1], list(marked)) == (text[number:], text[::-1], list(text))
    assert (marked + other, other + marked, marked * number, number * marked) == (
        text + other,
        other + text,
        text * number,
        text * number,
    )
    assert marked.join([other, text]) == text.join([other, text])


@given(NAMED, NAMED, st.integers(-1, 3))
@settings(deadline=None, max_examples=300)
def test_every_cut_knows_its_authors(text: str, other: str, number: int) -> None:
    marked = named(text)
    assume(other)
    cut = [marked.strip(), marked.strip(other), marked[1:-1], marked[::-1], *marked]
    cut += [*marked.split(), *marked.split(other, number), *marked.rsplit(other, number), *marked.rsplit(None, number)]
    cut += [*marked.splitlines(), *marked.splitlines(True), marked.removeprefix(other), marked.removesuffix(other)]
    cut += [marked + named(other), marked * 2, named(other).join([marked, marked]), joined([marked, named(other)])]
    cut += [marked.replace(other, named("Xx"), number)]
    assert all(map(consistent, cut))


def test_template_text_carries_no_mask() -> None:
    assert mask_of("abc") == "TTT"
    assert joined(["a", Marked("b"), "c"], "-").mask == "TTCTT"
    assert tracked("ab").mask == "TT"
    assert Marked("ab", "TC").spoken().mask == "tc"


def test_text_that_changes_its_length_is_content() -> None:
    assert Marked("ß", "T").upper().mask == "CC"
    assert Marked("aB", "TC").upper().mask == "TC"


def test_limits() -> None:
    big = Marked("a" * 1_000_000)
    for make in (
        lambda: joined([big] * 5),
        lambda: Marked("a") * (MAX_ITEMS + 1),
        lambda: Marked("a " * 200_000).split(),
        lambda: Marked("a\n" * 200_000).splitlines(),
        lambda: big.replace("a", "b"),
        lambda: big.replace("", "b"),
        lambda: list(big),
    ):
        with pytest.raises(TemplateLimit):
            make()
    assert joined([big] * 4) == "a" * 4_000_000
