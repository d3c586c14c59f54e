"""The parity certificate: what a model gave for a few golden prompts, small enough to travel with it.

For every prompt there are its token ids, the largest logits after it, a greedy continuation, and of every place in the
model (embedding, layers, final norm, head) three numbers by which it is known where another computation departs first.
The file comes with models of strangers, so it is read strictly; its checksum tells accidents, and is no signature.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

import langwright
from langwright.core.config import Frozen
from langwright.core.errors import FormatError, UserError
from langwright.core.files import write_atomic
from langwright.core.json_text import read_json, write_json
from langwright.infer.engines import Prompt, Seen, run_whole
from langwright.infer.generate import generate
from langwright.infer.prompts import encode_prompt, frame
from langwright.infer.sampling import SamplingConfig
from langwright.model.heads import HeadKind
from langwright.model.model import Model
from langwright.tokenizer.chat import ChatTemplate
from langwright.tokenizer.tokenizer import Tokenizer

PARITY = "parity.json"
TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "春眠不觉晓，处处闻啼鸟。",
    "Q: A train leaves at 9:40 and arrives at 12:15. How long does it take?\nA:",
)
QUESTION = "Which is heavier, a kilogram of iron or a kilogram of feathers? Answer in one sentence."
GREEDY_TOKENS, TOP, MAX_IDS, MAX_BYTES = 16, 16, 512, 4 << 20
EXACT = 1e-4
"""By how much of the largest logit (of 1 at least) float32 engines may differ: sums in another order differ by 1e-6 to
1e-5 in some thirty layers, a wrong weight, mask or position by 1e-2 and more."""

TokenId = Annotated[int, Field(strict=True, ge=0, lt=1 << 22)]
Print = tuple[float, float, float]
"""Of the hidden states of one place: mean length of a token's, and two projections of all of them (`fingerprint`)."""


class Turn(Frozen):
    """A message of a chat."""

    role: str = Field(max_length=40)
    content: str = Field(max_length=4000)


class Step(Frozen):
    """A greedy token: its logit, and how far that is ahead of the next best one's."""

    id: TokenId
    logit: float
    margin: float


class Golden(Frozen):
    """One prompt and what came out."""

    text: str | None = Field(default=None, max_length=4000)
    """The prompt; none where it is a chat."""
    messages: tuple[Turn, ...] = Field(default=(), max_length=16)
    ids: tuple[TokenId, ...] = Field(min_length=1, max_length=MAX_IDS)
    top: tuple[tuple[TokenId, float], ...] = Field(min_length=1, max_length=64)
    """The largest outputs after the prompt and their places: token ids of a language model, labels of a classifier."""
    prints: tuple[Print, ...] = Field(min_length=4, max_length=2048)
    """Of embedding, every layer, final norm and head."""
    greedy: tuple[Step, ...] = Field(max_length=64)
    """Empty unless the model writes."""

    @property
    def prompt(self) -> Prompt:
        """Text or messages."""
        return self.text if self.text is not None else [turn.model_dump() for turn in self.messages]

    @property
    def sequence(self) -> list[int]:
        """The prompt and all greedy tokens but the last, which nothing follows."""
        return [*self.ids, *(step.id for step in self.greedy[:-1])]


