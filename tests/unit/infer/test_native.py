"""The native core against its twins: kernels bit for bit, whole steps against torch, and the laws of its cache."""

import ctypes
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from langwright.cli import generate as verb
from langwright.core.errors import UserError
from langwright.infer.forward import NativeForward, TorchForward, open_forward
from langwright.infer.lm import load
from langwright.infer.native import decoder, library
from langwright.infer.native.decoder import Decoder, serves
from langwright.infer.native.library import multiply, set_kernels
from langwright.infer.packing import Packed, _lay, pack_floats, unpack
from langwright.infer.quantised import PackedEmbedding, load_quantised, round_activations
from langwright.model.checkpoint.save import save_model
from langwright.model.config import LayerSpec, ModelConfig, Rope, YarnScaling
from langwright.model.model import Model, build_model
from tests.unit.infer.small import byte_tokenizer

built = pytest.mark.skipif(library.library() is None, reason="the native core was not built")
KERNELS = ("portable", "avx2", "avx512")
FORMATS = ("q8_channel", "q8_group", "q4_plain", "q4_min")


@pytest.fixture(autouse=True)
def best_kernels() -> Iterator[None]:
    yield
    if library.library() is not None:
        set_kernels(None)


@contextmanager
def without_core() -> Iterator[None]:
    """As on a machine that had no compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "library", lambda: None)
        patch.setattr(decoder, "library", lambda: None)
        yield


def matrix(format: str, rows: int, columns: int, seed: int = 0) -> Packed:
    """Random codes and scales, the extreme ones too."""
    made = torch.Generator().manual_seed(seed)
    nibbles = format.startswith("q4")
    low, high = (0, 16) if nibbles else (-127, 128)
    codes = torch.randint(low, high, (rows, columns), generator=made)
    codes[0, ::2], codes[0, 1::2] = high - 1, low
    scale, least = torch.randn(2, rows, columns // 32, generator=made).half()
    scale[-1] = 3e-7  # below the smallest normal half
    halves = {"q8_channel": (), "q4_min": (scale, least)}.get(format, (scale,))
    channel = torch.rand(rows, generator=made) if format == "q8_channel" else None
    data = _lay(codes.to(torch.uint8 if nibbles else torch.int8), *halves, channel=channel, nibbles=nibbles)
    return Packed(format, rows, columns, data)  # pyright: ignore[reportArgumentType]


def small_config(**changes) -> ModelConfig:
    sizes = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 16, "d_mlp": 96, "vocab_size": 259}
    return ModelConfig(**{"family": "llama", "max_positions": 128, **sizes, **changes})


def quantised(folder: Path, config: ModelConfig, kind: str, seed: int = 0) -> Model:
    model = build_model(config, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # norms and biases that do something
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    save_model(model, folder)
    return load_quantised(folder, kind)  # pyright: ignore[reportArgumentType]


def ids(count: int, seed: int = 1) -> list[int]:
    return torch.randint(0, 259, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def whole(model: Model, tokens: list[int]) -> torch.Tensor:
    """Logits after every token, of one native call."""
    T = len(tokens)
    return Decoder(model, 1, T).forward(tokens, [0] * T, range(T), range(T))


@built
@given(
    format=st.sampled_from(FORMATS),
    rows=st.integers(1, 9),
    outputs=st.integers(1, 70),
    groups=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_all_kernels_give_the_bits_of_the_portable_ones_and_the_numbers_of_torch(format, rows, outputs, groups, seed):
    packed = matrix(format, outputs, groups * 32, seed)
    made = torch.Generator().manual_seed(seed)
    x, bias = torch.randn(rows, groups * 32, generator=made), torch.randn(outputs, generator=made)
    x[0, :32] = 0
    x[-1] *= 1e4
    set_kernels("portable")
    expected = multiply(packed, bias, x)
    assert expected is not None
    twin = F.linear(round_activations(x).double(), unpack(packed).double(), bias.double())
    size = F.linear(x.abs(), unpack(packed).abs()) + bias.abs()
    assert bool(((expected - twin).abs() <= 2e-6 * size + 1e-6).all())
    for name in KERNELS[1:]:
        try:
            set_kernels(name)
        except ValueError:
            continue
        assert torch.equal(multiply(packed, bias, x), expected), name


@built
@pytest.mark.parametrize("name", KERNELS)
def test_whole_numbers_are_multiplied_exactly(name):
    try:
        set_kernels(name)
    except ValueError:
        pytest.skip(f"this processor has no {name}")
    made = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (5, 96), generator=made)
    x[:, ::32] = 127  # the largest of each group: its scale is 1
    x[0, 1:32] = -127
    codes = torch.randint(-127, 128, (40, 96), generator=made)
    codes[0], codes[1] = 127, -127
    packed = Packed("q8_group", 40, 96, _lay(codes.to(torch.int8), torch.ones(40, 3).half()))
    assert torch.equal(multiply(packed, None, x.float()), (x @ codes.T).float())
    nibbles = codes.abs() % 16
    nibbles[0] = 15
    packed = Packed("q4_min", 40, 96, _lay(nibbles.to(torch.uint8), *torch.ones(2, 40, 3).half(), nibbles=True))
    assert torch.equal(multiply(packed, None, x.float()), (x @ (nibbles + 1).T).float())


@given(
    n_kv_heads=st.sampled_from((1, 2, 4)),
    d_head=st.sampled_from((8, 16, 24, 40)),
    d_mlp=st.sampled_from((32, 96, 160)),
    n_layers=st.integers(1, 3),
    extras=st.booleans(),
    kind=st.sampled_from(("int8", "int4")),
    seed=st.integers(0, 9),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@built
def test_a_whole_step_is_torchs_on_the_same_weights(
    n_kv_heads, d_head, d_mlp, n_layers, extras, kind, seed, tmp_path_factory
):
    sizes = {"n_kv_heads": n_kv_heads, "d_head": d_head * 2, "d_mlp": d_mlp, "n_layers": n_layers}
    more = {"family": "qwen3", "qk_norm": True} if extras else {"tie_embeddings": False}
    model = quantised(tmp_path_factory.mktemp("step"), small_config(**sizes, **more), kind, seed)
    assert serves(model)
    tokens = ids(40, seed)
    found = whole(model, tokens)
    with torch.inference_mode(), without_core():
        expected = model(torch.tensor([tokens]))[0]
    error, size = (found - expected).abs(), float(expected.std())
    # A number that lies between two of 8 bits may be rounded either way. Few do; but all that comes after one that did
    # at the beginning of a text reads it.
    assert float(error.median()) < 0.01 * size
    assert float(error.max()) < 0.1 * size


@built
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_how_tokens_are_grouped_into_calls_changes_no_bit(tmp_path, kind):
    model = quantised(tmp_path, small_config(), kind)
    tokens = ids(75)
    expected = whole(model, tokens)
    one = Decoder(model, 1, 75)
    for at, token in enumerate(tokens[:40]):
        assert torch.equal(one.forward([token], [0], [at], [0])[0], expected[at])
    assert torch.equal(one.forward(tokens[40:], [0] * 35, range(40, 75), [34])[0], expected[-1])
    together = Decoder(model, 3, 75)
    other = ids(50, seed=2)
    slots = [2] * 75 + [0] * 50
    found = together.forward([*tokens, *other], slots, [*range(75), *range(50)], [74, 124])
    assert torch.equal(found, torch.stack((expected[-1], whole(model, other)[-1])))
    assert library.library().lw_threads(3) == 3  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(whole(model, tokens), expected)
    library.library().lw_threads(1)  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(whole(model, tokens), expected)
    for name in KERNELS[:2]:
        try:
            set_kernels(name)
        except ValueError:
            continue
        assert torch.equal(whole(model, tokens), expected), name


@pytest.mark.parametrize("native", [pytest.param(True, marks=built), False])
def test_forwards_agree_on_rows_steps_and_going_back(tmp_path, native):
    model = quantised(tmp_path, small_config(), "int8").eval()
    prompts = [ids(7), ids(3, 2), ids(5, 3)]
    with torch.inference_mode():
        forward = (NativeForward if native else TorchForward)(model, 3, 20)
        first = forward.prefill(prompts)
        step = forward.step(torch.tensor([5, 6, 7]), [True, False, True])
        alone = TorchForward(model, 1, 20)
        torch.testing.assert_close(alone.prefill(prompts[:1]), first[:1], atol=0.02, rtol=0)
        torch.testing.assert_close(alone.step(torch.tensor([5]), [True]), step[:1], atol=0.02, rtol=0)
        back = (NativeForward if native else TorchForward)(model, 1, 20)
        start = back.prefill([ids(7)])
        there = [back.step(torch.tensor([token]), [True]) for token in (5, 9)]
        back.trim(7)
        again = [back.step(torch.tensor([token]), [True]) for token in (5, 9)]
    assert not torch.equal(start, there[0])
    for one, other in zip(there, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@built
def test_scaled_positions_are_those_of_the_model(tmp_path):
    scaling = YarnScaling(factor=4, original_positions=32)
    config = small_config(layer_specs={"full": LayerSpec(rope=Rope(theta=5e3, scaling=scaling))})
    model = quantised(tmp_path, config, "int8")
    tokens = ids(60)
    found = whole(model, tokens)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens]))[0]
    assert float((found - expected).abs().median()) < 2e-6 * float(expected.std())


@built
def test_decoders_of_several_threads_do_not_disturb_each_other(tmp_path):
    models = [quantised(tmp_path / kind, small_config(), kind) for kind in ("int8", "int4")]
    tokens = ids(30)
    expected = [whole(model, tokens) for model in models]
    wrong: list[int] = []

    def work(number: int) -> None:
        same = (torch.equal(whole(models[number % 2], tokens), expected[number % 2]) for _ in range(20))
        if not all(same):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@built
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own():
    core, packed, x = library.library(), matrix("q8_group", 64, 64), torch.ones(1, 64)
    assert core is not None
    core.lw_threads(2)
    expected = multiply(packed, None, x)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(multiply(packed, None, x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@built
def test_a_first_call_chooses_its_kernels_by_itself(tmp_path):
    """A core just opened, of which nothing was asked before: it used to wait for itself."""
    core, packed, x = library.library(), matrix("q8_group", 40, 64), torch.ones(1, 64)
    assert core is not None
    fresh = ctypes.CDLL(shutil.copy(core._name, tmp_path / "fresh"))
    found = torch.empty(1, 40)
    place = ctypes.c_void_p
    fresh.lw_matmul(ctypes.byref(library.Matrix.of(packed, None)), 1, place(x.data_ptr()), place(found.data_ptr()))
    assert torch.equal(found, multiply(packed, None, x))


@built
def test_calls_out_of_bounds_are_refused(tmp_path):
    held = Decoder(quantised(tmp_path, small_config(), "int8"), 2, 8)
    good = ([1, 2], [0, 1], [0, 7], [0, 1])
    held.forward(*good)
    for place, value in ((0, [1, 259]), (0, [-1, 2]), (1, [0, 2]), (1, [-1, 0]), (2, [0, 8]), (2, [-1, 0])):
        with pytest.raises(ValueError, match="out of bounds"):
            held.forward(*[value if number == place else part for number, part in enumerate(good)])
    for wanted in ([1, 0], [0, 0], [2], [-1]):
        with pytest.raises(ValueError, match="ascend"):
            held.forward(*good[:3], wanted)


@built
@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "gelu"},
        {"layer_specs": {"full": LayerSpec(rope=Rope(), window=8)}},
        {"attn_softcap": 10.0},
        {"norm_slots": ("attn_in", "mlp_in", "attn_out")},
    ],
    ids=str,
)
def test_models_of_another_form_are_left_to_torch(changes):
    config = small_config(**changes)
    model = build_model(config)
    model.set_submodule("backbone.embed.tokens", PackedEmbedding(pack_floats(torch.ones(259, 64), 8)))
    assert not serves(model)
    assert isinstance(open_forward(model, 1, 4), TorchForward)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_answers_scores_and_streams_with_and_without_the_core(tmp_path, kind, capsys):
    model = build_model(small_config(eos_ids=(257,), bos_id=256), seed=3)
    with torch.no_grad():
        model.get_parameter("backbone.embed.tokens.weight").mul_(20)  # clear decisions
    save_model(model, tmp_path)
    byte_tokenizer().save(tmp_path)
    lm = load(tmp_path, quantise=kind)
    wish = {"max_new_tokens": 12, "ignore_eos": True, "logprobs": 2}
    prompts = ["Hello", "a", "some more text"]
    runs = []
    for guard in (None, without_core):
        with guard() if guard else pytest.MonkeyPatch.context():
            greedy = lm.generate(prompts, temperature=0, **wish)
            with lm.stream("Hello", temperature=0, **wish) as flow:
                streamed = "".join(flow)
            drawn = lm.generate("Hello", temperature=1.0, seed=5, **wish)
            runs.append((greedy, streamed, drawn, lm.score("Some text to be scored").nll, lm.logits([1, 2, 3])))
    (greedy, streamed, drawn, nll, logits), twin = runs
    assert streamed == greedy[0].text
    assert [each.token_ids for each in greedy] == [each.token_ids for each in twin[0]]
    assert drawn.token_ids == twin[2].token_ids
    assert nll == pytest.approx(twin[3], rel=1e-3)
    torch.testing.assert_close(logits, twin[4], atol=0.02 * float(logits.std()), rtol=0)
    for row in greedy:  # log-probabilities are those of a full forward
        full = torch.log_softmax(lm.logits([*row.prompt_ids, *row.token_ids]), -1)
        for at, entry in enumerate(row.logprobs or ()):
            assert entry.logprob == pytest.approx(float(full[len(row.prompt_ids) - 1 + at, entry.token_id]), abs=0.02)
    words = [str(tmp_path), "--prompt", "Hello", "--quantise", kind, "--temperature", "0", "--max-new-tokens", "12"]
    assert verb.run([*words, "--ignore-eos", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["token_ids"] == greedy[0].token_ids
    with pytest.raises(ValueError, match="quantised"):
        save_model(lm.model, tmp_path / "saved")
    plain = load(tmp_path)
    assert lm.score("Some text to be scored").nll == pytest.approx(plain.score("Some text to be scored").nll, rel=0.1)


def test_a_row_alone_and_in_company_gives_the_same_answer(tmp_path):
    model = build_model(small_config(), seed=4)
    save_model(model, tmp_path)
    byte_tokenizer().save(tmp_path)
    lm = load(tmp_path, quantise="int8")
    prompts = [ids(3), ids(9, 2), ids(5, 3)]
    wish = {"temperature": 0, "max_new_tokens": 10}
    assert lm.generate(prompts, **wish) == [lm.generate(prompt, **wish) for prompt in prompts]


def test_gradients_are_refused_rather_than_wrong(tmp_path):
    model = quantised(tmp_path, small_config(), "int8")
    with pytest.raises(UserError, match="no gradients"):
        model(torch.tensor([[1, 2]]))


def test_what_cannot_be_quantised_is_refused_by_name(tmp_path):
    save_model(build_model(small_config(d_mlp=40)), tmp_path)
    with pytest.raises(UserError, match=r"down_proj: .* multiple of 32"):
        load_quantised(tmp_path, "int8")
    for wrong in (
        {"quantise": "int3"},
        {"quantise": "int8", "dtype": "bfloat16"},
        {"quantise": "int8", "device": "meta"},
    ):
        with pytest.raises(UserError, match="quantise"):
            load(tmp_path, **wrong)
    damaged = build_model(small_config())
    with torch.no_grad():
        damaged.get_parameter("backbone.layers.1.mlp.up_proj.weight")[3, 4] = torch.nan
    save_model(damaged, tmp_path / "damaged")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj: .*not finite"):
        load_quantised(tmp_path / "damaged", "int4")
