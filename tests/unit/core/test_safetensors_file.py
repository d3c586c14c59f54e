"""Safetensors: what is written comes back, and headers, indexes and folders that lie are refused in one line."""

import json
import os
import random
import resource
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from langwright.core import safetensors_file as module
from langwright.core.errors import FormatError, UserError
from langwright.core.safetensors_file import (
    DTYPES,
    INDEX,
    WEIGHTS,
    SafetensorsFile,
    open_weights,
    write_tensors,
    write_weights,
)

GOOD = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def container(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / WEIGHTS
        path.write_bytes(content)
        return path

    return write


def tensors(count: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(4, 3 + i, generator=generator) for i in range(count)}


def equal(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    with open_weights(folder) as weights:
        assert set(weights.names) == set(expected)
        for name, tensor in expected.items():
            assert weights.info(name).shape == tensor.shape
            found = weights.tensor(name)
            assert found.dtype == tensor.dtype
            assert torch.equal(found.view(torch.uint8), tensor.contiguous().view(torch.uint8))


# One file


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_every_dtype_comes_back(tmp_path: Path, name: str, dtype: str) -> None:
    value = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, dtype))
    save_file({"a": value}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with SafetensorsFile.open(tmp_path / WEIGHTS) as file:
        assert file.names == ("a",)
        assert file.metadata == {"format": "pt"}
        assert (file.info("a").dtype, file.info("a").shape) == (name, (2, 3))
        assert torch.equal(file.tensor("a").view(torch.uint8), value.view(torch.uint8))


def test_tensors_are_lazy_private_views(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(64), "scalar": torch.tensor(2.0), "none": torch.zeros(0, 3)}, tmp_path / WEIGHTS)
    with SafetensorsFile.open(tmp_path / WEIGHTS) as file:
        view = file.tensor("a")
        assert file.tensor("a").data_ptr() == view.data_ptr()
        assert file.tensor("scalar").shape == ()
        assert file.tensor("none").shape == (0, 3)
    view[0] = 1.0
    assert load_file(tmp_path / WEIGHTS)["a"][0] == 0.0


