"""From logits to a token: the settings, the penalties, and the choice.

The order of steps is fixed and is that of `transformers`:

    repetition penalty -> presence and frequency penalties -> logit bias -> end tokens barred before ``min_new_tokens``
    -> temperature -> top-k -> top-p -> min-p -> draw

With temperature 0 the token of the highest logit is taken before the temperature step, so nothing is drawn.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from pydantic import Field, FiniteFloat, field_validator, model_validator
from torch import Tensor

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.infer.constraints import Constraint
from langwright.infer.filters import build_warps, draw, draw_among_first

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing by them would only overflow."""


class SamplingConfig(Frozen):
    """How the next token is chosen and when to stop. The defaults draw from the model's own distribution."""

    temperature: FiniteFloat = Field(default=1.0, ge=0, le=100)
    """Logits are divided by this; 0 is greedy."""
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """Keep the k most probable tokens (Fan et al. 2018); 0 keeps all."""
    top_p: FiniteFloat = Field(default=1.0, gt=0, le=1)
    """Keep the fewest tokens that hold this much probability (Holtzman et al. 2020); 1 keeps all."""
    min_p: FiniteFloat = Field(default=0.0, ge=0, le=1)
    """Keep tokens at least this share as probable as the most probable one (Nguyen et al. 2024); 0 keeps all."""
    repetition_penalty: FiniteFloat = Field(default=1.0, gt=0, le=100)
    """Divides positive and multiplies negative logits of tokens in prompt or answer (CTRL, Keskar et al. 2019)."""
    presence_penalty: FiniteFloat = Field(default=0.0, ge=-2, le=2)
    """Taken once from the logit of every token already in the answer (as OpenAI's API does)."""
    frequency_penalty: FiniteFloat = Field(default=0.0, ge=-2, le=2)
    """Taken from a token's logit as often as it already stands in the answer (as OpenAI's API does)."""
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[FiniteFloat, Field(ge=-100, le=100)]] = Field(
        default_factory=dict
    )
    """Added to the logits of these token ids."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Every row draws from its own generator of this seed, whatever batch it is in, so equal prompts get equal answers.
    None: every row takes a seed from torch's global generator."""
    stop: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(default=(), max_length=64)
    """The answer ends before the first of these strings."""
    max_new_tokens: int = Field(default=256, ge=0, le=1 << 20)
    min_new_tokens: int = Field(default=0, ge=0, le=1 << 20)
    """End tokens are barred before so many tokens; stop strings still stop."""
    ignore_eos: bool = False
    """Do not stop at end tokens."""
    logprobs: int | None = Field(default=None, ge=0, le=20)
    """Report log-probabilities of the chosen tokens and of so many most probable ones at each step, of the model's own
    distribution before any step above."""
    constraint: Constraint | None = None
    """What the whole answer must look like. It then ends within ``max_new_tokens``, where its grammar does."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) is over max_new_tokens ({self.max_new_tokens})")
        if self.constraint is not None and (self.min_new_tokens or self.ignore_eos):
            raise ValueError("a constrained answer ends where it must; leave out min_new_tokens and ignore_eos")
        return self

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


def check_bias(config: SamplingConfig, vocab_size: int) -> None:
    """Raises `UserError` for a biased id outside the vocabulary."""
    if outside := [token for token in config.logit_bias if token >= vocab_size]:
        raise UserError(f"logit_bias names token id {outside[0]}; this model's ids are 0 to {vocab_size - 1}")


def penalise_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """CTRL's penalty on each row's ``ids`` (B, N); an id that stands there twice is penalised once."""
    own = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(own < 0, own * penalty, own / penalty))


def penalise_presence(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """OpenAI's: ``penalty`` is taken once from the logits of each row's ``ids`` (B, N)."""
    return logits.scatter(1, ids, logits.gather(1, ids) - penalty)


def penalise_frequency(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """OpenAI's: ``penalty`` is taken from the logits of each row's ``ids`` (B, N) as often as they stand there."""
    return logits.scatter_add(1, ids, torch.full_like(ids, -penalty, dtype=logits.dtype))


class Sampler:
    """Chooses the next token of every row of one batch and remembers what the penalties need.

    ``prompts`` are the rows' token ids, none empty, and ``seeds`` their seeds; ids from ``known_ids`` on are never
    chosen (rows of the embedding that no token uses); ``end_ids`` wait until ``min_new_tokens``.
    """

    def __init__(
        self,
        config: SamplingConfig,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        vocab_size: int,
        *,
        known_ids: int | None = None,
        end_ids: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ):
        self.config, self.device = config, device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.end_ids = torch.tensor(sorted(end_ids), dtype=torch.long, device=device)
        self.bias = _bias(config, vocab_size, vocab_size if known_ids is None else known_ids, device)
        longest = max(len(prompt) for prompt in prompts)
        filled = [[*prompt, *[prompt[0]] * (longest - len(prompt))] for prompt in prompts]
        self.seen = torch.tensor(filled, device=device)  # (B, longest): a repeated id changes nothing
        self.answer = self.seen[:, :0]  # (B, tokens so far)

    def __call__(self, logits: Tensor) -> Tensor:
        """Float32 logits (B, V) of the next token -> chosen ids (B,); raises `UserError` when logits are not finite."""
        if not bool(logits.amax(-1).isfinite().all()):
            raise UserError(
                "the model gives logits that are not finite; its weights are damaged or its training diverged"
            )
        logits = self.adjust(logits)
        chosen = logits.argmax(-1) if self.config.greedy else self.sample(logits)
        self.note(chosen)
        return chosen

    def note(self, chosen: Tensor) -> None:
        """Remember the tokens that were chosen, (B,)."""
        self.answer = torch.cat((self.answer, chosen[:, None]), 1)

    def adjust(self, logits: Tensor) -> Tensor:
        """Penalties, bias and barred end tokens: all that comes before the temperature."""
        config = self.config
        if config.repetition_penalty != 1:
            logits = penalise_repetition(logits, torch.cat((self.seen, self.answer), 1), config.repetition_penalty)
        if config.presence_penalty:
            logits = penalise_presence(logits, self.answer, config.presence_penalty)
        if config.frequency_penalty:
            logits = penalise_frequency(logits, self.answer, config.frequency_penalty)
        if self.bias is not None:
            logits = logits + self.bias
        if self.answer.shape[1] < config.min_new_tokens and len(self.end_ids):
            logits = logits.index_fill(-1, self.end_ids, float("-inf"))
        return logits

    def sample(self, logits: Tensor) -> Tensor:
        """From the temperature to the token: (B, V) -> (B,), each row by its own generator."""
        return sample_rows(logits, self.generators, self.config)


def sample_rows(logits: Tensor, generators: Sequence[torch.Generator], config: SamplingConfig) -> Tensor:
    """One token a row of ``logits`` (B, V), (B,): each from a number of its own generator."""
    settings = config.temperature, config.top_k, config.top_p, config.min_p
    uniforms = torch.stack([torch.rand((), generator=own, dtype=torch.float64) for own in generators])
    uniforms = uniforms.to(logits.device, torch.float32 if logits.device.type == "mps" else torch.float64)
    chosen, certain = draw_among_first(logits, uniforms, *settings)
    if not bool(certain.all()):
        rest = logits[~certain]
        for warp in build_warps(*settings):
            rest = warp(rest)
        chosen[~certain] = draw(rest, uniforms[~certain])
    return chosen


def choose(samplers: Sequence[Sampler], logits: Tensor) -> Tensor:
    """`Sampler` for rows with settings of their own: samplers of one row each and logits (B, V) -> ids (B,).

    Rows that draw by the same settings are drawn together, which gives each what it would get alone. The samplers are
    yet to `note` what is taken in the end.
    """
    given = logits.split(1)
    adjusted = [sampler.adjust(row) for sampler, row in zip(samplers, given, strict=True)]
    if any(after is not before for after, before in zip(adjusted, given, strict=True)):
        logits = torch.cat(adjusted)
    chosen = logits.argmax(-1)
    groups: dict[tuple[float, int, float, float], list[int]] = {}
    for number, config in enumerate(sampler.config for sampler in samplers):
        if not config.greedy:
            settings = config.temperature, config.top_k, config.top_p, config.min_p
            groups.setdefault(settings, []).append(number)
    for rows in groups.values():
        generators = [samplers[number].generators[0] for number in rows]
        chosen[rows] = sample_rows(logits[rows], generators, samplers[rows[0]].config)
    return chosen


def _bias(config: SamplingConfig, vocab_size: int, known_ids: int, device: torch.device | str) -> Tensor | None:
    """What is added to every row's logits, (V,); None when nothing is."""
    if not config.logit_bias and known_ids >= vocab_size:
        return None
    bias = torch.zeros(vocab_size, device=device)
    for token, value in config.logit_bias.items():
        bias[token] = value
    bias[known_ids:] = float("-inf")
    return bias
