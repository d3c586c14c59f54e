"""Distillation: a model learns, token by token, the probabilities of a teacher that is larger or better."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from langwright.core.errors import UserError
from langwright.core.runtime import pick_dtype
from langwright.data.loader import IGNORED
from langwright.infer.lm import LM, load
from langwright.model.model import Model
from langwright.train.linear_nll import Rule, head_loss
from langwright.train.objective import Objective, Piece, count_targets
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.tuning.config import DistilSettings, TuneConfig
from langwright.train.tuning.sft import sft


def distil(
    config: TuneConfig,
    files: Sequence[Path],
    val_files: Sequence[Path] = (),
    say: Callable[[str], None] = lambda _: None,
    *,
    force: bool = False,
    spread: Spread = AS_ONE,
) -> Task:
    """The task of ``config`` on examples of answers, which are `sft`'s; raises `UserError` for what cannot work."""
    settings = config.distil
    if not settings.teacher:
        raise UserError("distil learns from a teacher; name it with --distil.teacher REF")
    task = sft(config, files, val_files, say, force=force, spread=spread)
    config = task.facts.config  # pyright: ignore[reportAssignmentType]
    teacher = load(settings.teacher, device=config.device, dtype=pick_dtype(config.train.dtype))
    check_teacher(teacher, task, config)
    teacher.model.eval().requires_grad_(False)
    say(f"teacher: {settings.teacher}, {sum(each.numel() for each in teacher.model.parameters()):,} parameters")

    def report(model: Model, out: Path) -> list[str]:
        told = task.report(model, out) if task.report else []
        found = task.validate(teacher.model, lambda: False, AS_ONE).score(0)
        return [*told, f"the teacher on the held-out answers: {found}"]

    return replace(task, objective=distil_objective(teacher.model, settings), report=report)


def check_teacher(teacher: LM, task: Task, config: TuneConfig) -> None:
    """Raise `UserError` unless ``teacher`` writes the same tokens, as many, in texts as long."""
    name, facts = f"distil.teacher {config.distil.teacher}", task.facts
    if teacher.model.head_kind != "causal_lm":
        raise UserError(f"{name}: has a {teacher.model.head_kind} head; a teacher has to be a model that writes")
    ours, theirs = (each.backend.get_vocab(with_added_tokens=True) for each in (facts.tokenizer, teacher.tokenizer))
    if ours != theirs:
        differs = min((ours.items() ^ theirs.items()), key=lambda item: (item[1], item[0]))
        raise UserError(
            f"{name}: has another tokenizer than {config.base} ({len(theirs):,} tokens and {len(ours):,}; id "
            f"{differs[1]} is not the same), and probabilities are compared token by token; use one of the same family"
        )
    sizes = teacher.config.vocab_size, facts.model.vocab_size
    if sizes[0] != sizes[1]:
        raise UserError(f"{name}: gives {sizes[0]:,} logits and {config.base} {sizes[1]:,}; use one of the same family")
    if teacher.config.max_positions < min(config.train.context, facts.model.max_positions):
        raise UserError(
            f"{name}: has positions for {teacher.config.max_positions:,} tokens; use --train.context "
            f"{teacher.config.max_positions}"
        )


def distil_objective(teacher: Model, settings: DistilSettings) -> Objective:
    """The mean over learnt tokens of share x T^2 KL(teacher || model) at temperature T, and (1 - share) x -ln p."""

    def loss(model: Model, piece: Piece) -> Tensor:
        kept = piece.targets != IGNORED
        with torch.no_grad():
            seen = teacher.backbone(piece.ids, documents=piece.documents)[kept]  # (N, D of the teacher)
        hidden = model.backbone(piece.ids, documents=piece.documents)[kept]
        rule = distil_rule(
            piece.targets[kept], lambda rows: teacher.head(seen[rows]), settings.temperature, settings.share
        )
        return head_loss(model.head, hidden, rule)

    return Objective(count_targets, loss)


def distil_rule(targets: Tensor, teacher_logits: Callable[[slice], Tensor], temperature: float, share: float) -> Rule:
    """share x T^2 KL(p || q) + (1 - share) x -ln p(target), where p and q are teacher's and model's softmax(z / T).

    T^2 keeps the gradients as large as without a temperature (Hinton et al. 2015, arXiv:1503.02531, section 2).
    ``targets`` (N,) holds no ignored ones; the teacher's logits are asked for as they are needed.
    """

    @torch.no_grad()
    def rule(logits: Tensor, rows: slice, learnt: bool) -> tuple[Tensor, Tensor | None]:
        index, norm = targets[rows][:, None], logits.logsumexp(-1, keepdim=True)
        nll = (norm - logits.gather(-1, index)).sum()
        theirs = F.log_softmax(teacher_logits(rows).float() / temperature, -1)  # (n, V)
        ours = F.log_softmax(logits / temperature, -1)
        p = theirs.exp()
        loss = share * temperature**2 * (p * (theirs - ours)).sum() + (1 - share) * nll
        if not learnt:
            return loss, None
        grad = ours.exp_().sub_(p).mul_(share * temperature)
        hard = logits.sub_(norm).exp_().scatter_add_(-1, index, torch.full_like(norm, -1.0))
        return loss, grad.add_(hard, alpha=1 - share)

    return rule


def distil_loss_naive(ours: Tensor, theirs: Tensor, targets: Tensor, temperature: float, share: float) -> Tensor:
    """The plain twin of `distil_rule`, for all logits (N, V) at once."""
    p, q = (F.log_softmax(each.float() / temperature, -1) for each in (theirs, ours))
    soft = temperature**2 * F.kl_div(q, p, reduction="sum", log_target=True)
    return share * soft + (1 - share) * F.cross_entropy(ours.float(), targets, reduction="sum")
