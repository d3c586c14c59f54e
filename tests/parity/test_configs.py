"""Published config.json files, through `transformers`' own configuration classes and back."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from langwright.model.families import FAMILIES, find_family
from langwright.model.families.base import HARMLESS

FIXTURE = Path(__file__).parents[1] / "unit" / "model" / "published_configs.json"
PUBLISHED = json.loads(FIXTURE.read_text())
EVERY = pytest.mark.parametrize("name", PUBLISHED)
# Leftovers that the reference keeps as attributes and never reads.
UNREAD = {"hidden_act", "sliding_window_pattern", "rope_interleaved", "use_mrope", "rope_theta"}
# Spelled out in what we write: 4 times the width, and Qwen2's width by heads.
SPELLED_OUT = {"n_inner", "head_dim"}


def their_config(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``values`` as the reference understands them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return AutoConfig.from_pretrained(folder).to_dict()


@EVERY
def test_saved_again_in_the_new_spelling(name, tmp_path):
    """``rope_parameters`` and ``dtype`` instead of ``rope_theta``, ``rope_scaling`` and ``torch_dtype``."""
    their_config(PUBLISHED[name], tmp_path)
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    family = find_family(PUBLISHED[name])
    assert saved != PUBLISHED[name]
    assert family.config_from_hf(saved) == family.config_from_hf(PUBLISHED[name])


@EVERY
def test_what_we_write_means_the_same_there(name, tmp_path):
    config = find_family(PUBLISHED[name]).config_from_hf(PUBLISHED[name])
    written = FAMILIES[config.family].config_to_hf(config, "causal_lm")
    original, ours = their_config(PUBLISHED[name], tmp_path / "a"), their_config(written, tmp_path / "b")
    for key in (original.keys() | ours.keys()) - HARMLESS - UNREAD - SPELLED_OUT:
        assert original.get(key) == ours.get(key), key


def test_smollm2_as_saved_by_transformers_5():
    path = Path(__file__).parents[3] / "shared" / "data" / "interop" / "smollm2_135m_instruct" / "config.json"
    if not path.exists():
        pytest.skip("needs ../shared/data")
    values = json.loads(path.read_text())
    older = PUBLISHED["SmolLM2-135M"] | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert find_family(values).config_from_hf(values) == find_family(older).config_from_hf(older)
