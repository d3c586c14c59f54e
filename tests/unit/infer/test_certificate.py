"""The parity certificate: what it holds, what it refuses, and whom it names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from langwright.core.errors import FormatError, UserError
from langwright.core.json_text import write_json
from langwright.infer.certificate import (
    EXACT,
    PARITY,
    Certificate,
    certificate_path,
    certify,
    compare,
    fingerprint,
    read_certificate,
    write_certificate,
)
from langwright.infer.engines import Seen, run_cached, run_whole
from langwright.model.config import LayerSpec, ModelConfig, Rope
from langwright.model.model import Model, build_model
from tests.unit.infer.small import TEMPLATE, byte_tokenizer

TOKENIZER = byte_tokenizer(chat_template=TEMPLATE)


def deep(**changes: Any) -> Model:
    """Six Llama layers, random, with room for the prompts."""
    values = {
        "family": "llama",
        "d_model": 32,
        "n_layers": 6,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_head": 8,
        "d_mlp": 48,
        "vocab_size": TOKENIZER.vocab_size,
        "max_positions": 256,
        "layer_specs": {"full": LayerSpec(rope=Rope())},
        "init_std": 0.3,
    }
    return build_model(ModelConfig.model_validate(values | changes), seed=2).eval()


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return certify(deep(), TOKENIZER)


def replay(certificate: Certificate, model: Model, run: Any = run_whole) -> list[Any]:
    return [
        compare(golden, run(model, golden.sequence, len(golden.ids) - 1), certificate.places)
        for golden in certificate.goldens
    ]


def test_it_is_small_and_holds_texts_and_a_chat(certificate: Certificate, tmp_path: Path):
    write_certificate(tmp_path / PARITY, certificate)
    assert (tmp_path / PARITY).stat().st_size < 40_000
    assert read_certificate(tmp_path / PARITY) == certificate
    *texts, chat = certificate.goldens
    assert texts[0].prompt == "The capital of France is"
    assert chat.messages[0].role == "user"
    assert all(len(golden.prints) == 6 + 3 and len(golden.greedy) == 16 for golden in certificate.goldens)
    assert all(step.margin > -1e-5 for golden in certificate.goldens for step in golden.greedy)
    assert certificate_path(Path("a/b.gguf")) == Path("a/b.parity.json")


@pytest.mark.parametrize("run", [run_whole, run_cached])
def test_the_same_model_agrees(run: Any, certificate: Certificate):
    found = replay(certificate, deep(), run)
    assert all(each.agrees and not each.token and not each.place for each in found)
    assert max(each.difference for each in found) < 1e-5


@pytest.mark.parametrize("run", [run_whole, run_cached])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("backbone.embed.tokens.weight", "embedding"),
        ("backbone.layers.0.attn.q_proj.weight", "layer 0"),
        ("backbone.layers.3.mlp.down_proj.weight", "layer 3"),
        ("backbone.layers.3.attn.v_proj.weight", "layer 3"),
        ("backbone.layers.5.mlp_in.weight", "layer 5"),
        ("backbone.final_norm.weight", "final norm"),
        ("head.proj.weight", "head"),
    ],
)
def test_one_changed_weight_names_its_layer(run: Any, name: str, place: str):
    model = deep(tie_embeddings=False)
    certificate = certify(model, TOKENIZER)
    with torch.no_grad():
        weight = model.get_parameter(name)
        row = certificate.goldens[0].ids[-1] if "embed" in name else certificate.goldens[0].top[0][0]
        weight[(row % len(weight), 3) if weight.ndim == 2 else 3] += 1.0
    found = replay(certificate, model, run)
    failed = next(each for each in found if not each.agrees)
    assert failed.place == place
    assert failed.difference > failed.allowed


def test_the_first_divergent_token_is_named(certificate: Certificate):
    golden = certificate.goldens[0]
    seen = run_whole(deep(), golden.sequence, len(golden.ids) - 1)
    outputs = seen.outputs.clone()
    outputs[3, 7] = outputs[3].max() + 5
    found = compare(golden, Seen(outputs), certificate.places)
    assert found.token == f"token 3: 7 instead of {golden.greedy[3].id}"
    assert not found.agrees


def test_a_tie_is_no_divergence(certificate: Certificate):
    """Two best tokens nearer to each other than rounding may move them may change places."""
    golden = certificate.goldens[0]
    tied = golden.replace(greedy=(golden.greedy[0].replace(margin=EXACT), *golden.greedy[1:]))
    outputs = run_whole(deep(), golden.sequence, len(golden.ids) - 1).outputs.clone()
    first, second = outputs[0].topk(2).indices.tolist()
    outputs[0, second] = outputs[0, first] + 1e-6
    changed = golden.replace(top=((first, outputs[0, first].item()),))
    assert compare(changed, Seen(outputs), certificate.places).token
    assert compare(tied.replace(top=changed.top), Seen(outputs), certificate.places).agrees


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_never_agree(bad: float, certificate: Certificate):
    golden = certificate.goldens[0]
    seen = run_whole(deep(), golden.sequence, len(golden.ids) - 1)
    outputs = seen.outputs.clone()
    outputs[0, golden.top[0][0]] = bad
    assert not compare(golden, Seen(outputs, seen.states), certificate.places).agrees
    model = deep()
    with torch.no_grad():
        model.get_parameter("backbone.layers.2.mlp.up_proj.weight").fill_(bad)
    with pytest.raises(UserError, match="not finite"):
        certify(model, TOKENIZER)


def test_fingerprints_see_order_and_one_feature():
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    changed = states.clone()
    changed[2, 3] += 0.01
    for other in (changed, states.flip(0), states.flip(1)):
        assert max(abs(a - b) for a, b in zip(fingerprint(states), fingerprint(other), strict=True)) > 1e-4
    assert fingerprint(states) == fingerprint(states.clone())


@pytest.mark.parametrize("head", ["sequence_classifier", "token_classifier", "embedding", "masked_lm"])
def test_every_head_can_be_certified(head: Any):
    bert = {
        "family": "bert",
        "positions": "learned",
        "norm": "layernorm",
        "norm_bias": True,
        "norm_slots": ("attn_res", "mlp_res"),
        "final_norm": False,
        "causal": False,
        "n_kv_heads": 4,
        "gated": False,
        "layer_specs": {"full": LayerSpec()},
    }
    config = ModelConfig.model_validate(dict(deep().config) | bert)
    model = build_model(config, head, seed=1).eval()
    certificate = certify(model, TOKENIZER)
    assert all(not golden.greedy for golden in certificate.goldens)
    assert len(certificate.goldens) == 4
    assert all(each.agrees for each in replay(certificate, model))
    linear = next(module for name, module in model.named_modules() if name.endswith("layers.3.mlp.down_proj"))
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight[3] += 1.0
    assert next(each for each in replay(certificate, model) if not each.agrees).place == "layer 3"


def test_another_model_is_refused_before_any_work(certificate: Certificate):
    with pytest.raises(UserError, match="number of layers is 6, and this model's is 4"):
        certificate.check_fits(deep(n_layers=4), Path(PARITY))
    with pytest.raises(UserError, match="its vocabulary"):
        certificate.check_fits(deep(vocab_size=300), Path(PARITY))


def lies(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """What a file may say that is no certificate, each with a word of the complaint; the checksum is made to fit."""
    golden = values["goldens"][0]
    return [
        ("version", values | {"version": 2}),
        ("goldens", values | {"goldens": []}),
        ("goldens", values | {"goldens": [golden] * 17}),
        ("places", values | {"goldens": [golden | {"prints": golden["prints"][:-1]}]}),
        ("ids", values | {"goldens": [golden | {"ids": [1] * 513}]}),
        ("ids", values | {"goldens": [golden | {"ids": [-1]}]}),
        ("ids", values | {"goldens": [golden | {"ids": ["1"]}]}),
        ("outside the vocabulary", values | {"goldens": [golden | {"ids": [100_000]}]}),
        ("text or a chat", values | {"goldens": [golden | {"text": None}]}),
        ("n_layers", values | {"n_layers": 10**9}),
        ("head", values | {"head": "tail"}),
        ("unknown key", values | {"pickle": "x"}),
    ]


def test_what_is_not_a_certificate_is_refused_in_one_line(certificate: Certificate, tmp_path: Path):
    path = tmp_path / PARITY
    from langwright.infer import certificate as module

    values = certificate.model_dump(mode="json")
    for word, lie in lies(values):
        path.write_text(write_json(lie | {"sha256": module._digest(lie)}))
        with pytest.raises(UserError, match=word) as caught:
            read_certificate(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    for text in ("", "[]", "{}", '{"format": "langwright-parity"}', write_json(values)):
        path.write_text(text)
        with pytest.raises(FormatError):
            read_certificate(path)
    path.write_text(" " * (5 << 20))
    with pytest.raises(FormatError, match="too large"):
        read_certificate(path)


def test_a_certificate_that_was_tampered_with_is_refused(certificate: Certificate, tmp_path: Path):
    path = tmp_path / PARITY
    write_certificate(path, certificate)
    values = json.loads(path.read_text())
    values["goldens"][1]["top"][0][1] += 0.5
    path.write_text(json.dumps(values))
    with pytest.raises(FormatError, match="was changed after it was written"):
        read_certificate(path)
