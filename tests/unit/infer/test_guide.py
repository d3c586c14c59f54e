"""Constrained answers: of the right form whatever the model wants, and in time."""

import gzip
import json
import random
import re
import tarfile
from contextlib import suppress
from pathlib import Path

import jsonschema
import llguidance
import pytest
import torch

from langwright.core.errors import UserError
from langwright.infer import constraints
from langwright.infer.constraints import Constraint, ConstraintError
from langwright.infer.engine import Engine
from langwright.infer.generate import generate
from langwright.infer.guide import Guide, close_greedily, search
from langwright.infer.sampling import SamplingConfig
from langwright.model.checkpoint.catalogue import cached_path
from langwright.tokenizer.load import load_tokenizer
from langwright.tokenizer.tokenizer import Tokenizer
from tests.unit.infer.small import byte_tokenizer, random_model

BENCH = Path(__file__).parents[4] / "shared" / "data" / "interop" / "jsonschemabench_sample.jsonl.gz"
SUITE = BENCH.parent / "json_schema_test_suite.tar.gz"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 2}, "age": {"type": "integer", "minimum": 10}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ANY = SamplingConfig(temperature=3, seed=1, max_new_tokens=40)
TOKENIZER = byte_tokenizer()


def write(guide: Guide, budget: int, draw: random.Random, ends: frozenset[int]) -> list[int]:
    """What a model would write that wants any allowed token as much as any other."""
    ids: list[int] = []
    while len(ids) < budget and not guide.complete:
        token = guide.settle(draw.choice(guide.allowed().nonzero()[:, 0].tolist()))
        if token in ends:
            break
        ids.append(token)
    assert guide.accepting
    return ids


MODEL = random_model(context=600)


def answers(constraint: Constraint, count: int = 4, **settings) -> list[str]:
    sampling = ANY.replace(constraint=constraint, **settings)
    found = []
    for seed in range(count):
        answer = generate(MODEL, [[65]], sampling.replace(seed=seed), tokenizer=TOKENIZER)[0]
        assert answer.finish_reason == "stop"
        found.append(answer.text)
    return found


def test_answers_are_of_the_schema_at_any_budget():
    for budget in (22, 23, 40):
        for text in answers(Constraint(json_schema=PERSON), max_new_tokens=budget):
            jsonschema.validate(json.loads(text), PERSON)
            assert len(text.encode()) <= budget


def test_regexes_grammars_and_choices_are_kept_to():
    for text in answers(Constraint(regex="(a|b)*c[0-9]{3}"), 4):
        assert set(text[:-4]) <= set("ab")
        assert text[-4] == "c"
    for text in answers(Constraint(lark='start: "(" start ")" | "x"\n'), 4):
        assert text.count("(") == text.count(")")
    assert set(answers(Constraint(choice=("yes", "no", '"潮"\n')), 8)) <= {"yes", "no", '"潮"\n'}


def test_a_budget_that_nothing_fits_is_refused_before_any_work():
    with pytest.raises(ConstraintError, match=r"takes 22 tokens and max_new_tokens leaves room for 21; raise it"):
        Guide(Constraint(json_schema=PERSON), TOKENIZER, 21)
    Guide(Constraint(json_schema=PERSON), TOKENIZER, 22)
    engine = Engine(MODEL, TOKENIZER, memory=1 << 20)
    with pytest.raises(ConstraintError, match="takes 22 tokens"):
        engine.open([65], ANY.replace(constraint=Constraint(json_schema=PERSON), max_new_tokens=21))
    assert engine.idle


def test_what_leads_too_far_is_not_begun():
    """`a` is whole; a `b` after it would need sixty more."""
    for text in answers(Constraint(regex="a(b[cd]{60})?"), max_new_tokens=40):
        assert text == "a"


def test_both_ways_of_looking_for_an_end_find_the_shortest():
    guide = Guide(Constraint(json_schema=PERSON), TOKENIZER, 64)
    for way in (search(guide._narrow, 6000), close_greedily(guide._narrow, 100)):
        assert way is not None
        assert len(way) == len('{"name":"??","age":10}')
        jsonschema.validate(json.loads(way), PERSON)
    grammar = llguidance.LLMatcher.grammar_from_regex("(a|[b-z]*@)[0-9]+")
    matcher = llguidance.LLMatcher(guide._vocabulary.narrow, grammar)
    assert search(matcher, 6000) == b"@0"


