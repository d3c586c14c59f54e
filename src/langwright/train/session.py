"""What happens between the steps of a run: figures, validation, samples, checkpoints."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from langwright.core.errors import UserError
from langwright.model.model import Model
from langwright.train.checkpoint import step_of
from langwright.train.display import Display, duration
from langwright.train.incident import go_back, note
from langwright.train.loop import Score, StepResult, TrainState
from langwright.train.metrics import MetricsLog, Row
from langwright.train.ranks import SharedError
from langwright.train.saving import Saver
from langwright.train.spread import AS_ONE, Spread
from langwright.train.task import Task
from langwright.train.validate import ValidationStopped

Sampler = Callable[[Model, str], str]
"""Given the model in evaluation mode and a prompt: the text that follows it."""
ESTIMATE_AFTER = 3
"""Steps after which the time of the whole run is told."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended; bits per byte and perplexity are NaN of a classifier.

    ``history`` is ``metrics.jsonl``; ``tokens_per_second`` is of this session's steps alone.
    """

    steps: int
    val_bpb: float
    val_ppl: float
    tokens_per_second: float
    checkpoint: Path
    history: list[Row]
    score: Score
    """The last validation, whose figures the first two are."""


class Session:
    """One process's share of a run: what happens between steps."""

    def __init__(
        self,
        task: Task,
        out: Path,
        state: TrainState,
        log: MetricsLog,
        display: Display,
        sampler: Sampler | None,
        saver: Saver,
        saved: Path | None,
        stopping: Callable[[], bool] = lambda: False,
        spread: Spread = AS_ONE,
    ):
        self.spread = spread
        self.task, self.facts, self.out, self.state = task, task.facts, out, state
        self.log, self.display, self.sampler, self.saver = log, display, sampler, saver
        self.stopping, self.batches = stopping, task.batches(None)
        self._saved = saved
        self._begun_step = state.step if saved else None  # of the newest checkpoint, be it committed or on its way
        self._recorded_step = state.step
        self._steps, self._tokens, self._seconds = 0, 0, 0.0
        if saved and not log.has("save", state.step):  # a crash came between the two
            log.write("save", state.step, path=saved.name)

    @property
    def tokens_per_second(self) -> float:
        """Of all steps of this session."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def begin(self) -> None:
        """What is due before the first step of this process, were it that another one was killed before it did it."""
        settings = self.facts.config.train
        self._look()
        if settings.on_bad_step == "rewind" and self._begun_step is None:
            self.save()

    def after(self, result: StepResult) -> None:
        """What is due after a step that is not the last; `finish` sees to that one."""
        settings = self.facts.config.train
        with self.state.lock:
            self._collect(wait=False)
            self.record(result)
        if result.fault and not result.passed_over:
            self._bad_step(result)
        if result.step == settings.max_steps or self.state.step != result.step:
            return
        self._look()
        if settings.save_every and result.step % settings.save_every == 0 and not self.stopping():
            self.save(wait=False)

    def _look(self) -> None:
        """Validate and sample where that is due at this step and was not done yet."""
        settings, step = self.facts.config.train, self.state.step
        if step == 0 or (settings.eval_every and step % settings.eval_every == 0):
            self.validate()
        if step and settings.sample_every and step % settings.sample_every == 0:
            self.sample()

    def _bad_step(self, result: StepResult) -> None:
        """Write down a step that was not taken; where that is the policy, go back."""
        settings = self.facts.config.train
        if settings.on_bad_step != "rewind":
            if self.spread.ranks.first:
                path = note(self.out, result, self.state, self.facts, self.batches)
                self.display.say(f"its batch is in {path}")
            return
        self._collect(wait=True)
        with self.state.lock:
            self._saved = go_back(self.out, result, self.state, self.facts, self.batches, self.display.say)
            self._begun_step = self._recorded_step = self.state.step
            self.log.go_back(self.state.step)
        self._look()

    def record(self, result: StepResult) -> None:
        """Show a step and write it down."""
        settings = self.facts.config.train
        self._steps += 1
        self._tokens += result.tokens
        self._seconds += result.seconds
        self._recorded_step = self.state.step
        self.display.step(result)
        last = result.step == settings.max_steps
        if not result.taken:
            self.display.say(f"step {result.step} was not taken: {result.fault}")
            self.log.write("skip", result.step, loss=result.loss, grad_norm=result.grad_norm, fault=result.fault)
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
        if self._steps == ESTIMATE_AFTER and not last and not result.passed_over:
            left, rate = ((settings.max_steps or 0) - result.step) * result.seconds, result.tokens / result.seconds
            self.display.say(f"about {duration(left)} to go at {rate:,.0f} tokens/s, validation and saving not counted")

    def validate(self) -> None:
        """Score the validation text with the float32 weights, as a reader of the checkpoint would; once a step."""
        state = self.state
        if state.latest is not None and state.latest.step == state.step:
            return
        try:
            found = self.task.validate(state.model, self.stopping, self.spread)
        except ValidationStopped:
            return  # whoever continues the run does it
        if not found.is_finite:
            raise self._broken()
        with state.lock:
            state.latest = found.score(state.step)
            if state.best is None or state.latest.rank < state.best.rank:
                state.best = state.latest
            if not self.log.has("eval", state.step):
                self.log.write("eval", state.step, **state.latest.figures, tokens=found.tokens)
        self.display.say(f"step {state.step} · validation: {state.latest}")

    def sample(self) -> None:
        """Show how the model writes, where the caller gave a way to; once a step."""
        sampler, spread = self.sampler, self.spread
        if sampler is None or self.stopping() or self.log.has("sample", self.state.step):
            return
        if not spread.ranks.first and spread.kind != "fsdp":
            return
        prompt = self.facts.config.train.sample_prompt
        text = spread.run(self.state.model.eval(), lambda model: sampler(model, prompt))
        with self.state.lock:
            self.log.write("sample", self.state.step, prompt=prompt, text=text)
        self.display.say(f"step {self.state.step} · sample: {prompt}{text}")

    def save(self, *, wait: bool = True, prune: bool = True) -> Path | None:
        """Commit a checkpoint of this step, unless there is one; broken weights never take the place of good ones.

        Without ``wait`` it may be committed later; the path is that of the newest one that is.
        """
        with self.state.lock:
            if self._begun_step != self.state.step:
                if not self.spread.finite(self.state.model):
                    raise self._broken()
                self._collect(wait=True)
                self.log.sync()
                self.saver.begin(self.state, prune=prune)
                self._begun_step = self.state.step
            self._collect(wait=wait)
            return self._saved

    def save_now(self, *, prune: bool = True) -> Path:
        """`save` and wait; the checkpoint of this step."""
        path = self.save(prune=prune)
        assert path is not None
        return path

    def rescue(self) -> None:
        """Commit the state after the last whole step; called by another thread when a pass outlasts the grace."""
        while True:
            with self.state.lock:
                if self._recorded_step == self.state.step:  # else the log does not know the step yet
                    try:
                        self.save()
                    except UserError as error:
                        self.display.say(str(error))  # the main thread tries again
                    return
            time.sleep(0.01)

    def _collect(self, *, wait: bool) -> None:
        """Write down what was committed; raises what went wrong with one that was written in the background."""
        for path in self.saver.committed(wait=wait):
            self._saved = path
            self.log.write("save", step_of(path), path=path.name)

    def _broken(self) -> UserError:
        kept = f"{self._saved} is kept" if self._saved else "nothing was saved"
        return (UserError if self.spread.ranks.alone else SharedError)(
            f"the weights are no longer finite after step {self.state.step}; {kept}; lower train.lr "
            f"(now {self.facts.config.train.lr:g}) or raise train.warmup_steps"
        )

    def finish(self) -> TrainResult | None:
        """Validate, sample and save after the last step, and sum up; None when somebody wants to stop before that."""
        self.validate()
        if self.facts.config.train.sample_every:
            self.sample()
        score = self.state.latest
        if score is None or score.step != self.state.step:
            return None
        path = self.save_now()
        self.display.say(f"done: {self.state.step} steps, {score}; saved in {path}")
        rate = self.tokens_per_second
        return TrainResult(
            self.state.step, score.bpb or math.nan, score.ppl or math.nan, rate, path, self.log.rows, score
        )
