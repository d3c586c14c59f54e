"""PEFT's folders without PEFT: what is written comes back, and whatever is wrong is named in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from langwright.core.errors import FormatError, UserError
from langwright.model.adapters import (
    adapter_config,
    adapter_parameters,
    add_adapters,
    has_adapters,
    load_adapter,
    save_adapter,
)
from langwright.model.adapters.peft_config import CONFIG, WEIGHTS
from langwright.model.config import LayerSpec
from langwright.model.model import Model
from tests.parity.draws import vanilla_config
from tests.unit.model.adapters.small import GPT2, KINDS, config, gap, make, shake

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
BERT: dict[str, Any] = {
    "family": "bert",
    "causal": False,
    "n_kv_heads": 4,
    "positions": "learned",
    "n_types": 2,
    "embed_norm": True,
    "norm": "layernorm",
    "norm_bias": True,
    "norm_slots": ("attn_res", "mlp_res"),
    "final_norm": False,
    "activation": "gelu",
    "gated": False,
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
    "head_bias": True,
    "classifier": "tanh",
    "classifier_bias": True,
    "layer_specs": {"full": LayerSpec()},
}


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text())


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Copies, as the file may be written over."""
    return {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}


def change(folder: Path, **values: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(written(folder) | values))


def rewrite(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of layer 0's query projection by their last names; None takes one away."""
    held = tensors_of(folder)
    for name, tensor in tensors.items():
        held.pop(f"{LAYER}.{name}.weight", None)
        if tensor is not None:
            held[f"{LAYER}.{name}.weight"] = tensor
    save_file(held, folder / WEIGHTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LoRA of rank 4 on q_proj and v_proj of the small Llama."""
    model = shake(add_adapters(make(), config(targets=("q_proj", "v_proj"))))
    save_adapter(model, tmp_path, base="somewhere/base")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["causal_lm", "sequence_classifier", "token_classifier", "embedding"])
def test_round_trip(kind: str, head, tmp_path: Path):
    settings = config(**KINDS[kind], train_head="classifier" in head, dropout=0.1, alpha=7.5)
    model = shake(add_adapters(make(head), settings)).eval()
    save_adapter(model, tmp_path, base="org/base")
    again = load_adapter(tmp_path, make(head)).eval()
    assert adapter_config(again) == adapter_config(model)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
        assert one.requires_grad == other.requires_grad, name
    assert gap(model, again) == 0
    assert not list(tmp_path.glob(".*"))


def test_the_files_are_pefts(folder: Path):
    assert written(folder) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/base",
        "revision": None,
        "inference_mode": True,
        "r": 4,
        "lora_alpha": 6,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    held = tensors_of(folder)
    assert {name: tuple(tensor.shape) for name, tensor in held.items() if "layers.0" in name} == {
        f"{LAYER}.lora_A.weight": (4, 32),
        f"{LAYER}.lora_B.weight": (32, 4),
        f"{LAYER.replace('q_proj', 'v_proj')}.lora_A.weight": (4, 32),
        f"{LAYER.replace('q_proj', 'v_proj')}.lora_B.weight": (16, 4),
    }
    assert len(held) == 8


def test_doras_magnitude_and_a_backbone_alone(tmp_path: Path):
    save_adapter(add_adapters(make("embedding"), config(dora=True, targets=("q_proj",))), tmp_path, base="b")
    held = tensors_of(tmp_path)
    assert held["base_model.model.layers.1.self_attn.q_proj.lora_magnitude_vector"].shape == (32,)
    assert written(tmp_path)["task_type"] == "FEATURE_EXTRACTION"
    assert written(tmp_path)["use_dora"] is True


def test_names_that_mean_several_projections_are_written_out(tmp_path: Path):
    model = add_adapters(make(**BERT), config(targets=("q_proj", "down_proj")))
    save_adapter(model, tmp_path, base="b")
    assert written(tmp_path)["target_modules"] == [
        "query",
        "bert.encoder.layer.0.output.dense",
        "bert.encoder.layer.1.output.dense",
    ]
    assert written(tmp_path)["task_type"] is None
    again = load_adapter(tmp_path, make(**BERT))
    assert adapter_config(again) == adapter_config(model)


def test_a_classifiers_head_comes_along(tmp_path: Path):
    model = shake(add_adapters(make("sequence_classifier", n_labels=3, **BERT), config(train_head=True)))
    save_adapter(model, tmp_path, base="b")
    assert written(tmp_path)["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    held = tensors_of(tmp_path)
    assert torch.equal(held["base_model.model.classifier.weight"], model.get_parameter("head.proj.weight").detach())
    fresh = make("sequence_classifier", seed=9, n_labels=3, **BERT)
    fresh.backbone.load_state_dict(make(**BERT).backbone.state_dict())
    fresh.fresh = ["head.proj.weight", "head.proj.bias", "head.transform.dense.weight", "head.transform.dense.bias"]
    assert gap(load_adapter(tmp_path, fresh).eval(), model.eval()) == 0
    assert fresh.fresh == []
    # As PEFT writes it: the pooler stays the base's, and both usual names are given.
    held = {name: tensor for name, tensor in held.items() if "pooler" not in name}
    save_file(held, tmp_path / WEIGHTS)
    change(tmp_path, modules_to_save=["classifier", "score"])
    assert has_adapters(load_adapter(tmp_path, make("sequence_classifier", n_labels=3, **BERT)))
    pooled = make("sequence_classifier", n_labels=3, **BERT)
    pooled.fresh = ["head.transform.dense.weight"]
    with pytest.raises(FormatError, match=r"no bert\.pooler\.dense\.weight, and the head would stay untrained"):
        load_adapter(tmp_path, pooled)
    with pytest.raises(FormatError, match=r"classifier.bias' is \(3,\), .* needs \(4,\)"):
        load_adapter(tmp_path, make("sequence_classifier", n_labels=4, **BERT))


@pytest.mark.parametrize(("family", "first"), [("gpt2", "q_proj"), ("gpt_neox", "q_proj"), ("modernbert", "q_proj")])
def test_families_that_fuse_their_projections_are_named(family: str, first: str, tmp_path: Path):
    changes: dict[str, Any] = {
        "gpt2": GPT2,
        "gpt_neox": {"family": family, "n_kv_heads": 4, "norm": "layernorm", "norm_bias": True, "gated": False}
        | {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
        "modernbert": {"family": family, "causal": False, "n_kv_heads": 4, "norm": "layernorm", "embed_norm": True}
        | {"head_bias": True, "head_dense_bias": False},
    }[family]
    instead = {
        "gpt2": "fuse it",
        "gpt_neox": "adapt o_proj, up_proj, down_proj alone",
        "modernbert": "o_proj, down_proj",
    }
    model = add_adapters(make(**changes), config())
    with pytest.raises(UserError, match=f"a {family} checkpoint has {first} only as a part of .*{instead[family]}"):
        save_adapter(model, tmp_path / "adapter", base="b")
    assert not (tmp_path / "adapter").exists()
    if family != "gpt2":
        model = shake(add_adapters(make(**changes), config(targets=("o_proj", "down_proj"))))
        save_adapter(model, tmp_path / "adapter", base="b")
        assert gap(load_adapter(tmp_path / "adapter", make(**changes)), model) == 0


def test_our_own_families_keep_our_names(tmp_path: Path):
    from langwright.model.model import build_model

    for number, base in enumerate((make(family="langwright"), build_model(vanilla_config(), seed=1).eval())):
        model = shake(add_adapters(base, config(targets=("q_proj", "up_proj"))))
        save_adapter(model, tmp_path / str(number), base="b")
        held = tensors_of(tmp_path / str(number))
        assert "base_model.model.backbone.layers.0.attn.q_proj.lora_A.weight" in held
        again = make(family="langwright") if number == 0 else build_model(vanilla_config(), seed=1).eval()
        assert gap(load_adapter(tmp_path / str(number), again), model) == 0


def test_a_model_with_adapters_takes_over_the_values(folder: Path):
    """What resuming a run does: the optimiser knows the parameters, so they must stay the same objects."""
    model = add_adapters(make(), config(targets=("v_proj", "q_proj"), dropout=0.2), seed=8)
    before = adapter_parameters(model)
    assert load_adapter(folder, model) is model
    after = adapter_parameters(model)
    assert before.keys() == after.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert gap(model, load_adapter(folder, make())) == 0
    for settings, message in (
        ({"rank": 8}, "the adapter's rank is 4, and that of this model's is 8"),
        ({"dora": True}, "the adapter's dora is False"),
        ({"targets": ()}, "the adapter's targets"),
    ):
        other = add_adapters(make(), config(**{"targets": ("q_proj", "v_proj")} | settings))
        kept = {name: parameter.detach().clone() for name, parameter in adapter_parameters(other).items()}
        with pytest.raises(UserError, match=message):
            load_adapter(folder, other)
        assert all(torch.equal(parameter, kept[name]) for name, parameter in adapter_parameters(other).items())


def refused(folder: Path, message: str, model: Model | None = None) -> None:
    """One line, nothing changed."""
    model = model or make()
    with pytest.raises(UserError, match=message) as caught:
        load_adapter(folder, model)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not has_adapters(model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
        ({"peft_type": None}, "'peft_type' is missing"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern = .* is a feature of PEFT that is not supported here"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern = "),
        ({"layers_to_transform": [0]}, r"layers_to_transform = \[0\]"),
        ({"exclude_modules": ["v_proj"]}, "exclude_modules"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"a_key_of_the_future": 1}, "a_key_of_the_future = 1 is a feature"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights = 'pissa_niter_16' changes the base model"),
        ({"init_lora_weights": []}, r"init_lora_weights = \[\]"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save names 'embed_tokens', and only a classifier's head"),
        ({"modules_to_save": [3]}, "'modules_to_save' should be a list of names, holds 3"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', and this model has a causal_lm head"),
        ({"r": 8}, r"lora_A.weight' is \(4, 32\), and this model \(with rank 8\) needs \(8, 32\)"),
        ({"r": 10**9}, r"r = 1000000000 is larger than the model's width"),
        ({"r": -1}, "'r' should be positive"),
        ({"r": True}, "'r' should be int"),
        ({"r": "4"}, "'r' should be int"),
        ({"lora_alpha": None}, "'lora_alpha' is missing"),
        ({"lora_alpha": -1}, "alpha: .*greater than 0"),
        ({"lora_dropout": 2}, "dropout: .*less than 1"),
        ({"use_dora": True}, r"self_attn\.q_proj has no lora_magnitude_vector"),
        ({"use_dora": "yes"}, "'use_dora' should be bool"),
        ({"target_modules": ["q_proj"]}, r"target_modules does not name model\.layers\.0\.self_attn\.v_proj"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "holds no tensors for model.layers.0.self_attn.k_proj"),
        ({"target_modules": None}, "'target_modules' is missing"),
        ({"target_modules": [["q_proj"]]}, "'target_modules' should be a list of names"),
        ({"base_model_name_or_path": 7}, "'base_model_name_or_path' should be str"),
    ],
    ids=lambda value: "-".join(f"{k}={v!r}"[:30] for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_config_that_is_not_honoured_is_refused(folder: Path, values: dict[str, Any], message: str):
    change(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ".*(q|v)_proj"},
        {"target_modules": ["self_attn.q_proj", "v_proj", "c_attn"]},
        {"target_modules": [f"model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qv"]},
        {"task_type": None, "auto_mapping": {"base_model_class": "LlamaForCausalLM"}},
        {"peft_version": "0.99", "megatron_config": None, "loftq_config": {}, "use_qalora": False, "new": None},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_other_ways_to_say_the_same(folder: Path, values: dict[str, Any]):
    expected = load_adapter(folder, make())
    change(folder, **values)
    assert gap(load_adapter(folder, make()), expected) == 0


def test_a_pattern_is_not_run(folder: Path):
    """A regular expression of somebody else's may take for ever: this one would."""
    change(folder, target_modules="(.*)*" * 20 + "nothing")
    assert has_adapters(load_adapter(folder, make()))


def test_tensors_that_do_not_fit_are_named(folder: Path):
    whole = tensors_of(folder)
    cases: list[tuple[dict[str, torch.Tensor | None], str]] = [
        ({"lora_A": None}, r"layers\.0\.self_attn\.q_proj has no lora_A\.weight; .* in all layers or in none"),
        ({"lora_B": torch.zeros(31, 4)}, r"q_proj\.lora_B\.weight' is \(31, 4\), .* needs \(32, 4\); .* another base"),
        ({"lora_A": torch.zeros(4, 16, dtype=torch.float16)}, r"lora_A\.weight' is \(4, 16\)"),
        ({"lora_A": torch.zeros(4, 32, 1)}, r"is \(4, 32, 1\)"),
        ({"lora_A": torch.zeros(4, 32, dtype=torch.int8)}, "is I8, not of real numbers"),
        ({"lora_C": torch.zeros(4)}, r"lora_C\.weight' belongs to nothing that can be adapted"),
    ]
    for tensors, message in cases:
        save_file(whole, folder / WEIGHTS)
        rewrite(folder, **tensors)
        refused(folder, message)
    for name, message in (
        ("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", r"\(llama, 2 layers, causal_lm head\)"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "belongs to nothing"),
        ("base_model.model.lm_head.weight", "belongs to nothing"),
        ("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", "belongs to nothing"),  # stands twice
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "is not of PEFT's format"),
        (f"{LAYER}.lora_magnitude_vector", "has a magnitude, and use_dora is not set"),
    ):
        save_file(whole | {name: torch.zeros(32)}, folder / WEIGHTS)
        refused(folder, message)
    save_file({}, folder / WEIGHTS)
    refused(folder, "holds no adapter")


def test_half_precision_is_read(folder: Path):
    expected = load_adapter(folder, make())
    save_file({name: tensor.bfloat16() for name, tensor in tensors_of(folder).items()}, folder / WEIGHTS)
    found = load_adapter(folder, make())
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert 0 < gap(found, expected) < 0.1


def test_an_adapter_for_another_base_is_refused(folder: Path):
    refused(folder, r"needs \(4, 48\); the adapter is for another base", make(d_model=48))
    refused(folder, "holds no|has no", make(n_layers=3))
    refused(folder, "belongs to nothing", make(n_layers=1))
    refused(folder, r"in all layers|belongs to nothing", make(**GPT2))
    refused(folder, "task_type is 'CAUSAL_LM', and this model has a embedding head", make("embedding"))


def test_pefts_gpt2_adapters_are_refused_with_the_reason(folder: Path):
    change(folder, target_modules=["c_attn"], fan_in_fan_out=False)
    save_file({"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.zeros(4, 32)}, folder / WEIGHTS)
    refused(folder, r"in gpt2 files h\.0\.attn\.c_attn is several projections in one matrix", make(**GPT2))


def test_files_that_are_missing_damaged_or_pickle(folder: Path):
    whole = tensors_of(folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    refused(folder, "damaged or cut-off safetensors file")
    (folder / WEIGHTS).unlink()
    refused(folder, "holds no adapter_model.safetensors")
    torch.save(whole, folder / "adapter_model.bin")
    refused(folder, r"a pickle can run code .* convert it in Python: safetensors.torch.save_file")
    with pytest.raises(FormatError) as caught:
        load_adapter(folder, make())
    exec(str(caught.value).split("convert it in Python: ")[1], {"safetensors": safetensors, "torch": torch})
    assert has_adapters(load_adapter(folder, make()))
    for text, message in (
        ("[]", "should hold a JSON object"),
        ("{", "not valid JSON"),
        ('{"r":1,"r":2}', "stands twice"),
    ):
        (folder / CONFIG).write_text(text)
        refused(folder, message)
    (folder / CONFIG).unlink()
    refused(folder, "no such file")


def test_nothing_to_save_is_a_mistake(tmp_path: Path):
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapter(make(), tmp_path, base="b")
    assert not list(tmp_path.iterdir())
