"""The first four minutes: a model made from real text in front of your eyes, then a real pretrained one to talk to."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from langwright.apps.chat import ChatSession
from langwright.apps.samples import text_sampler
from langwright.core.errors import UserError
from langwright.data.corpus import corpus_path
from langwright.data.prepare import prepare
from langwright.infer.lm import load
from langwright.model.checkpoint.hub import resolve
from langwright.train.config import TrainConfig, load_recipe
from langwright.train.probe import seconds_per_step
from langwright.train.run import train
from langwright.train.session import TrainResult

PRETRAINED = "smollm2-135m-instruct"
TRAINING_SECONDS = 150.0
"""What the four minutes leave for training; the recipe's steps are cut to it where the machine is slow."""
FEWEST_STEPS = 120
"""Below this there is no language yet, so a very slow machine takes longer."""
QUESTION = "What is a language model? Answer in two sentences."
PASSAGE = (
    "The Earth goes around the Sun once a year. Because its axis is tilted, the northern half leans toward the Sun in "
    "June and away from it in December. That is why summer days are long and warm, and winter days are short and cold."
)


@dataclass(frozen=True)
class Corpus:
    """A text that ships with the package, and how to read and continue it."""

    file: str
    title: str
    vocab_size: int
    prompt: str


CORPORA = {
    "en": Corpus("shakespeare", "1.1 MB of Shakespeare's plays", 1024, "ROMEO:\n"),
    "zh": Corpus("tang_poems", "Chinese poems of the Tang dynasty", 6144, "春"),
}


@dataclass(frozen=True)
class QuickstartReport:
    """What came out: bits per byte before and after training, and whether the pretrained model could be had."""

    untrained_bpb: float
    val_bpb: float
    sample: str
    checkpoint: Path
    seconds: float
    answer: str | None
    perplexity: float | None


def quickstart(out: Path, language: str, console: Console, write: Callable[[str], None]) -> QuickstartReport:
    """Run all of it, leaving data and model in ``out``; ``write`` gets streamed text.

    Without a network the second part says what could not be fetched. Raises `UserError` when ``out`` cannot be written.
    """
    start = time.monotonic()
    corpus = CORPORA[language]
    result, untrained, sample = make_model(out, corpus, console)
    answer, perplexity = meet_pretrained(console, write)
    seconds = time.monotonic() - start
    return QuickstartReport(untrained, result.val_bpb, sample, result.checkpoint, seconds, answer, perplexity)


def make_model(out: Path, corpus: Corpus, console: Console) -> tuple[TrainResult, float, str]:
    """Prepare the corpus, train on it and sample; the result, bits per byte before training, and the sample."""
    console.rule(f"1  Reading {corpus.title}", align="left")
    data = out / "data"
    report = prepare([corpus_path(corpus.file)], data, tokenizer="train", vocab_size=corpus.vocab_size, split="tail")
    found = report.description
    console.print(
        f"{found.train.bytes:,} bytes to learn from, {found.val.bytes:,} held back to be tested on; a tokenizer of "
        f"{found.tokenizer.vocab_size:,} tokens, {found.train.bytes_per_token:.2f} bytes a token",
        highlight=False,
    )
    console.rule("2  Training a Transformer on it", align="left")
    run = _fresh_folder(out)
    result = train(fit_to_time(load_recipe("quickstart"), data, console), data, run, console=console)
    untrained = next(float(row["val_bpb"]) for row in result.history if row.get("event") == "eval")
    console.print(
        f"\nOn text it never saw: {untrained:.2f} bits per byte untrained, [bold]{result.val_bpb:.2f}[/] now "
        f"({result.tokens_per_second:,.0f} tokens/s). It writes:\n",
        highlight=False,
    )
    model = load(result.checkpoint)
    sample = corpus.prompt + text_sampler(data)(model.model, corpus.prompt)
    console.print(sample, markup=False, highlight=False)
    console.print()
    return result, untrained, sample


def fit_to_time(config: TrainConfig, data: Path, console: Console) -> TrainConfig:
    """The recipe with as many of its steps as this machine does in `TRAINING_SECONDS`, found by trying a few."""
    wanted = config.train.max_steps
    assert wanted is not None
    pace = seconds_per_step(config, data)
    steps = min(wanted, max(FEWEST_STEPS, int(TRAINING_SECONDS / pace)))
    if steps < wanted:
        console.print(f"A step takes {pace:.2f} s here, so there will be {steps} of the recipe's {wanted}.")
    return config.replace(train=config.train.replace(max_steps=steps))


def meet_pretrained(console: Console, write: Callable[[str], None]) -> tuple[str | None, float | None]:
    """One streamed answer and a perplexity from the pretrained model, or a line on why there is none."""
    console.rule("3  Meeting a pretrained model", align="left")
    try:
        with console.status(f"fetching {PRETRAINED} (89 MB, once)"):
            path = resolve(PRETRAINED)
    except UserError as error:
        console.print(f"{PRETRAINED} could not be fetched: {error}", markup=False, highlight=False)
        console.print("The model that you made works without it.")
        return None, None
    model = load(str(path))
    console.print(f"SmolLM2-135M-Instruct (Hugging Face, Apache-2.0). You: {QUESTION}", highlight=False)
    write("SmolLM2: ")
    session = ChatSession(model, temperature=0, max_new_tokens=96)
    pieces = []
    for piece in session.say(QUESTION):
        pieces.append(piece)
        write(piece)
    write("\n")
    score = model.score(PASSAGE)
    console.print(
        f"Its perplexity on a short text about the seasons: {score.perplexity:.1f} "
        f"({score.bits_per_byte:.2f} bits per byte)",
        highlight=False,
    )
    return "".join(pieces), score.perplexity


def _fresh_folder(out: Path) -> Path:
    """The first of model, model-2, model-3, ... that does not exist: an earlier model is never overwritten."""
    number = 1
    while True:
        folder = out / ("model" if number == 1 else f"model-{number}")
        if not folder.exists():
            return folder
        number += 1
