"""What the projections and the head of a model are called where adapters are exchanged: as in `transformers`."""

from dataclasses import dataclass

from langwright.model.adapters.attach import CLASSIFIERS
from langwright.model.adapters.config import PROJECTIONS
from langwright.model.families import FAMILIES
from langwright.model.model import Model, allocate_model
from langwright.model.rename import bind


@dataclass(frozen=True)
class Names:
    """Ours to theirs, from the rename table of the family; theirs as in a model with this head."""

    modules: dict[str, str]
    """Projections that are a matrix of their own there."""
    fused: dict[str, str]
    """Projections that are a part of another matrix there, or lie transposed: that matrix."""
    head: dict[str, str]
    """The parameters of a classifier's head; empty for other heads."""


def name_parts(model: Model) -> Names:
    """The names for ``model``, with or without adapters."""
    family = FAMILIES[model.config.family]
    plain = allocate_model(model.config, model.head_kind)
    rules = bind(family.rules + family.heads.get(model.head_kind, ()), model.config, dict(plain.named_parameters()))
    names = Names({}, {}, {})
    for item in rules:
        theirs = item.theirs.removeprefix(family.prefix) if model.head_kind == "embedding" else item.theirs
        for ours in item.ours:
            module, _, kind = ours.rpartition(".")
            if module.startswith("head."):
                if model.head_kind in CLASSIFIERS:
                    names.head[ours] = theirs
            elif kind == "weight" and module.rpartition(".")[2] in PROJECTIONS:
                if family.name == "vanilla":  # has no class there, so nobody else's names to keep to
                    names.modules[module] = module
                elif len(item.ours) == 1 and item.layout == "same":
                    names.modules[module] = theirs.removesuffix(".weight")
                else:
                    names.fused[module] = theirs.removesuffix(".weight")
    return names


def targets_of(names: Names, modules: list[str]) -> list[str]:
    """The shortest ``target_modules`` that mean exactly ``modules`` (ours).

    That is the last part of a name (``q_proj``) where no other projection shares it, and whole names elsewhere: in BERT
    three projections and the pooler are all called ``dense``.
    """
    users: dict[str, set[str]] = {}
    for ours, theirs in (names.modules | names.fused).items():
        users.setdefault(_last(theirs), set()).add(_last(ours))
    short = {_last(theirs) for theirs in names.modules.values() if len(users[_last(theirs)]) == 1}
    chosen = [
        _last(names.modules[name]) if _last(names.modules[name]) in short else names.modules[name] for name in modules
    ]
    return list(dict.fromkeys(chosen))


def head_modules(names: Names) -> list[str]:
    """The ``modules_to_save`` that hold a classifier's head; those that PEFT saves by itself are named as it does."""
    found = []
    for theirs in names.head.values():
        parts = theirs.split(".")[:-1]
        usual = [place for place, part in enumerate(parts) if part in ("classifier", "score")]
        found.append(".".join(parts[: usual[0] + 1] if usual else parts))
    return list(dict.fromkeys(found))


def _last(name: str) -> str:
    return name.rpartition(".")[2]