def test_other_requests_and_the_rest_of_a_batch_are_as_they_were():
    model, sampling = MODEL, SamplingConfig(temperature=0, max_new_tokens=30)
    plain = generate(model, [[66, 67]], sampling, tokenizer=TOKENIZER)[0]
    engine = Engine(model, TOKENIZER, memory=1 << 22)
    bound = engine.submit([65], sampling.replace(constraint=Constraint(json_schema=PERSON), logprobs=1))
    free = engine.submit([66, 67], sampling)
    engine.run()
    assert free.result == plain
    assert json.loads(bound.result.text)["age"] >= 10
    told = bound.result.logprobs
    assert told is not None
    with torch.inference_mode():
        logits = model(torch.tensor([[65, *bound.result.token_ids]]))[0].log_softmax(-1)
    own = [float(logits[place, entry.token_id]) for place, entry in enumerate(told)]
    assert [entry.logprob for entry in told] == pytest.approx(own, abs=1e-4)  # the model's own distribution


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"not": {}}}, r"Unimplemented keys: \[\"not\"\]"),
        ({"json_schema": {"type": "strin"}}, "Invalid type: strin"),
        ({"json_schema": {"$ref": "http://example.com/schema"}}, "not present"),
        ({"json_schema": {"pattern": "(?=a)b", "type": "string"}}, "look-around"),
        ({"regex": "a("}, "unclosed group"),
        ({"lark": "start: (("}, "Expected token"),
        ({"regex": "a" * 300_000}, "at most 262144"),
        ({"choice": []}, "choice"),
        ({"regex": "a", "choice": ["b"]}, "exactly one"),
        ({}, "exactly one"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(constraint, message):
    with pytest.raises(UserError, match=message):
        Constraint.parse(constraint, "constraint").grammar()


def test_a_bomb_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(constraints, "COMPILE_SECONDS", 0.01)
    with pytest.raises(ConstraintError, match="takes more than"):
        Constraint(regex="bomb[a-z]{3}").grammar()
    monkeypatch.undo()
    deep: dict = {}
    for _ in range(300):
        deep = {"items": deep}
    with pytest.raises(ConstraintError, match="recursion limit"):
        Constraint(json_schema=deep).grammar()


def test_settings_that_no_constrained_answer_can_have_are_refused():
    one = Constraint(choice=("a",))
    for settings in ({"min_new_tokens": 3}, {"ignore_eos": True}):
        with pytest.raises(UserError, match="a constrained answer ends where it must"):
            ANY.replace(constraint=one, **settings)
    with pytest.raises(UserError, match="a constraint needs a tokenizer"):
        Engine(random_model(), memory=1 << 20).open([65], ANY.replace(constraint=one))


def bench_schemas() -> list[dict]:
    if not BENCH.is_file():
        pytest.skip("the development data are not here")
    return [json.loads(line)["schema"] for line in gzip.open(BENCH)]


def check_bench(schemas: list[dict], budgets: tuple[int, ...], tokenizer: Tokenizer) -> dict[str, int]:
    """Every schema is refused, for a keyword or for a budget, or its answer is valid."""
    counts = {"valid": 0, "too long": 0, "refused": 0}
    for budget in budgets:
        draw = random.Random(budget)
        for schema in schemas:
            try:
                guide = Guide(Constraint(json_schema=schema), tokenizer, budget)
            except ConstraintError as error:
                counts["too long" if "the shortest answer found" in str(error) else "refused"] += 1
                continue
            ids = write(guide, budget, draw, tokenizer.eos_ids)
            assert len(ids) <= budget
            jsonschema.validators.validator_for(schema)(schema).validate(json.loads(tokenizer.decode(ids)))
            counts["valid"] += 1
    return counts


def test_a_sample_of_json_schema_bench_is_valid_at_every_budget():
    counts = check_bench(bench_schemas()[::60], (16, 120), TOKENIZER)
    assert counts["valid"] >= 4
    assert counts["too long"] > 0


@pytest.mark.slow
def test_all_of_json_schema_bench_is_valid_at_every_budget():
    path = cached_path("smollm2-135m-instruct")
    if path is None:
        pytest.skip("smollm2-135m-instruct is not in the cache; langwright models pull fetches it")
    counts = check_bench(bench_schemas(), (16, 32, 64, 128, 256, 512), load_tokenizer(path))
    assert counts["valid"] > 800


@pytest.mark.slow
def test_answers_of_every_schema_of_the_json_schema_test_suite_are_valid_or_refused_by_name():
    """Draft 2020-12, required part, a schema of each group at a budget of 64."""
    if not SUITE.is_file():
        pytest.skip("the development data are not here")
    counts = {"valid": 0, "refused": 0}
    with tarfile.open(SUITE) as archive:
        names = [name for name in archive.getnames() if "tests/draft2020-12/" in name and "/optional/" not in name]
        for name in sorted(name for name in names if name.endswith(".json")):
            file = archive.extractfile(name)
            assert file is not None
            for schema in [group["schema"] for group in json.load(file)]:
                try:
                    guide = Guide(Constraint(json_schema=schema), TOKENIZER, 64)
                except ConstraintError:
                    counts["refused"] += 1
                    continue
                value = json.loads(TOKENIZER.decode(write(guide, 64, random.Random(0), TOKENIZER.eos_ids)))
                with suppress(re.error):  # of Python, whose regular expressions are not those of JavaScript
                    jsonschema.Draft202012Validator(schema).validate(value)
                counts["valid"] += 1
    assert counts["valid"] > 150
