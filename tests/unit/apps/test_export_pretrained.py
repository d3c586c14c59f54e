"""SmolLM2 of the catalogue, exported and verified, and its own GGUF file's metadata beside what is written here."""

from pathlib import Path

import pytest

from langwright.apps.export import export
from langwright.apps.verify import verify
from langwright.core.gguf_file import GgufFile
from langwright.infer.lm import load
from langwright.model.checkpoint.catalogue import cached_path

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
NAME = "smollm2-135m-instruct"


@pytest.fixture
def published() -> Path:
    path = cached_path(NAME)
    if path is None:
        pytest.skip(f"{NAME} is not in the cache; langwright models pull {NAME} fetches it")
    return path


def test_a_q8_0_file_has_every_key_that_the_published_one_has(published: Path, tmp_path: Path):
    done = export(NAME, tmp_path / "m.gguf", format="gguf", dtype="q8_0")
    assert 0 < done.difference < done.allowed
    with GgufFile.open(published) as theirs, GgufFile.open(tmp_path / "m.gguf") as ours:
        assert set(theirs.metadata) <= set(ours.metadata)
        differing = {key for key, value in theirs.metadata.items() if ours.metadata[key] != value}
        assert differing == {"general.file_type"}
        assert {name: t.shape for name, t in ours.tensors.items()} == {n: t.shape for n, t in theirs.tensors.items()}
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in load(tmp_path / "m.gguf").generate(chat, temperature=0, max_new_tokens=24).text
    assert verify(str(tmp_path / "m.gguf")).agrees


def test_a_hugging_face_folder_in_float16(tmp_path: Path, published: Path):
    export(NAME, tmp_path / "hf", dtype="float16")
    report = verify(str(tmp_path / "hf"))
    assert report.agrees, report.rows
    assert [row.verdict for row in report.rows] == ["ok"] * 5
