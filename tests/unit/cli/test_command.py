"""Arguments: typed, read from nowhere else, and refused in one line."""

import pytest

from langwright.cli.chat import Chat
from langwright.cli.generate import Generate
from langwright.cli.main import VERBS, main
from langwright.cli.prepare import Prepare
from langwright.cli.train import Train
from langwright.core.errors import UserError


def test_texts_of_a_list_stay_whole() -> None:
    stops = ["a,b", 'c"[', "]", "\n", "x y"]
    words = [word for stop in stops for word in ("--stop", stop)]
    assert Generate.read(["REF", *words]).stop == tuple(stops)
    assert Generate.read(["REF", "--stop", "one"]).stop == ("one",)
    assert [str(path) for path in Prepare.read(["a", "--out", "o", "--val", "v,w"]).val] == ["v,w"]


def test_zero_is_zero() -> None:
    command = Generate.read(["REF", "--temperature", "0", "--json", "--logit-bias", "5=-3.5"])
    assert command.temperature == 0.0
    assert command.json_output
    assert command.logit_bias == {5: -3.5}
    assert Chat.read([]).temperature == 0.7


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROMPT", "TEMPERATURE", "OUT", "SEED", "DEVICE"):
        monkeypatch.setenv(name, "7")
    assert Generate.read(["REF"]).prompt is None
    assert Generate.read(["REF"]).temperature == 1.0


def test_train_takes_dotted_overrides_and_both_ways_of_a_flag() -> None:
    given = Train.given(["tiny", "--data", "d", "--out", "o", "--train.max-steps", "5", "--no-model.tie-embeddings"])
    assert given["train"] == {"max_steps": "5"}
    assert given["model"] == {"tie_embeddings": False}
    assert Train.given(["tiny", "--model.qk-norm"])["model"] == {"qk_norm": True}
    assert Train.given(["tiny", "--no-model.qk-norm"])["model"] == {"qk_norm": False}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "REF"),
        (["REF", "--tempreture", "1"], "--tempreture"),
        (["REF", "--temperature"], "--temperature"),
        (["REF", "--temperature", "hot"], "temperature"),
        (["REF", "--top-p", "0"], "top_p"),
        (["REF", "--max-new-tokens", "-1"], "max_new_tokens"),
        (["REF", "--seed", "99999999999999999999"], "seed"),
        (["REF", "--logit-bias", "x=1"], "logit_bias"),
        (["REF", "--quantise", "int3"], "quantise"),
    ],
)
def test_mistakes_are_named_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Generate.read(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "langwright generate --help" in str(caught.value)


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([]) == main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert main(["genrate"]) == 2
    assert "did you mean 'generate'" in capsys.readouterr().err
    monkeypatch.setitem(VERBS, "breaks", "a verb whose module is missing")
    assert main(["breaks"]) == 1
    assert "internal error" in capsys.readouterr().err