class Certificate(Frozen):
    """The whole of ``parity.json``."""

    format: Literal["langwright-parity"] = "langwright-parity"
    version: Literal[1] = 1
    family: str = Field(max_length=60)
    head: HeadKind
    n_layers: int = Field(ge=1, le=2044)
    vocab_size: int = Field(ge=1, le=1 << 22)
    software: str = Field(max_length=200)
    goldens: tuple[Golden, ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for golden in self.goldens:
            if len(golden.prints) != self.n_layers + 3:
                raise ValueError(f"a prompt has prints of {len(golden.prints)} places, not {self.n_layers + 3}")
            if max(golden.sequence) >= self.vocab_size:
                raise ValueError("a token id is outside the vocabulary")
            if (golden.text is None) == (not golden.messages):
                raise ValueError("a prompt is a text or a chat")
        return self

    @property
    def places(self) -> tuple[str, ...]:
        """Names for the prints of every prompt, in the order of the computation."""
        return "embedding", *(f"layer {n}" for n in range(self.n_layers)), "final norm", "head"

    def check_fits(self, model: Model, source: Path) -> None:
        """Raise `UserError` when it is of a model with another shape."""
        config = model.config
        for what, here, there in (
            ("family", self.family, config.family),
            ("head", self.head, model.head_kind),
            ("number of layers", self.n_layers, config.n_layers),
            ("vocabulary", self.vocab_size, config.vocab_size),
        ):
            if here != there:
                raise UserError(f"{source}: is of another model: its {what} is {here}, and this model's is {there}")


@dataclass(frozen=True)
class Comparison:
    """How far an engine is from a certificate; ``token`` and ``place`` say where it departs first, else are empty.

    ``difference`` is the largest of a logit, ``allowed`` what it may be.
    """

    difference: float
    allowed: float
    token: str = ""
    place: str = ""

    @property
    def agrees(self) -> bool:
        return self.difference <= self.allowed and not self.token


def golden_prompts(tokenizer: Tokenizer, model: Model) -> list[tuple[Prompt, list[int]]]:
    """The texts, and where the model can chat a question, with their ids."""
    prompts: list[Prompt] = list(TEXTS)
    if tokenizer.chat_template and model.head_kind == "causal_lm":
        prompts.append([{"role": "user", "content": QUESTION}])
    found = [(prompt, encode_golden(prompt, tokenizer, model)) for prompt in prompts]
    return [(prompt, ids) for prompt, ids in found if ids]


def encode_golden(prompt: Prompt, tokenizer: Tokenizer, model: Model) -> list[int]:
    """Ids of a prompt as the model is used, cut where they leave no room for an answer."""
    limit = max(1, min(MAX_IDS, model.config.max_positions - GREEDY_TOKENS))
    if not isinstance(prompt, str):
        return ChatTemplate(tokenizer.chat_template, tokenizer).render(prompt, add_generation_prompt=True).ids[:limit]
    if model.head_kind == "causal_lm":
        return encode_prompt(tokenizer, prompt)[:limit]
    before, ids, after = frame(tokenizer, prompt)
    return [*before, *ids[: max(1, limit - len(before) - len(after))], *after]


def certify(model: Model, tokenizer: Tokenizer) -> Certificate:
    """The certificate of ``model`` as it computes now, without a cache; float32 is what it should be in.

    Raises `UserError` for weights that are not finite, and a tokenizer that knows nothing of the golden prompts.
    """
    prompts = golden_prompts(tokenizer, model)
    if not prompts:
        raise UserError("the tokenizer makes no token of any golden prompt; there is nothing to certify")
    writes, room = model.head_kind == "causal_lm", model.config.max_positions
    answers: list[list[int]] = [[] for _ in prompts]
    if writes:
        sampling = SamplingConfig(temperature=0, max_new_tokens=GREEDY_TOKENS)
        fit = [number for number, (_, ids) in enumerate(prompts) if len(ids) < room]
        written = generate(model, [prompts[number][1] for number in fit], sampling, tokenizer=tokenizer)
        for number, answer in zip(fit, written, strict=True):
            answers[number] = answer.token_ids
    return Certificate(
        family=model.config.family,
        head=model.head_kind,
        n_layers=model.config.n_layers,
        vocab_size=model.config.vocab_size,
        software=f"langwright {langwright.__version__}, torch {torch.__version__}",
        goldens=tuple(
            _golden(model, prompt, ids, greedy) for (prompt, ids), greedy in zip(prompts, answers, strict=True)
        ),
    )


def _golden(model: Model, prompt: Prompt, ids: list[int], greedy: list[int]) -> Golden:
    seen = run_whole(model, [*ids, *greedy[:-1]], len(ids) - 1)
    if not torch.isfinite(seen.outputs).all():
        raise UserError("the model's outputs are not finite numbers; there is nothing to certify")
    best = seen.outputs[0].topk(min(TOP, seen.outputs.shape[1]))
    steps = []
    for row, token in zip(seen.outputs, greedy, strict=False):
        others = row.clone()
        others[token] = -torch.inf
        steps.append(Step(id=token, logit=row[token].item(), margin=(row[token] - others.max()).item()))
    return Golden(
        text=prompt if isinstance(prompt, str) else None,
        messages=() if isinstance(prompt, str) else tuple(Turn(**message) for message in prompt),
        ids=tuple(ids),
        top=tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)),
        prints=tuple(fingerprint(state) for state in _all_states(seen) if state is not None),
        greedy=tuple(steps),
    )


