"""Fill in the middle: what is moved comes back, sentinels are never text, and rows keep their length."""

from collections.abc import Iterator

import numpy as np
import pytest

from langwright.core.errors import UserError
from langwright.data.fim import FillInTheMiddle
from langwright.data.loader import IGNORED
from langwright.tokenizer.sentinels import MIDDLE, PREFIX, SUFFIX
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import SPECIAL_TOKENS, train_bpe

PLAIN = [f"The quick brown fox {n} jumps over the lazy dog, 床前明月光 {n}. " * 4 for n in range(5)]
CODE = "def double(x):\n    if x:\n        return 2 * x\n    return 0\n\n\nprint(double(21))\n"
SPELLED = f"a text with {PREFIX} and {MIDDLE}, {SUFFIX} and <|endoftext|> spelled in it"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([*PLAIN, CODE] * 3, 400, special_tokens=SPECIAL_TOKENS["fim"])


def change(tokenizer: Tokenizer, **options: float | bool) -> FillInTheMiddle:
    values = {"rate": 1.0, "spm": 0.0, "by_lines": False} | options
    return FillInTheMiddle.of(tokenizer, 0, **values)  # type: ignore[arg-type]


def window_of(tokenizer: Tokenizer, texts: list[str], cut: int = 0) -> np.ndarray:
    """A stream of documents, as a row of the loader; ``cut`` tokens are missing at its end."""
    ids = [token for text in texts for token in (*tokenizer.encode(text), 0)]
    return np.array(ids[: len(ids) - cut])


def pieces_of(row: np.ndarray) -> Iterator[list[int]]:
    """Documents without their ends."""
    for piece in np.split(row, np.flatnonzero(row == 0) + 1):
        yield [token for token in piece.tolist() if token != 0]


def undo(tokenizer: Tokenizer, ids: list[int]) -> tuple[str, str, str, str]:
    """The order, and prefix, middle and suffix."""
    pre, suf, mid = (ids.index(tokenizer.id(token)) for token in (PREFIX, SUFFIX, MIDDLE))
    assert pre == 0
    if suf == 1:  # prefix and middle are one text, and where one ends is not told; or there is no prefix
        return "spm", tokenizer.decode(ids[mid + 1 :]), "", tokenizer.decode(ids[suf + 1 : mid])
    return "psm", *(tokenizer.decode(part) for part in (ids[1:suf], ids[mid + 1 :], ids[suf + 1 : mid]))


@pytest.mark.parametrize("spm", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("cut", [0, 9])
def test_the_text_comes_back(tokenizer: Tokenizer, spm: float, cut: int):
    """But for the beginning of the prefix, which makes room for the sentinels."""
    texts = [*PLAIN, SPELLED, "", "x"]
    window = window_of(tokenizer, texts, cut)
    originals, found = list(pieces_of(window)), set()
    for seed in range(30):
        ids, targets = change(tokenizer, spm=spm)(window, np.random.default_rng(seed))
        assert ids.shape == targets.shape == (len(window) - 1,)
        assert ids.dtype == targets.dtype == np.int64
        kept = int((targets != IGNORED).sum())
        row = np.append(ids[0], targets[:kept])
        assert (ids[: kept + 1] == row[: len(ids)]).all()
        assert (ids[kept + 1 :] == tokenizer.pad_id).all()
        assert (targets[kept:] == IGNORED).all()
        for piece, original in zip(pieces_of(row), originals, strict=False):
            assert len(piece) <= len(original)
            if tokenizer.id(MIDDLE) not in piece:
                assert piece == original
                continue
            order, prefix, middle, suffix = undo(tokenizer, piece)
            found.add(order)
            assert tokenizer.decode(original).endswith(prefix + middle + suffix)
            assert len(prefix + middle + suffix) > 10
    assert ("psm" in found) == (spm < 1)
    assert "spm" in found or not spm


def test_rate_is_a_share_of_documents(tokenizer: Tokenizer):
    window = window_of(tokenizer, PLAIN * 20)
    untouched, _ = change(tokenizer, rate=0.0)(window, np.random.default_rng(0))
    assert (untouched == window[:-1]).all()
    ids, _ = change(tokenizer, rate=0.5)(window, np.random.default_rng(0))
    assert 30 <= (ids == tokenizer.id(MIDDLE)).sum() <= 70


def test_draws_are_those_of_the_generator(tokenizer: Tokenizer):
    window = window_of(tokenizer, PLAIN)
    one, other, third = (change(tokenizer)(window, np.random.default_rng(seed))[0].tolist() for seed in (1, 1, 2))
    assert one == other != third


def test_code_is_cut_where_lines_begin(tokenizer: Tokenizer):
    window = window_of(tokenizer, [PLAIN[0] + "\n" + CODE])
    for seed in range(30):
        ids, _ = change(tokenizer, by_lines=True)(window, np.random.default_rng(seed))
        piece = next(pieces_of(ids))
        if tokenizer.id(MIDDLE) in piece:
            _, _, middle, suffix = undo(tokenizer, piece)
            for part in (middle, suffix):
                lines = (PLAIN[0] + "\n" + CODE).split("\n")
                assert part == "" or any(
                    line.startswith(part.split("\n")[0]) or line.strip() == part.split("\n")[0] for line in lines
                )
    one_line = window_of(tokenizer, ["no line ends here"])
    assert (change(tokenizer, by_lines=True)(one_line, np.random.default_rng(0))[0] == one_line[:-1]).all()


def test_a_character_that_the_window_cuts_is_left(tokenizer: Tokenizer):
    broken = tokenizer.encode("\U0001f9d1")[1:]
    window = np.array([*broken, *tokenizer.encode(PLAIN[0])])
    assert (change(tokenizer)(window, np.random.default_rng(0))[0] == window[:-1]).all()


def test_a_tokenizer_without_sentinels_is_refused():
    plain = train_bpe(PLAIN, 300)
    with pytest.raises(UserError, match=r"has no <\|fim_prefix\|>.*prepare the data again with --special-tokens fim"):
        change(plain)
