"""Which text trains and which validates: a rule that looks at one document at a time, so order does not matter."""

import hashlib
from typing import Literal

from langwright.core.config import Frozen
from langwright.core.errors import UserError

SplitName = Literal["auto", "documents", "tail"]
MIN_VAL_DOCUMENTS = 4
"""With fewer documents than this expected in validation, chance decides how large it becomes."""


class SplitRule(Frozen):
    """How documents were divided; stands in data.json."""

    rule: Literal["documents", "tail", "files"]
    """documents: by a hash of the text · tail: the last part of every document · files: validation was given apart."""
    val_fraction: float
    """Share of the text that validates; 0 where validation was given apart."""
    seed: int

    def describe(self) -> str:
        """The rule in one sentence."""
        share = f"{100 * self.val_fraction:g} %"
        return {
            "documents": f"about {share} of the documents, chosen by a hash of their text, are validation",
            "tail": f"the last {share} of every document is validation",
            "files": "validation is the files given for it; documents that also stand there do not train",
        }[self.rule]


def text_hash(text: str, seed: int = 0) -> int:
    """64-bit BLAKE2b of the UTF-8 text, salted with ``seed``: the same on every machine."""
    salt = seed.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8, salt=salt).digest(), "little")


def is_held_out(text: str, val_fraction: float, seed: int = 0) -> bool:
    """Whether a whole document validates: equal texts always stay on one side, whatever else is in the corpus."""
    return text_hash(text, seed) < val_fraction * 2.0**64


def divide(text: str, rule: SplitRule) -> tuple[str, str]:
    """A document's training part and validation part; either may be empty.

    ``tail`` cuts at character ``int(len(text) * (1 - val_fraction))``, as nanoGPT splits tiny Shakespeare.
    """
    if rule.rule == "documents":
        return ("", text) if is_held_out(text, rule.val_fraction, rule.seed) else (text, "")
    if rule.rule == "tail":
        cut = int(len(text) * (1 - rule.val_fraction))
        return text[:cut], text[cut:]
    return text, ""


def choose_rule(
    name: SplitName,
    *,
    val_fraction: float,
    seed: int,
    n_documents: int,
    n_bytes: int,
    held_out: int,
    held_out_bytes: int,
) -> SplitRule:
    """Settle ``auto``: whole documents where there are enough of them for a fair share, else the tail of each.

    ``held_out`` and ``held_out_bytes`` are what `is_held_out` would set apart. Fair means that at least
    `MIN_VAL_DOCUMENTS` are expected and that their bytes are within half and twice ``val_fraction``. Raises `UserError`
    when whole documents are asked for and one side would be empty.
    """
    share = held_out_bytes / max(n_bytes, 1)
    fair = n_documents * val_fraction >= MIN_VAL_DOCUMENTS and val_fraction / 2 <= share <= val_fraction * 2
    if name == "documents" and not 0 < held_out < n_documents:
        side = "validation" if held_out == 0 else "training"
        raise UserError(
            f"split 'documents' leaves {side} empty: {n_documents} document(s) are too few for a validation share of "
            f"{val_fraction:g}; use --split tail, or give validation files with --val"
        )
    rule = "documents" if name == "documents" or (name == "auto" and fair) else "tail"
    return SplitRule(rule=rule, val_fraction=val_fraction, seed=seed)
