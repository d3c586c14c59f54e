"""A tiny BERT that embeds sentences, as a folder of the sentence-transformers library holds one."""

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from langwright.model.checkpoint.save import save_model
from langwright.model.config import LayerSpec, ModelConfig
from langwright.model.model import build_model
from langwright.tokenizer.tokenizer import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'"


def piece_tokenizer() -> Tokenizer:
    """One token a character (``a`` begins a word, ``##a`` goes on), framed and paired as BERT's are."""
    vocab = [*SPECIAL, *CHARACTERS, *(f"##{each}" for each in CHARACTERS)]
    backend = tokenizers.Tokenizer(
        models.WordPiece({token: number for number, token in enumerate(vocab)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(list(SPECIAL))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return Tokenizer(backend, roles=roles)


def make_encoder(folder: Path, *, dropout: float = 0.0) -> Path:
    """A folder with a BERT of two layers that pools the mean, and its tokenizer."""
    tokenizer = piece_tokenizer()
    config = ModelConfig(
        family="bert",
        d_model=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=4,
        d_head=8,
        d_mlp=48,
        vocab_size=tokenizer.vocab_size,
        max_positions=64,
        causal=False,
        positions="learned",
        n_types=2,
        embed_norm=True,
        norm="layernorm",
        norm_eps=1e-12,
        norm_bias=True,
        norm_slots=("attn_res", "mlp_res"),
        final_norm=False,
        activation="gelu",
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        head_bias=True,
        classifier="tanh",
        classifier_bias=True,
        layer_specs={"full": LayerSpec()},
        dropout=dropout,
        attn_dropout=dropout,
        init_std=0.2,
        pad_id=0,
    )
    folder.mkdir(parents=True)
    save_model(build_model(config, "embedding", seed=5), folder)
    tokenizer.save(folder)
    return folder
