"""What happens between the steps of a run: figures, validation, samples, checkpoints."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from langwright.core.errors import UserError
from langwright.data.loader import PreparedData
from langwright.model.model import Model
from langwright.train.card import RunFacts
from langwright.train.display import Display, duration
from langwright.train.loop import Score, StepResult, TrainState
from langwright.train.metrics import MetricsLog, Row
from langwright.train.rank_saving import save_on_ranks
from langwright.train.ranks import SharedError
from langwright.train.spread import AS_ONE, Spread
from langwright.train.validate import validate

Sampler = Callable[[Model, str], str]
"""Given the model in evaluation mode and a prompt: the text that follows it."""
ESTIMATE_AFTER = 3
"""Steps after which the time of the whole run is told."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. ``history`` is ``metrics.jsonl``; ``tokens_per_second`` is of this session's steps alone."""

    steps: int
    val_bpb: float
    val_ppl: float
    tokens_per_second: float
    checkpoint: Path
    history: list[Row]


class Session:
    """One process's share of a run: what happens between steps."""

    def __init__(
        self,
        facts: RunFacts,
        data: PreparedData,
        out: Path,
        state: TrainState,
        log: MetricsLog,
        display: Display,
        sampler: Sampler | None,
        saved: Path | None,
        spread: Spread = AS_ONE,
    ):
        self.spread = spread
        self.facts, self.data, self.out, self.state = facts, data, out, state
        self.log, self.display, self.sampler = log, display, sampler
        self._saved = saved
        self._saved_step = state.step if saved else None
        self._steps, self._tokens, self._seconds = 0, 0, 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of all steps of this session."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def after(self, result: StepResult) -> None:
        """What is due after a step that is not the last; `finish` sees to that one."""
        self.record(result)
        settings = self.facts.config.train
        if result.step == settings.max_steps:
            return
        if settings.eval_every and result.step % settings.eval_every == 0:
            self.validate()
        if settings.sample_every and result.step % settings.sample_every == 0:
            self.sample()
        if settings.save_every and result.step % settings.save_every == 0:
            self.save()

    def record(self, result: StepResult) -> None:
        """Show a step and write it down."""
        settings = self.facts.config.train
        self._steps += 1
        self._tokens += result.tokens
        self._seconds += result.seconds
        self.display.step(result)
        last = result.step == settings.max_steps
        if not result.taken:
            self.display.say(
                f"step {result.step} was not taken: loss {result.loss:g}, gradient norm {result.grad_norm:g}"
            )
            self.log.write("skip", result.step, loss=result.loss, grad_norm=result.grad_norm)
        elif result.step == 1 or result.step % settings.log_every == 0 or last:
            self.log.write(
                "step",
                result.step,
                loss=result.loss,
                lr=result.lr,
                grad_norm=result.grad_norm,
                tokens=self.state.tokens,
                tokens_per_second=self.display.tokens_per_second,
                elapsed=self.state.seconds,
            )
        if self._steps == ESTIMATE_AFTER and not last:
            left, rate = ((settings.max_steps or 0) - result.step) * result.seconds, result.tokens / result.seconds
            self.display.say(f"about {duration(left)} to go at {rate:,.0f} tokens/s, validation and saving not counted")

    def validate(self) -> None:
        """Score the validation text with the float32 weights, as a reader of the checkpoint would; once a step."""
        state, settings = self.state, self.facts.config.train
        if state.latest is not None and state.latest.step == state.step:
            return
        size = settings.micro_batch_size or settings.batch_size
        found = validate(
            state.model,
            self.data.val,
            context=settings.context,
            batch_size=size,
            limit=settings.eval_tokens,
            spread=self.spread,
        )
        if not math.isfinite(found.nll):
            raise self._broken()
        state.latest = Score(step=state.step, bpb=found.bpb, ppl=found.ppl)
        if state.best is None or found.bpb < state.best.bpb:
            state.best = state.latest
        self.log.write("eval", state.step, val_bpb=found.bpb, val_ppl=found.ppl, tokens=found.tokens)
        self.display.say(f"step {state.step} · validation {found.bpb:.4f} bits per byte · perplexity {found.ppl:,.2f}")

    def sample(self) -> None:
        """Show how the model writes, where the caller gave a way to."""
        sampler, spread = self.sampler, self.spread
        if sampler is None or not (spread.ranks.first or spread.kind == "fsdp"):
            return
        prompt = self.facts.config.train.sample_prompt
        text = spread.run(self.state.model.eval(), lambda model: sampler(model, prompt))
        self.log.write("sample", self.state.step, prompt=prompt, text=text)
        self.display.say(f"step {self.state.step} · sample: {prompt}{text}")

    def save(self) -> Path:
        """Commit a checkpoint of this step, unless there is one; broken weights never take the place of good ones."""
        if self._saved is None or self._saved_step != self.state.step:
            if not self.spread.finite(self.state.model):
                raise self._broken()
            self._saved = save_on_ranks(self.out, self.state, self.facts, self.spread)
            self._saved_step = self.state.step
            self.log.write("save", self.state.step, path=self._saved.name)
        return self._saved

    def _broken(self) -> UserError:
        kept = f"{self._saved} is kept" if self._saved else "nothing was saved"
        return (UserError if self.spread.ranks.alone else SharedError)(
            f"the weights are no longer finite after step {self.state.step}; {kept}; lower train.lr "
            f"(now {self.facts.config.train.lr:g}) or raise train.warmup_steps"
        )

    def finish(self) -> TrainResult:
        """Validate, sample and save after the last step, and sum up."""
        self.validate()
        if self.facts.config.train.sample_every:
            self.sample()
        score, path = self.state.latest, self.save()
        assert score is not None
        self.display.say(f"done: {self.state.step} steps, {score.bpb:.4f} bits per byte; saved in {path}")
        return TrainResult(self.state.step, score.bpb, score.ppl, self.tokens_per_second, path, self.log.rows)
