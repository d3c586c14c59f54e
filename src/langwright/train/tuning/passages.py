"""Long documents as passages that fit, and some of these with their middle moved to the end."""

from collections.abc import Sequence

import numpy as np

from langwright.data.fim import FillInTheMiddle
from langwright.data.rendering import Rendered
from langwright.tokenizer.tokenizer import Tokenizer


def passages(
    texts: Sequence[Rendered], tokenizer: Tokenizer, room: int, *, move: FillInTheMiddle | None, seed: int
) -> list[Rendered]:
    """Plain ``texts``, all of which is learnt, in pieces of at most ``room`` ids, the last of each with its end.

    With ``move`` a share of the pieces are rearranged and end where their middle does; the same for the same ``seed``.
    """
    found = []
    for text in texts:
        start = text.trained.index(True)
        before, body = text.ids[:start], text.ids[start:]
        size = room - start - (move is not None)  # what is moved gets an end
        for number, place in enumerate(range(0, len(body), size)):
            piece = body[place : place + size]
            if move is not None:
                piece = _moved(piece, move, np.random.default_rng([seed, len(found)]))
            ids = [*before, *piece]
            trained = [False] * start + [True] * len(piece)
            where = text.where if len(body) <= size else f"{text.where}, passage {number + 1}"
            found.append(Rendered(ids, trained, where, tokenizer.decode(ids)))
    return [each for each in found if len(each.ids) > 1]


def _moved(piece: list[int], move: FillInTheMiddle, rng: np.random.Generator) -> list[int]:
    if rng.random() >= move.rate:
        return piece
    whole = np.array(piece if piece[-1] == move.eos_id else [*piece, move.eos_id])
    moved = move.move(whole, rng)
    return piece if moved is whole else moved.tolist()