LIES = {
    "empty": (b"", "shorter than its header"),
    "seven bytes": (bytes(7), "shorter than its header"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "header of 0": (struct.pack("<Q", 0), "JSON"),
    "header of 2^64-1": (container({"a": GOOD}, length=2**64 - 1), "announces a header of 18446744073709551615"),
    "header of 2^63": (container({"a": GOOD}, length=2**63), "announces a header"),
    "header past the end": (container({"a": GOOD}, length=99_000_000), "announces a header"),
    "not JSON": (container(b"{'a': 1}"), "not valid JSON"),
    "not UTF-8": (container(b'{"\xff": 1}'), "not valid JSON"),
    "nested": (container(b"[" * 100_000), "nested too deeply|JSON"),
    "a list": (container([GOOD]), "header is a list"),
    "tensor twice": (container(b'{"a":%s,"a":%s}' % ((json.dumps(GOOD).encode(),) * 2)), "'a' stands twice"),
    "metadata twice": (container(b'{"__metadata__":{"x":"1","x":"2"}}', b""), "'x' stands twice"),
    "metadata not text": (container({"__metadata__": {"x": 1}, "a": GOOD}), "expected a string"),
    "no shape": (container({"a": {"dtype": "F32", "data_offsets": [0, 16]}}), "missing field"),
    "unknown dtype": (container({"a": GOOD | {"dtype": "F31"}}), "F31"),
    "dtype not read": (container({"a": GOOD | {"dtype": "F4", "shape": [32]}}), "has the dtype F4; those read are"),
    "true as a size": (container({"a": GOOD | {"shape": [True, 4]}}), "boolean"),
    "1.0 as a size": (container({"a": GOOD | {"shape": [1.0, 4]}}), "floating"),
    "negative size": (container({"a": GOOD | {"shape": [-2, -2]}}), "integer"),
    "size of 2^64": (container({"a": GOOD | {"shape": [2**64]}}), "invalid type"),
    "size overflows": (container({"a": GOOD | {"shape": [2**33, 2**33]}}), "overflow"),
    "size wraps to 16": (container({"a": GOOD | {"shape": [2**62 + 1, 4]}}), "overflow"),
    "size past 63 bits": (container({"a": GOOD | {"shape": [0, 2**63], "data_offsets": [0, 0]}}, b""), "has the shape"),
    "shape and bytes differ": (container({"a": GOOD | {"shape": [3]}}), "offset|shape|info"),
    "offsets backwards": (container({"a": GOOD | {"data_offsets": [16, 0]}}), "offset"),
    "offset overflow": (container({"a": GOOD | {"data_offsets": [0, 2**64 - 1]}}), "offset"),
    "offset past the end": (container({"a": GOOD | {"data_offsets": [16, 32]}}), "offset"),
    "hole": (container({"a": GOOD, "b": GOOD | {"data_offsets": [20, 36]}}, bytes(36)), "offset"),
    "overlap": (container({"a": GOOD, "b": GOOD | {"data_offsets": [8, 24]}}, bytes(24)), "offset"),
    "same place": (container({"a": GOOD, "b": GOOD}), "offset"),
    "bytes left over": (container({"a": GOOD}, bytes(17)), "not fully covered"),
    "bytes missing": (container({"a": GOOD}, bytes(15)), "not fully covered"),
}


@pytest.mark.parametrize(("content", "what"), LIES.values(), ids=LIES.keys())
def test_lies_are_refused_in_one_line(write: Callable[[bytes], Path], content: bytes, what: str) -> None:
    path = write(content)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=what) as caught:
            SafetensorsFile.open(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert peak < 2 << 20


def test_missing_file_folder_and_tensor(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        SafetensorsFile.open(tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="not a file"):
        SafetensorsFile.open(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        open_weights(tmp_path / "absent")
    with pytest.raises(UserError, match=f"holds no {WEIGHTS}"):
        open_weights(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / WEIGHTS)
    with open_weights(tmp_path) as weights, pytest.raises(FormatError, match="holds no tensor 'b'"):
        weights.tensor("b")
    with SafetensorsFile.open(tmp_path / WEIGHTS) as file, pytest.raises(FormatError, match="holds no tensor 'b'"):
        file.tensor("b")


def survives(path: Path) -> bool:
    """Open ``path`` and touch everything; False when a one-line `FormatError` refused it. Any other error gets out."""
    try:
        with SafetensorsFile.open(path) as file:
            for name in file.names:
                tensor, info = file.tensor(name), file.info(name)
                assert tensor.shape == info.shape
                assert str(tensor.dtype) == f"torch.{DTYPES[info.dtype]}"
                tensor.view(-1).view(torch.uint8).sum()
        return True
    except FormatError as error:
        if "\n" in str(error):
            raise
        return False


@pytest.fixture
def sample(tmp_path: Path) -> bytes:
    path = tmp_path / "sample.safetensors"
    mixed = tensors(3) | {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "ids": torch.arange(4),
        "scalar": torch.tensor(1.0),
    }
    save_file(mixed, path, metadata={"format": "pt"})
    assert survives(path)
    return path.read_bytes()


def test_every_truncation_is_refused(sample: bytes, write: Callable[[bytes], Path]) -> None:
    header = 8 + struct.unpack_from("<Q", sample)[0]
    for length in [*range(header + 8), *range(header + 8, len(sample), 5), len(sample) - 1]:
        assert not survives(write(sample[:length])), length


def test_flipped_bits_never_do_worse_than_a_refusal(sample: bytes, write: Callable[[bytes], Path]) -> None:
    rng = random.Random(0)
    header = 8 + struct.unpack_from("<Q", sample)[0]
    refused = 0
    for _ in range(3000):
        damaged = bytearray(sample)
        for _ in range(rng.choice((1, 1, 1, 4))):
            bit = rng.randrange(8 * (header if rng.random() < 0.9 else len(sample)))
            damaged[bit // 8] ^= 1 << bit % 8
        refused += not survives(write(bytes(damaged)))
    assert refused > 1500


# A folder


def shard(folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    content = tensors(6)
    write_weights(folder, content.items(), shard_bytes=150)
    return content


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_single_file_comes_back(tmp_path: Path) -> None:
    assert write_weights(tmp_path, tensors().items()) == {}
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    equal(tmp_path, tensors())
    assert SafetensorsFile.open(tmp_path / WEIGHTS).metadata == {"format": "pt"}


def test_shards_come_back(tmp_path: Path) -> None:
    expected = shard(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    count = len(names) - 1
    assert count > 2
    assert names == [*(f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)), INDEX]
    equal(tmp_path, expected)
    total = json.loads((tmp_path / INDEX).read_text())["metadata"]["total_size"]
    assert total == sum(tensor.nbytes for tensor in expected.values())
    assert all(path.stat().st_size < 150 + 500 for path in tmp_path.glob("model-*"))


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    content = {"small": torch.zeros(2), "large": torch.ones(1000), "last": torch.zeros(2)}
    write_weights(tmp_path, content.items(), shard_bytes=100)
    assert len(list(tmp_path.glob("model-*"))) == 3
    equal(tmp_path, content)


def test_nothing_to_write_is_an_empty_file(tmp_path: Path) -> None:
    write_weights(tmp_path, [])
    equal(tmp_path, {})


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    table = torch.nn.Parameter(torch.randn(4, 4))
    other = torch.randn(2)
    named = [("embed", table), ("other", other), ("head", table), ("alias", table.detach())]
    assert write_weights(tmp_path, named) == {"head": "embed", "alias": "embed"}
    equal(tmp_path, {"embed": table.detach(), "other": other})


@pytest.mark.parametrize("shard_bytes", [100, 10_000])
def test_a_generator_that_reuses_memory_loses_nothing(tmp_path: Path, shard_bytes: int) -> None:
    def generate() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(50):
            yield f"t{i}", torch.full((5, 5), float(i))  # freed tensors leave their address to later ones

    assert write_weights(tmp_path, generate(), shard_bytes=shard_bytes) == {}
    equal(tmp_path, {f"t{i}": torch.full((5, 5), float(i)) for i in range(50)})


def test_views_and_strides_are_stored_as_they_read(tmp_path: Path) -> None:
    fused = torch.randn(6, 4)
    content = {"q": fused[:2], "k": fused[2:4], "both": fused[1:5], "turned": fused.T, "wide": torch.ones(1).expand(7)}
    write_weights(tmp_path, content.items())
    equal(tmp_path, content)


def test_weights_are_never_written_over_others(tmp_path: Path) -> None:
    shard(tmp_path)
    with pytest.raises(UserError, match="already holds weights"):
        write_weights(tmp_path, tensors().items())


def test_a_failing_disk_is_one_line(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large"):
            write_weights(tmp_path, {"a": torch.zeros(10_000)}.items())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / WEIGHTS).exists()


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise module.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UserError, match="disk is full"):
        write_weights(tmp_path, tensors().items())


def test_one_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path, first = tmp_path / "adapter_model.safetensors", tensors(3) | {"shared": torch.ones(2, 2)}
    first["same"] = first["shared"]
    write_tensors(path, first)
    with SafetensorsFile.open(path) as file:
        assert file.metadata == {"format": "pt"}
        assert {name: file.tensor(name).tolist() for name in file.names} == {k: v.tolist() for k, v in first.items()}
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(UserError, match="cannot be written: File too large"):
                write_tensors(path, {"a": torch.zeros(10_000)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        write_tensors(path, {"a": torch.zeros(3)})
        assert file.tensor("shared").tolist() == [[1.0, 1.0], [1.0, 1.0]]  # the old file, which is still open
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_links_into_a_cache_are_followed(tmp_path: Path) -> None:
    """The Hub's cache is made of links to ../../blobs."""
    expected = shard(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "blobs").iterdir():
        os.symlink(f"../../blobs/{path.name}", snapshot / path.name)
    equal(snapshot, expected)


BAD_SHARDS = [
    "../outside.safetensors",
    "/etc/passwd",
    "/tmp/x.safetensors",
    "sub/x.safetensors",
    "sub\\x.safetensors",
    "..",
    "",
    "x.bin",
    "x\0.safetensors",
    "x.safetensors\n",
    ["a"],
    None,
    7,
    {},
]


@pytest.mark.parametrize("name", BAD_SHARDS, ids=repr)
def test_a_shard_is_a_plain_name(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "model"
    shard(folder)
    save_file({"layer.0.weight": torch.zeros(4, 3)}, tmp_path / "outside.safetensors")
    edit_index(folder, lambda index: index["weight_map"].update({"layer.0.weight": name}))
    with pytest.raises(FormatError, match="plain name"):
        open_weights(folder)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    cases: dict[str, Callable[[dict[str, Any]], object]] = {
        "is missing": lambda index: index["weight_map"].update(new="model-00009-of-00009.safetensors"),
        "'new' is not in|holds 'new'": lambda index: index["weight_map"].update(
            new=index["weight_map"]["layer.0.weight"]
        ),
        "not true": lambda index: index["weight_map"].update({"layer.0.weight": index["weight_map"]["layer.5.weight"]}),
        "'layer.0.weight' is not in": lambda index: index["weight_map"].pop("layer.0.weight"),
        "nothing else": lambda index: index.update(weights={}),
        "should hold weight_map": lambda index: index.pop("weight_map"),
        "should hold": lambda index: index.update(weight_map={}),
        "hold weight_map": lambda index: index.update(weight_map=[]),
    }
    for number, (what, change) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        shard(folder)
        edit_index(folder, change)
        with pytest.raises(FormatError, match=what.replace("is missing", "and missing")):
            open_weights(folder)


def test_a_name_twice_in_the_index_or_in_two_shards(tmp_path: Path) -> None:
    shard(tmp_path / "a")
    index = (tmp_path / "a" / INDEX).read_text()
    (tmp_path / "a" / INDEX).write_text(index.replace('"layer.1.weight"', '"layer.0.weight"'))
    with pytest.raises(FormatError, match="stands twice"):
        open_weights(tmp_path / "a")
    content = shard(tmp_path / "b")
    last = max((tmp_path / "b").glob("model-*"))
    save_file(load_file(last) | {"layer.0.weight": content["layer.0.weight"]}, last)
    with pytest.raises(FormatError, match=r"'layer\.0\.weight' is not in"):
        open_weights(tmp_path / "b")


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path)
    last = max(tmp_path.glob("model-*"))
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(FormatError, match=last.name):
        open_weights(tmp_path)


def test_a_file_beside_an_index_is_ambiguous(tmp_path: Path) -> None:
    shard(tmp_path)
    save_file(tensors(), tmp_path / WEIGHTS)
    with pytest.raises(FormatError, match="holds both"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "weights.pth"])
def test_pickle_is_refused_with_the_conversion(tmp_path: Path, name: str) -> None:
    """CVE-2025-32434: even "weights only" unpickling ran code, so there is no fallback to it."""
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(FormatError, match=rf"{name}.*refused.*safetensors\.torch\.save_file\(torch\.load\("):
        open_weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"AutoModelForCausalLM\.from_pretrained\(.*\.save_pretrained\("):
        open_weights(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.slow
def test_the_advised_conversion_works(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=32
    )
    model = transformers.LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FormatError) as caught:
        open_weights(tmp_path)
    line = str(caught.value).split("convert it in Python: ")[1].replace("NEW_FOLDER", str(tmp_path / "new"))
    exec(line, {"transformers": transformers})
    with open_weights(tmp_path / "new") as weights:
        assert torch.equal(weights.tensor("model.norm.weight"), model.model.norm.weight)