def _all_states(seen: Seen) -> list[Tensor | None]:
    """In the order of `Certificate.places`."""
    return [*(seen.states or ()), seen.outputs[:1]]


def fingerprint(states: Tensor) -> Print:
    """Three numbers of hidden states (T, D): the mean of the tokens' lengths, root mean square of a feature each, and
    two projections of all features onto a cosine and a sine, where every token counts alike.

    A change by the share e of a token's length moves the projections by about 0.7 e; some tokens are a thousand times
    as long as others, and would hide all the rest.
    """
    wide = states.double().cpu()
    lengths = wide.square().mean(-1).sqrt().clamp_min(1e-30)  # (T,)
    flat = (wide / lengths[:, None]).flatten()
    angle = torch.arange(1, len(flat) + 1, dtype=torch.float64) * 2.399963229728653  # the golden angle: no period
    scale = len(flat) ** -0.5
    return lengths.mean().item(), (flat @ angle.cos()).item() * scale, (flat @ angle.sin()).item() * scale


def apart(one: Print, other: Print) -> float:
    """How far two prints are from each other, as a share of a token's length; infinite where one is not finite."""
    found = max(abs(one[0] - other[0]) / max(abs(one[0]), 1e-30), abs(one[1] - other[1]), abs(one[2] - other[2]))
    return found if found == found else float("inf")


def compare(golden: Golden, seen: Seen, places: Sequence[str], tolerance: float = EXACT) -> Comparison:
    """What an engine gave for ``golden.sequence`` from the prompt's last token on, against what it should have given.

    A greedy token that differs is a divergence unless the two best were nearer to each other than both may err.
    """
    allowed = tolerance * max(1.0, *(abs(value) for _, value in golden.top))
    index = torch.tensor([place for place, _ in golden.top])
    if seen.outputs.shape[1] <= int(index.max()):
        return Comparison(float("inf"), allowed, "", "head")
    expected = torch.tensor([value for _, value in golden.top], dtype=torch.float64)
    differences = [(seen.outputs[0].double()[index] - expected).abs().max().item()]
    token = ""
    for number, (row, step) in enumerate(zip(seen.outputs, golden.greedy, strict=False)):
        differences.append(abs(row[step.id].item() - step.logit))
        chosen = int(row.argmax())
        if chosen != step.id and step.margin > 2 * allowed and not token:
            token = f"token {number}: {chosen} instead of {step.id}"
    worst = max(value if value == value else float("inf") for value in differences)
    place = ""
    if seen.states is not None and (worst > allowed or token):
        for name, state, kept in zip(places, _all_states(seen), golden.prints, strict=True):
            if state is not None and apart(kept, fingerprint(state)) > tolerance:
                place = name
                break
    return Comparison(worst, allowed, token, place)


def certificate_path(model: Path) -> Path:
    """Where the certificate of a checkpoint folder, or of a ``.gguf`` file, lies."""
    return model.with_name(f"{model.stem}.{PARITY}") if model.suffix == ".gguf" else model / PARITY


def write_certificate(path: Path, certificate: Certificate) -> None:
    """Write it, with its checksum; raises `UserError` where that fails."""
    values = certificate.model_dump(mode="json")
    write_atomic(path, write_json(values | {"sha256": _digest(values)}, indent=None))


def read_certificate(path: Path) -> Certificate:
    """Raises `FormatError` or `UserError` in one line for a file that is too large, changed, or no certificate."""
    values = read_json(path, limit=MAX_BYTES)
    if not isinstance(values, dict) or values.get("format") != "langwright-parity":
        raise FormatError(f"{path}: not a parity certificate")
    stated = values.pop("sha256", None)
    if stated != _digest(values):
        raise FormatError(f"{path}: was changed after it was written (its checksum differs); export or tune again")
    return Certificate.parse(values, str(path))


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
