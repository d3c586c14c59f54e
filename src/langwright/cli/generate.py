"""``langwright generate``: continue a prompt."""

import sys
from time import perf_counter
from typing import Literal

from pydantic_settings import CliPositionalArg

from langwright.cli.command import Command, Json, print_json, settings
from langwright.infer.sampling import SamplingConfig


class _Prompt(Command):
    ref: CliPositionalArg[str]
    """The model: a folder, a .gguf file, a catalogue name or a hub id."""
    prompt: str | None = None
    """The text to continue; without it standard input is read."""
    suffix: str | None = None
    """Write what fits between the prompt and this text; for models that were trained to fill in the middle."""
    allow_special: bool = False
    """Let text such as <|im_end|> in the prompt be the special token of that name."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    dtype: str | None = None
    """float32, bfloat16 or float16; default: float32 on a CPU, else as stored."""
    quantise: Literal["int8", "int4"] | None = None
    """Keep matrices in 8 or 4 bits and run them on the CPU; int4 is for GGUF files of 4 bits."""
    json_output: Json = False
    """Print one JSON object instead of streaming text."""


class Generate(SamplingConfig, _Prompt):
    """Continue a prompt with a model, streaming to the terminal."""

    model_config = settings("generate")
    verbatim = frozenset({"--stop"})

    def sampling(self) -> dict:
        """The part that `SamplingConfig` knows."""
        return {name: getattr(self, name) for name in SamplingConfig.model_fields}


def run(argv: list[str]) -> int:
    """The verb."""
    command = Generate.read(argv)
    prompt = sys.stdin.read() if command.prompt is None else command.prompt
    from langwright.infer.lm import load
    from langwright.infer.prompts import encode_gap

    model = load(command.ref, device=command.device, dtype=command.dtype, quantise=command.quantise)
    if command.suffix is not None:
        prompt = encode_gap(model.tokenizer, prompt, command.suffix)
    stream = model.stream(prompt, allow_special=command.allow_special, **command.sampling())
    start = perf_counter()
    for piece in stream:
        if not command.json_output:
            print(piece, end="", flush=True)
    result = stream.result
    assert result is not None
    if command.json_output:
        print_json({"text": result.text, "token_ids": result.token_ids, "finish_reason": result.finish_reason})
    else:
        print()
    if sys.stderr.isatty():
        speed = len(result.token_ids) / (perf_counter() - start)  # reading the prompt included
        print(f"{len(result.token_ids)} tokens, {speed:.1f} a second", file=sys.stderr)
    return 0
