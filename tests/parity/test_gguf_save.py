"""GGUF files that are written here, against ours and transformers' readers, and llama.cpp where it is installed."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from langwright.core.errors import UserError
from langwright.core.gguf_file import GgufFile
from langwright.infer.engines import open_llama_cpp
from langwright.infer.generate import generate
from langwright.infer.sampling import SamplingConfig
from langwright.model.checkpoint.gguf_save import save_gguf
from langwright.model.checkpoint.load import load_model
from langwright.model.config import DynamicScaling, LayerSpec, LinearScaling, Llama3Scaling, Rope, YarnScaling
from langwright.model.model import Model, build_model
from langwright.tokenizer.gguf import tokenizer_to_gguf
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.tokenizer import Tokenizer
from langwright.tokenizer.training import CHAT_AND_FIM, END, train_bpe
from tests.parity.test_gguf import CONFIGS, fresh
from tests.unit.tokenizer.conftest import CHATML, TEXTS

VOCABULARY = 320
FAMILIES = (*CONFIGS, "mistral")
IDS = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(1))


@cache
def tokenizer() -> Tokenizer:
    trained = train_bpe(TEXTS, 300, special_tokens=(END, *CHAT_AND_FIM))
    return Tokenizer(trained.backend, roles=trained.roles, chat_template=CHATML)


def widened(family: str, **changes: Any) -> Model:
    """`fresh` with as many rows as the tokenizer needs, and some more."""
    config = fresh("llama" if family == "mistral" else family).config
    model = build_model(config.replace(family=family, vocab_size=VOCABULARY, max_positions=128, **changes), seed=0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return model.eval()


def save(model: Model, path: Path, dtype: Any = "float32") -> Path:
    save_gguf(model, path, tokenizer_to_gguf(tokenizer(), VOCABULARY, model.config.eos_ids), dtype=dtype)
    return path


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_the_model_to_the_bit(family: str, tmp_path: Path) -> None:
    model = widened(family)
    again = load_model(save(model, tmp_path / "m.gguf"))
    assert torch.equal(again(IDS), model(IDS))
    written = load_tokenizer(tmp_path / "m.gguf")
    for text in [*TEXTS, "I'M 12345 <|im_end|>\r\n\n  x", "naïve cafe\u0301 🌊"]:
        assert written.encode(text) == tokenizer().encode(text)
        assert written.encode(text, allow_special=True) == tokenizer().encode(text, allow_special=True)
    assert written.eos_ids == tokenizer().eos_ids | set(model.config.eos_ids)
    assert (written.roles, written.chat_template) == (tokenizer().roles, CHATML)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "share"), [("float16", 2e-3), ("bfloat16", 1e-2), ("q8_0", 3e-2)])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_rounded_weights_are_near(family: str, dtype: str, share: float, tmp_path: Path) -> None:
    model = widened(family)
    again = load_model(save(model, tmp_path / "m.gguf", dtype))
    assert (again(IDS) - model(IDS)).abs().max() <= share * model(IDS).abs().max().clamp_min(1)
    with GgufFile.open(tmp_path / "m.gguf") as file:
        kind = {"float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[dtype]
        assert file.tensors["blk.0.ffn_up.weight"].type == kind
        assert file.tensors["output_norm.weight"].type == "F32"
        assert file.metadata["general.file_type"] == {"float16": 1, "bfloat16": 32, "q8_0": 7}[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
def test_written_read_and_written_again_is_the_same_file(family: str, dtype: str, tmp_path: Path) -> None:
    first = save(widened(family), tmp_path / "a.gguf", dtype)
    metadata = tokenizer_to_gguf(load_tokenizer(first), VOCABULARY, load_model(first).config.eos_ids)
    save_gguf(load_model(first), tmp_path / "b.gguf", metadata, dtype=dtype)  # type: ignore[arg-type]
    assert (tmp_path / "b.gguf").read_bytes() == first.read_bytes()


@torch.no_grad()
@pytest.mark.parametrize(
    "scaling",
    [
        LinearScaling(factor=4.0),
        YarnScaling(factor=4.0, original_positions=32),
        Llama3Scaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192),
    ],
    ids=lambda scaling: scaling.kind,
)
def test_rotary_scalings(scaling: Any, tmp_path: Path) -> None:
    specs = {"full": LayerSpec(rope=Rope(theta=5e5, scaling=scaling))}
    model = widened("llama", layer_specs=specs, d_head=16, tie_embeddings=False)
    again = load_model(save(model, tmp_path / "m.gguf"))
    assert again.config.layer_specs == model.config.layer_specs
    assert torch.equal(again(IDS), model(IDS))


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_it(family: str, tmp_path: Path) -> None:
    model = widened(family)
    save(model, tmp_path / "m.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    assert (theirs.eval()(IDS).logits - model(IDS)).abs().max() <= 1e-5 * model(IDS).abs().max().clamp_min(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_writes_the_same_greedy_tokens(family: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = widened(family)
    prompt = tokenizer().encode("The quick brown fox")
    greedy = generate(model, [prompt], SamplingConfig(temperature=0, max_new_tokens=16, ignore_eos=True))[0].token_ids
    engine = open_llama_cpp(save(model, tmp_path / "m.gguf"), 64)
    seen = engine.run([*prompt, *greedy[:-1]], len(prompt) - 1)
    assert seen.outputs.argmax(-1).tolist() == greedy
    assert engine.encode is not None
    assert engine.encode("The quick brown fox") == prompt


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("mistral", {"layer_specs": {"full": LayerSpec(window=8, rope=Rope())}}, "no sliding windows for mistral"),
        (
            "llama",
            {"layer_specs": {"full": LayerSpec(rope=Rope(scaling=DynamicScaling(factor=2.0, original_positions=128)))}},
            "cannot say rotary scaling 'dynamic'",
        ),
        ("gemma2", {"logit_softcap": None}, "cannot say logit_softcap"),
        ("gemma2", {"attn_scale": 1 / 3}, "cannot say attn_scale"),
        ("llama", {"norm_eps": 1 / 3e5}, "cannot say norm_eps"),
    ],
)
def test_what_gguf_cannot_say_is_refused(family: str, changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as caught:
        save(widened(family, **changes), tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.gguf").exists()


def test_numbers_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = widened("llama")
    with torch.no_grad():
        model.get_parameter("backbone.layers.1.mlp.up_proj.weight")[2, 3] = 1e5
    with pytest.raises(UserError, match=r"blk.1.ffn_up.weight holds numbers beyond float16's .*bfloat16"):
        save(model, tmp_path / "m.gguf", "float16")
    save(model, tmp_path / "m.gguf", "bfloat16")
