"""Real models and tokenizers small enough to know by heart."""

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.model import Model, build_model, lm_projection
from langwright.tokenizer.tokenizer import Tokenizer

BOS, EOS, END_OF_TURN = 256, 257, 258
V = 259
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(*, bos: bool = True, chat_template: str | None = None) -> Tokenizer:
    """One token a byte (id = byte), then BOS, EOS and ``<|im_end|>``."""
    # ByteLevel writes every byte as a printable character; this is its table, byte by byte.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    letters = [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
    backend = tokenizers.Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    roles = {"bos": "<s>", "eos": "</s>"} if bos else {"eos": "</s>"}
    return Tokenizer(backend, roles=roles, chat_template=chat_template)


def scripted(script: list[int], *, vocab_size: int = V, eos_ids: tuple[int, ...] = (EOS,), context: int = 64) -> Model:
    """A Transformer whose weights make it say ``script[p]`` after the token at position p, whatever was read.

    Positions go straight to the head through one-hot rows; all else is zero.
    """
    config = ModelConfig(
        family="gpt2",
        d_model=context,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        d_head=context,
        d_mlp=4,
        vocab_size=vocab_size,
        max_positions=context,
        positions="learned",
        layer_specs={"full": LayerSpec()},
        final_norm=False,
        tie_embeddings=False,
        bos_id=BOS,
        eos_ids=eos_ids,
    )
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("backbone.embed.positions.weight").copy_(torch.eye(context))
        for position, token in enumerate(script):
            lm_projection(model).weight[token, position] = 10.0
    return model


def random_model(*, causal: bool = True, vocab_size: int = V, context: int = 48) -> Model:
    """Drawn at random, wide enough that logits do not tie."""
    config = ModelConfig(
        family="llama",
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_head=8,
        d_mlp=48,
        vocab_size=vocab_size,
        max_positions=context,
        causal=causal,
        layer_specs={"full": LayerSpec(rope=Rope())},
        init_std=0.3,
        eos_ids=(EOS,),
    )
    return build_model(config, seed=2).eval()
