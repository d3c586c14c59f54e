"""The pretrained models of the catalogue, where they have been pulled, against their reference libraries."""

import pytest
import torch

from langwright.infer.lm import LM, load
from langwright.model.checkpoint.catalogue import cached_path

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
TEXTS = [
    "A man is eating food.",
    "Someone has a meal.",
    "The stock market fell by three per cent on Tuesday.",
    "一个人在吃饭。",
    "",
    "naïve café 🌊 " * 20,
]


def pulled(name: str) -> LM:
    if cached_path(name) is None:
        pytest.skip(f"{name} is not in the cache; langwright models pull {name} fetches it")
    return load(name, device="cpu")


def test_minilms_sentence_embeddings_are_the_references():
    lm = pulled("all-minilm-l6-v2")
    transformers = pytest.importorskip("transformers")
    folder = cached_path("all-minilm-l6-v2")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    reference = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.inference_mode():
        hidden = reference(**batch).last_hidden_state
    real = batch["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)
    found = lm.embed(TEXTS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(lm.embed(TEXTS[1:2])[0], found[1], atol=1e-5, rtol=0)
    likeness = found @ found.T
    assert likeness[0, 1] > 0.5 > likeness[0, 2]
    kept = lm.embed(["word " * 600], truncate=True)
    inputs = tokenizer(["word " * 600], truncation=True, max_length=512, return_tensors="pt")
    with torch.inference_mode():
        mean = reference(**inputs).last_hidden_state[0].mean(0)
    torch.testing.assert_close(kept[0], mean / mean.norm(), atol=1e-5, rtol=0)


def test_smollm2_answers_a_question_and_stops():
    lm = pulled("smollm2-135m-instruct")
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    flow = lm.stream(chat, temperature=0, max_new_tokens=48)
    text = "".join(flow)
    assert "Paris" in text
    assert flow.result is not None
    assert flow.result.finish_reason == "stop"
    assert "<|im_" not in text
    assert flow.result == lm.generate(chat, temperature=0, max_new_tokens=48)


def test_smollm2_predicts_english_better_than_noise():
    lm = pulled("smollm2-135m-instruct")
    sense = lm.score("The sun rises in the east and sets in the west, and so the days go by.")
    noise = lm.score("west sets so rises the and in the go The in by sun east the, days and.")
    assert sense.bits_per_byte < 1.5 < noise.bits_per_byte
    right, wrong = lm.loglikelihood([("The capital of France is", " Paris"), ("The capital of France is", " Lyon")])
    assert right.logprob > wrong.logprob
