"""Checkpoints of a run on several ranks: the first one commits, after all of them have written what only they have."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from langwright.core.errors import UserError
from langwright.train.card import RunFacts
from langwright.train.checkpoint import Snapshot, save_checkpoint
from langwright.train.loop import TrainState
from langwright.train.ranks import SharedError
from langwright.train.saving import Saver
from langwright.train.spread import Spread, whole_model


class RankSaver(Saver):
    """A `Saver` that all ranks use in step; what goes wrong with one is a `SharedError` on all of them.

    In the background, ranks talk through a group of their own, and learn only when they wait what was committed.
    """

    def __init__(
        self,
        out: Path,
        facts: RunFacts,
        *,
        background: bool,
        say: Callable[[str], None] = lambda _: None,
        spread: Spread,
    ):
        super().__init__(out, facts, background=background, say=say)
        self._spread, self._ranks = spread, spread.ranks
        self._shares: dict[str, Any] | None = None  # of the snapshot that is being written

    def committed(self, *, wait: bool) -> list[Path]:
        """As for one process; but without ``wait`` nobody asks whether the others are ready."""
        return super().committed(wait=wait) if wait or self._ranks.alone else []

    def _take(self, state: TrainState) -> Snapshot:
        if self._spread.kind != "fsdp":
            return super()._take(state) if self._ranks.first else Snapshot(state, {})
        from langwright.train.sharded import stage
        from langwright.train.shared_state import shared_tensors  # takes seconds

        tensors, settings = shared_tensors(state), self._facts.config
        self._shares = stage(tensors) if self._background else dict(tensors)
        is_last = state.step == settings.train.max_steps
        whole = whole_model(state.model, self._ranks) if is_last or settings.parallel.whole_checkpoints else None
        return Snapshot(replace(state, model=whole or state.model), {})

    def _commit(self, snapshot: Snapshot, prune: bool) -> Path:
        if self._ranks.alone:
            return super()._commit(snapshot, prune)
        told = self._commit_as_first(snapshot, prune) if self._ranks.first else self._help()
        told = self._tell(told) or ""
        if not told.startswith("+"):
            raise SharedError(told[1:])
        return self._out / told[1:]

    def _commit_as_first(self, snapshot: Snapshot, prune: bool) -> str:
        """Returns ``+`` and the name of what was committed, or ``-`` and what went wrong."""
        shares, waiting = self._shares, self._shares is not None

        def write_shares(folder: Path) -> None:
            nonlocal waiting
            assert shares is not None
            folder.mkdir()
            waiting = False
            self._tell(str(folder))
            self._write_shares(folder, shares)

        try:
            write = None if shares is None else write_shares
            return "+" + save_checkpoint(self._out, snapshot, self._facts, prune=prune, write_shares=write).name
        except UserError as error:
            if waiting:
                self._tell(None)
            return f"-{error}"

    def _help(self) -> None:
        """What the others do: write their shares where the first one says, if it comes to that."""
        if self._shares is not None and (folder := self._tell(None)) is not None:
            with suppress(UserError):  # the first rank tells it
                self._write_shares(Path(folder), self._shares)

    def _tell(self, text: str | None) -> str | None:
        return self._ranks.from_first(text, group=self._ranks.saving)

    def _write_shares(self, folder: Path, shares: dict[str, Any]) -> None:
        from langwright.train.sharded import write_shards  # takes seconds

        write_shards(folder, shares, self._ranks.saving)
