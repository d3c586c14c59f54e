"""Who is who, and what ranks tell each other."""

import pytest

from langwright.core.errors import UserError
from langwright.train.config import ParallelSettings
from langwright.train.ranks import ALONE, LONGEST, Ranks, SharedError, joined_ranks
from langwright.train.spread import Spread
from tests.unit.train.on_ranks import on_ranks
from tests.unit.train.tiny import make_config

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_without_torchrun_a_process_is_alone(environment: dict[str, str]):
    with joined_ranks("cpu", environment) as ranks:
        assert ranks is ALONE
        assert ranks.total(3.0, 4.0) == [3.0, 4.0]
        assert ranks.texts("me") == ["me"]
        assert (ranks.from_first("me"), ranks.from_first(None)) == ("me", None)
        ranks.wait()
        with pytest.raises(UserError, match="^mine$"), ranks.agreeing():
            raise UserError("mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": ""}, "WORLD_SIZE is '4' and RANK is '' in the environment; start several processes with torchrun"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
        ({"RANK": "4"}, "rank 4 of 4 .* cannot be"),
        ({"LOCAL_RANK": "2"}, "number 2 of 2 here"),
        ({"LOCAL_WORLD_SIZE": "8"}, "cannot be; use torchrun"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
    ],
)
def test_an_environment_that_makes_no_sense_is_named(change: dict[str, str], message: str):
    with pytest.raises(UserError, match=message), joined_ranks("cpu", TORCHRUN | change):
        pass


def complain(message: str, really: bool) -> None:
    if really:
        raise UserError(message)


def talk() -> None:
    """What every rank does in `test_ranks_talk`."""
    with joined_ranks("cpu") as ranks:
        assert ranks.total(1.0, ranks.rank) == [2.0, 1.0]
        assert ranks.texts("rank " + "零一"[ranks.rank]) == ["rank 零", "rank 一"]
        assert [len(text) for text in ranks.texts("x" * 3 * LONGEST)] == [LONGEST, LONGEST]
        assert ranks.from_first("only the first" if ranks.first else "nobody hears this") == "only the first"
        assert ranks.from_first(None if ranks.first else "nor this") is None
        assert ranks.from_first("" if ranks.first else "nor this") == ""
        with ranks.agreeing():
            pass
        with pytest.raises(SharedError, match="^rank 1: too few$"), ranks.agreeing():
            complain("too few", ranks.rank == 1)
        with pytest.raises(SharedError, match="^the same everywhere$"), ranks.agreeing():
            raise UserError("the same everywhere")
        with pytest.raises(SharedError, match="^rank 0: mine 0; rank 1: mine 1$"), ranks.agreeing():
            raise UserError(f"mine {ranks.rank}")
        expected = ZeroDivisionError if ranks.first else SharedError
        with pytest.raises(expected, match="by zero"), ranks.agreeing():
            print(1 // ranks.rank)
        assert ranks.texts("still here", group=ranks.saving) == ["still here"] * 2


def test_ranks_talk():
    on_ranks(2, "tests.unit.train.test_ranks:talk")


def among(size: int, rank: int = 0) -> Ranks:
    """One of several, which must not say a word."""
    return Ranks(rank, size, rank, size)


def test_settings_that_do_not_fit_the_ranks_are_refused():
    with pytest.raises(UserError, match=r"parallel\.kind is none, and 2 processes were started; use ddp or fsdp"):
        Spread(ParallelSettings(kind="none"), among(2))
    with pytest.raises(UserError, match=r"parallel\.tensor is 4, which does not divide the 6 processes"):
        Spread(ParallelSettings(kind="fsdp", tensor=4), among(6))
    with pytest.raises(UserError, match=r"train\.batch_size \(10\) is not a multiple of the 4 shares"):
        Spread(ParallelSettings(), among(4)).rows(10)
    with pytest.raises(UserError, match=r"parallel\.tensor: needs kind fsdp, not ddp"):
        make_config(parallel={"kind": "ddp", "tensor": 2})


@pytest.mark.parametrize(("change", "named"), [({"n_heads": 3}, "n_heads"), ({"n_kv_heads": 1}, "n_kv_heads")])
def test_models_that_cannot_be_divided_are_refused(change: dict[str, int], named: str):
    config = make_config(model={"d_model": 24, "d_head": 8, "n_heads": 4} | change)
    spread = Spread(ParallelSettings(tensor=2), among(2))
    with pytest.raises(UserError, match=rf"parallel\.tensor is 2, which does not divide model\.{named}"):
        spread.check(config.train, config.model.build(vocab_size=9, context=12))


def test_matrices_that_fsdp_cuts_are_not_for_muon():
    config = make_config(train={"optimiser": "muon"})
    model = config.model.build(vocab_size=9, context=12)
    Spread(ParallelSettings(kind="ddp"), among(2)).check(config.train, model)
    with pytest.raises(UserError, match="muon needs whole matrices, which fsdp cuts; use parallel.kind ddp, or adamw"):
        Spread(ParallelSettings(kind="fsdp"), among(2)).check(config.train, model)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("tensor", [1, 2])
def test_items_are_dealt_out_once_and_evenly(count: int, tensor: int):
    """Each counts on one rank alone, and all ranks get as many."""
    settings = ParallelSettings(kind="fsdp", tensor=tensor)
    dealt = [list(Spread(settings, among(4, rank)).deal(range(count))) for rank in range(4)]
    assert len({len(each) for each in dealt}) == 1
    assert sorted(item for each in dealt for item, counts in each if counts) == list(range(count))
    for rank in range(0, 4, tensor):  # neighbours see the same
        assert {tuple(item for item, _ in dealt[rank + other]) for other in range(tensor)} == {
            tuple(item for item, _ in dealt[rank])
        }


def test_rows_are_dealt_out():
    dealt = [list(Spread(ParallelSettings(), among(4, rank)).rows(8)) for rank in range(4)]
    assert dealt == [[0, 4], [1, 5], [2, 6], [3, 7]]
    divided = [list(Spread(ParallelSettings(tensor=2), among(4, rank)).rows(4)) for rank in range(4)]
    assert divided == [[0, 2], [0, 2], [1, 3], [1, 3]]


def test_what_auto_means():
    assert Spread().kind == Spread(ParallelSettings(kind="fsdp")).kind == "none"
    assert Spread(ParallelSettings(), among(2)).kind == "ddp"
    assert Spread(ParallelSettings(tensor=2), among(2)).kind == "fsdp"
