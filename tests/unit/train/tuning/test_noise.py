"""NEFTune: how much noise there is, when, and that a run with it can be repeated."""

import math
import shutil
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from langwright.model.model import Model
from langwright.train.checkpoint import list_checkpoints
from langwright.train.objective import MASKED_LM, Objective, Piece, to_device
from langwright.train.run import run_task
from langwright.train.session import TrainResult
from langwright.train.tuning.config import TuneConfig
from langwright.train.tuning.noise import noisy, text_lengths
from langwright.train.tuning.sft import sft
from tests.unit.train.tuning.talk import chats, make_base, make_tuning, write_lines


def embedded(model: Model, piece: Piece, alpha: float) -> Tensor:
    """What the layers read while the loss is computed."""
    seen: list[Tensor] = []

    def look(model: Model, piece: Piece) -> Tensor:
        seen.append(model.backbone.embed(piece.ids, torch.zeros_like(piece.ids), None).detach())
        return seen[0].sum()

    noisy(Objective(MASKED_LM.weight, look), alpha).loss(model, piece)
    return seen[0]


def test_noise_is_bounded_by_each_texts_length(tmp_path: Path):
    base, data = make_base(tmp_path / "base"), write_lines(tmp_path / "chats.jsonl", chats())
    task = sft(make_tuning(base), [data])
    piece, model = to_device(task.batches(None)(0), torch.device("cpu")), task.build()
    plain = embedded(model.eval(), piece, 5.0)
    assert torch.equal(plain, model.backbone.embed.tokens(piece.ids))  # pyright: ignore[reportCallIssue]
    torch.manual_seed(7)
    noise = (embedded(model.train(), piece, 5.0) - plain).abs()
    assert piece.documents is not None
    for row, documents in enumerate(piece.documents):
        for document in documents.unique():
            here = documents == document
            bound = 5.0 / math.sqrt(int(here.sum()) * model.config.d_model)
            assert 0.9 * bound < noise[row, here].max() <= bound + 1e-6
    torch.manual_seed(7)
    assert torch.equal((embedded(model, piece, 5.0) - plain).abs(), noise)
    assert not model.backbone.embed.tokens._forward_hooks  # pyright: ignore[reportAttributeAccessIssue]


def test_lengths_of_texts():
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])
    piece = Piece(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5), documents)
    assert text_lengths(piece).tolist() == [[2, 2, 3, 3, 3], [4, 4, 4, 4, 1]]
    assert text_lengths(piece._replace(documents=None)).tolist() == [[5] * 5] * 2


def test_resumed_is_uninterrupted(tmp_path: Path):
    base, data = make_base(tmp_path / "base"), write_lines(tmp_path / "chats.jsonl", chats())
    config = make_tuning(base, **{"sft.noise": 5.0, "train.max_steps": 4, "train.eval_every": 0})

    def tune(config: TuneConfig, out: Path, *, resume: bool = False) -> TrainResult:
        return run_task(
            config,
            lambda spread, say: sft(config, [data], spread=spread),
            out,
            resume=resume,
            console=Console(quiet=True),
        )

    whole = tune(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    for path in list_checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(path)
    assert tune(config, tmp_path / "cut", resume=True).score == whole.score
    one, other = ((tmp_path / side / "last" / "adapter_model.safetensors").read_bytes() for side in ("whole", "cut"))
    assert one == other
    losses = [row["loss"] for row in whole.history if row["event"] == "step"]
    quiet = tune(config.replace(sft=config.sft.replace(noise=0.0)), tmp_path / "quiet")
    assert losses != [row["loss"] for row in quiet.history if row["event"] == "step"]
