"""A tiny model that can chat, and examples for it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langwright.model.checkpoint.save import save_model
from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.model import build_model
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.train.tuning.config import TuneConfig, load_tuning
from tests.unit.infer.small import byte_tokenizer

TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def make_base(
    folder: Path,
    *,
    tie: bool = True,
    template: str | None = TEMPLATE,
    context: int = 96,
    unused: Sequence[str] = (),
) -> Path:
    """A folder with a llama of two layers and its tokenizer, a token a byte and some ``unused`` control tokens."""
    plain = byte_tokenizer(chat_template=template)
    plain.backend.add_special_tokens([*unused])
    tokenizer = Tokenizer(plain.backend, roles=plain.roles, chat_template=template)
    config = ModelConfig(
        family="llama",
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_head=8,
        d_mlp=48,
        vocab_size=tokenizer.vocab_size,
        max_positions=context,
        layer_specs={"full": LayerSpec(rope=Rope())},
        tie_embeddings=tie,
        init_std=0.2,  # so that a frozen head can tell something
        eos_ids=tuple(sorted(tokenizer.eos_ids)),
    )
    folder.mkdir(parents=True)
    save_model(build_model(config, seed=3), folder)
    tokenizer.save(folder)
    return folder


def chats(n: int = 24) -> list[dict[str, Any]]:
    """Questions with answers of several lengths."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Say {'very ' * (n % 3)}{number}"},
                {"role": "assistant", "content": f"{number}" * (1 + number % 4)},
            ]
        }
        for number in range(n)
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_tuning(base: Path, **over: Any) -> TuneConfig:
    """Six steps of two rows of 80 tokens, in float32 on one thread, with rank 4, and some settings changed."""
    settings: dict[str, Any] = {
        "train.max_steps": 6,
        "train.batch_size": 2,
        "train.context": 80,
        "train.lr": 1e-2,
        "train.warmup_steps": 0,
        "train.dtype": "float32",
        "train.eval_every": 3,
        "train.save_every": 2,
        "train.log_every": 1,
        "adapter.rank": 4,
        "device": "cpu",
        "threads": 1,
    }
    return load_tuning("sft", str(base), settings | over)
