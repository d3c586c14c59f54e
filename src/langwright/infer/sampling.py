"""From logits to a token: the settings, each step as a small function on (B, V), and the draw.

The order of steps is fixed and is that of `transformers`:

    repetition penalty -> presence and frequency penalties -> logit bias -> end tokens barred before ``min_new_tokens``
    -> temperature -> top-k -> top-p -> min-p -> draw

With temperature 0 the token of the highest logit is taken before the temperature step, so nothing is drawn.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

import torch
from pydantic import Field, FiniteFloat, field_validator, model_validator
from torch import Tensor

from langwright.core.config import Frozen
from langwright.core.errors import UserError

Warp = Callable[[Tensor], Tensor]
"""Logits (B, V) -> logits (B, V), with -inf for what may not be drawn."""

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

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else () if value is None else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) is over max_new_tokens ({self.max_new_tokens})")
        return self

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


def check_bias(config: SamplingConfig, vocab_size: int) -> None:
    """Raises `UserError` for a biased id outside the vocabulary."""
    if outside := [token for token in config.logit_bias if token >= vocab_size]:
        raise UserError(f"logit_bias names token id {outside[0]}; this model's ids are 0 to {vocab_size - 1}")


def scale(temperature: float) -> Warp:
    """Divide by the temperature; the highest logit is taken off first so that nothing overflows."""
    return lambda logits: (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(k: int) -> Warp:
    """Bar everything less probable than the k-th token; ties with it stay."""

    def warp(logits: Tensor) -> Tensor:
        if k >= logits.shape[-1]:
            return logits
        least = logits.topk(k, dim=-1).values[:, -1:]  # (B, 1)
        return logits.masked_fill(logits < least, float("-inf"))

    return warp


def keep_top_p(p: float, first: int = 512) -> Warp:
    """Keep a token when the more probable ones together hold less than ``p``; ties with the last one kept stay.

    Ordering a whole vocabulary takes longer than some models' step, so only the ``first`` tokens are ordered where they
    hold enough.
    """

    def warp(logits: Tensor) -> Tensor:
        norm = logits.logsumexp(-1, keepdim=True)
        for count in (min(first, logits.shape[-1]), logits.shape[-1]):
            best = logits.topk(count, dim=-1).values  # (B, count), descending
            probs = (best - norm).exp()
            mass = probs.cumsum(-1)
            if bool((mass[:, -1] >= p).all()):
                break
        kept = mass - probs < p
        kept[:, 0] = True
        least = best.masked_fill(~kept, float("inf")).amin(-1, keepdim=True)  # (B, 1)
        return logits.masked_fill(logits < least, float("-inf"))

    return warp


def keep_min_p(p: float) -> Warp:
    """Keep tokens whose probability is at least ``p`` times the highest."""

    def warp(logits: Tensor) -> Tensor:
        probs = torch.softmax(logits, -1)
        return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), float("-inf"))

    return warp


def build_warps(config: SamplingConfig) -> list[Warp]:
    """The steps from temperature to min-p that ``config`` asks for, in order; none when it is greedy."""
    if config.greedy:
        return []
    steps = [
        (config.temperature != 1, scale(config.temperature)),
        (config.top_k > 0, keep_top_k(config.top_k)),
        (config.top_p < 1, keep_top_p(config.top_p)),
        (config.min_p > 0, keep_min_p(config.min_p)),
    ]
    return [warp for wanted, warp in steps if wanted]


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """CTRL's penalty on the tokens marked in ``seen`` (B, V)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def penalise_counts(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """OpenAI's penalties: ``counts`` (B, V) says how often each token stands in the answer."""
    return logits - frequency * counts - presence * (counts > 0)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id a row, (B,): the distribution function of ``logits`` (B, V) inverted at ``uniforms`` (B,) in [0, 1)."""
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    mass = torch.softmax(logits, -1).cumsum(-1, dtype=wide)  # (B, V)
    total = mass[:, -1:]
    point = torch.minimum(uniforms[:, None].to(mass) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, point, right=True)[:, 0]


class Sampler:
    """Chooses the next token of every row of one batch and remembers what the penalties need.

    ``prompts`` are the rows' token ids and ``seeds`` their seeds; ids from ``known_ids`` on are never chosen (rows of
    the embedding that no token uses); ``end_ids`` wait until ``min_new_tokens``.
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
        self.config, self.device, self.step = config, device, 0
        self.warps = build_warps(config)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.end_ids = torch.tensor(sorted(end_ids), dtype=torch.long, device=device)
        self.bias = _bias(config, vocab_size, vocab_size if known_ids is None else known_ids, device)
        shape = (len(prompts), vocab_size)
        self.seen = self.counts = None
        if config.repetition_penalty != 1:
            self.seen = torch.zeros(shape, dtype=torch.bool, device=device)
            for row, prompt in enumerate(prompts):
                self.seen[row, torch.tensor(prompt, dtype=torch.long, device=device)] = True
        if config.presence_penalty or config.frequency_penalty:
            self.counts = torch.zeros(shape, device=device)

    def __call__(self, logits: Tensor) -> Tensor:
        """Float32 logits (B, V) of the next token -> chosen ids (B,); raises `UserError` when logits are not finite."""
        if not bool(logits.amax(-1).isfinite().all()):
            raise UserError(
                "the model gives logits that are not finite; its weights are damaged or its training diverged"
            )
        logits = self.adjust(logits)
        if self.config.greedy:
            chosen = logits.argmax(-1)
        else:
            for warp in self.warps:
                logits = warp(logits)
            uniforms = [torch.rand((), generator=generator, dtype=torch.float64) for generator in self.generators]
            chosen = draw(logits, torch.stack(uniforms))
        self.remember(chosen)
        return chosen

    def adjust(self, logits: Tensor) -> Tensor:
        """Penalties, bias and barred end tokens: all that comes before the temperature."""
        config = self.config
        if self.seen is not None:
            logits = penalise_repetition(logits, self.seen, config.repetition_penalty)
        if self.counts is not None:
            logits = penalise_counts(logits, self.counts, config.presence_penalty, config.frequency_penalty)
        if self.bias is not None:
            logits = logits + self.bias
        if self.step < config.min_new_tokens and len(self.end_ids):
            logits = logits.index_fill(-1, self.end_ids, float("-inf"))
        return logits

    def remember(self, chosen: Tensor) -> None:
        """Note the tokens (B,) that were added to the rows."""
        self.step += 1
        if self.seen is not None:
            self.seen.scatter_(1, chosen[:, None], True)
        if self.counts is not None:
            self.counts.scatter_add_(1, chosen[:, None], torch.ones_like(chosen[:, None], dtype=self.counts.dtype))


def _bias(config: SamplingConfig, vocab_size: int, known_ids: int, device: torch.device | str) -> Tensor | None:
    """What is added to every row's logits, (V,); None when nothing is."""
    if not config.logit_bias and known_ids >= vocab_size:
        return None
    bias = torch.zeros(vocab_size, device=device)
    for token, value in config.logit_bias.items():
        bias[token] = value
    bias[known_ids:] = float("-inf")
    return bias
