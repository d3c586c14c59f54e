"""Sentinels of fill-in-the-middle for a vocabulary that has none: three of its control tokens that stand unused."""

import json
from collections.abc import Sequence

import tokenizers

from langwright.core.errors import UserError
from langwright.tokenizer.tokenizer import Tokenizer

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
SENTINELS = (PREFIX, SUFFIX, MIDDLE)


def with_sentinels(tokenizer: Tokenizer, unused: Sequence[str]) -> Tokenizer:
    """The same ids, with three control tokens renamed to `SENTINELS`, in that order.

    A vocabulary cannot grow without growing the model; a token that the model hardly met can be given a new meaning.
    Raises `UserError` for one that is no control token or has a use, and where there are sentinels already.
    """
    if (given := len(set(unused))) != len(SENTINELS):
        raise UserError(f"sentinels: name three control tokens, for prefix, suffix and middle; {given} given")
    if known := [name for name in SENTINELS if tokenizer.id(name) is not None]:
        raise UserError(f"sentinels: this vocabulary has {known[0]} already; leave the setting out")
    spelled = {tokenizer.spelling(index) or "" for index in tokenizer.controls - tokenizer.eos_ids}
    free = {name for name in spelled - {*tokenizer.roles.values()} if name not in (tokenizer.chat_template or "")}
    if wrong := [name for name in unused if name not in free]:
        raise UserError(
            f"sentinels: {wrong[0]!r:.60} is not a control token that stands unused here; use three of "
            f"{', '.join(sorted(free)[:20]) or 'none'}"
        )
    renamed = dict(zip(unused, SENTINELS, strict=True))
    told = json.loads(tokenizer.backend.to_str())
    for token in told["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    vocab = told["model"].get("vocab")
    if isinstance(vocab, dict):
        told["model"]["vocab"] = {renamed.get(name, name): index for name, index in vocab.items()}
    elif isinstance(vocab, list):
        told["model"]["vocab"] = [[renamed.get(name, name), score] for name, score in vocab]
    return Tokenizer(
        tokenizers.Tokenizer.from_str(json.dumps(told)),
        roles=tokenizer.roles,
        eos_ids=tokenizer.eos_ids,
        chat_template=tokenizer.chat_template,
        named_templates=tokenizer.named_templates,
        max_length=tokenizer.max_length,
    )
