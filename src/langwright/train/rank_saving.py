"""Checkpoints of a run on several ranks: the first one commits, after all of them have written what only they have."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from langwright.core.errors import UserError
from langwright.train.card import RunFacts
from langwright.train.checkpoint import save_checkpoint
from langwright.train.loop import TrainState
from langwright.train.ranks import SharedError
from langwright.train.spread import Spread, whole_model


def save_on_ranks(out: Path, state: TrainState, facts: RunFacts, spread: Spread) -> Path:
    """`save_checkpoint` by all ranks together; raises the same `SharedError` on all of them when it fails on one."""
    ranks = spread.ranks
    if ranks.alone:
        return save_checkpoint(out, state, facts)
    if spread.kind == "ddp":
        path = None
        with ranks.agreeing():
            path = save_checkpoint(out, state, facts) if ranks.first else None
        return out / (ranks.from_first(None if path is None else path.name) or "")
    from langwright.train.sharded import write_shards
    from langwright.train.shared_state import shared_tensors

    tensors = shared_tensors(state)
    settings = facts.config
    whole = None
    if settings.parallel.whole_checkpoints or state.step == settings.train.max_steps:
        whole = whole_model(state.model, ranks)
    asked = False

    def write_shares(folder: Path) -> None:
        nonlocal asked
        asked = True
        ranks.from_first(str(folder))
        folder.mkdir()
        write_shards(folder, tensors, ranks.saving)

    told = ""
    if ranks.first:
        try:
            path = save_checkpoint(out, replace(state, model=whole or state.model), facts, write_shares)
            told = "+" + path.name
        except UserError as error:
            told = "-" + str(error)
        if not asked:
            ranks.from_first(None)
    else:
        folder = ranks.from_first(None)
        if folder is not None:
            with suppress(UserError):  # the first rank tells it
                write_shards(Path(folder), tensors, ranks.saving)
    told = ranks.from_first(told) or ""
    if told.startswith("-"):
        raise SharedError(told[1:])
    return out / told[1:]
