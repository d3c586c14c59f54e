"""What an exported model says of itself: where it comes from, what it learnt, what came of it, what it is not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import langwright
from langwright.core.errors import UserError
from langwright.core.gguf_file import GgufFile
from langwright.core.json_text import read_json_object
from langwright.model.adapters.opening import is_adapter
from langwright.model.adapters.peft_config import read_peft_config
from langwright.model.checkpoint.catalogue import list_models
from langwright.model.config import ModelConfig
from langwright.model.model import Model, count_parameters
from langwright.train.card import OWN_FAMILIES
from langwright.train.metrics import METRICS, read_metrics

ITS_OWN, PASSED_ON = ("name", "organization", "basename", "finetune"), ("license", "languages")
"""``general.*`` keys of a GGUF file that hold for the model itself, and for what is made of it too."""
FIGURES = {
    "val_bpb": "bits per byte",
    "val_ppl": "perplexity a token",
    "val_accuracy": "accuracy",
    "val_macro_f1": "macro F1",
    "val_loss": "loss, nats",
}
HEADS = {
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
    "sequence_classifier": "text-classification",
    "token_classifier": "token-classification",
    "embedding": "sentence-similarity",
}


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as its files tell; ``run`` is ``langwright.json``."""

    name: str
    base: str | None = None
    """The model that an adapter, or a tuned model, began with: a hub id, or a folder's name."""
    licence: str | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    general: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_hub_id(self) -> bool:
        """Whether ``base`` is a name that the Hub knows."""
        return bool(self.base and re.fullmatch(r"[\w.\-]+/[\w.\-]+", self.base, re.ASCII))


def read_origin(ref: str, path: Path, source: Path) -> Origin:
    """What is known of the model ``ref`` in ``path``; ``source`` holds the weights that it began with (or itself)."""
    run = read_json_object(path / "langwright.json") if (path / "langwright.json").is_file() else {}
    asked = read_peft_config(path).base if is_adapter(path) else run.get("base")
    asked = asked if isinstance(asked, str) else None
    known = {entry.name: entry for entry in list_models()}
    entry = known.get(asked or ref)
    general = _general(source, (*ITS_OWN, *PASSED_ON) if source == path else PASSED_ON)
    licence = entry.licence.lower() if entry else general.get("license", _front_matter(source).get("license"))
    base = entry.hub if entry else asked
    if base and (Path(base).expanduser().exists() or (path / base).exists() or base.startswith(("/", ".", "~"))):
        base = source.name
    place = path.resolve()
    step = run.get("step")
    rows = read_metrics(place.parent / METRICS, step) if path.is_dir() and isinstance(step, int) else []
    evals = [_figures(row) for row in rows if row.get("event") == "eval"]
    is_step = re.fullmatch(r"step-\d+", place.name)
    name = place.parent.name if is_step else place.stem if path.is_file() else place.name
    results = run.get("results")
    kept = results if isinstance(results, dict) else {}
    return Origin(
        name=_plain(general.get("name", name) if path.suffix == ".gguf" else name),
        base=base and _plain(base),
        licence=_plain(licence) if isinstance(licence, str) else None,
        run=run,
        before=evals[0] if len(evals) > 1 else _figures(kept.get("before")),
        after=evals[-1] if evals else _figures(kept.get("after")),
        general=general,
    )


def render_card(origin: Origin, model: Model, *, stored: str, facts: list[str], use: str) -> str:
    """``README.md``. ``stored`` says in which form, ``facts`` what was measured while it was written."""
    config, own = model.config, model.config.family in OWN_FAMILIES
    adapter = stored.startswith("an adapter")
    front = [
        f"library_name: {'langwright' if own else 'peft' if adapter else 'transformers'}",
        f"pipeline_tag: {HEADS[model.head_kind]}",
        *([f"base_model: {origin.base}"] if origin.is_hub_id else []),
        *([f"license: {origin.licence}"] if origin.licence else []),
    ]
    method = _method(origin)
    began = f"{'; tuned from' if method else '; based on'} {origin.base}" if origin.base else ""
    lines = ["---", *front, "---", f"# {origin.name}", ""]
    lines.append(
        f"A {config.family} model of {count_parameters(model):,} parameters, stored as {stored}, exported with "
        f"Langwright {langwright.__version__}{began}."
    )
    lines += ["", "## Data", "", _data(origin)]
    lines += ["", "## Method", "", method or "Not known: nothing beside the model tells how it was trained."]
    lines += ["", "## Results", "", *_results(origin)]
    lines += ["", "## Limits", "", *_limits(origin, config, model)]
    lines += ["", "## Parity", "", *(f"- {fact}" for fact in facts)]
    lines += ["- `langwright verify PATH` replays what is in the parity certificate.", "", "## Use", "", use]
    return "\n".join(lines) + "\n"


def public_run(origin: Origin, export: Mapping[str, Any]) -> dict[str, Any]:
    """``langwright.json`` of an export: what the run's says, without the places on the machine where it was made."""
    config, data = origin.run.get("config"), origin.run.get("data")
    names = ("step", "metrics", "method", "model", "tokenizer")
    kept = {name: origin.run[name] for name in names if name in origin.run}
    if isinstance(config, dict):
        kept["config"] = {name: config[name] for name in ("seed", "adapter", "train") if name in config}
    if isinstance(data, dict):
        shown = {name: data[name] for name in ("format", "fingerprint", "train", "val", "labels") if name in data}
        kept["data"] = shown | {"files": _files(data)}
    return {
        "format": "langwright-export",
        "version": 1,
        **kept,
        "results": {"before": dict(origin.before), "after": dict(origin.after)},
        "base": origin.base,
        "software": {"langwright": langwright.__version__},
        "export": dict(export),
    }


def _data(origin: Origin) -> str:
    data = origin.run.get("data")
    if not isinstance(data, dict):
        return "Not known: nothing beside the model tells what it learnt from."
    names = ", ".join(_files(data)) or "unnamed files"
    counts = [f"{_count(data.get(part))} {what}" for part, what in (("train", "to learn from"), ("val", "held out"))]
    print_ = str(data.get("fingerprint", ""))[:16]
    return f"{names}: {', '.join(counts)}; fingerprint `{_plain(print_)}`."


def _files(data: Mapping[str, Any]) -> list[str]:
    """Names of the files that were learnt from, without their places."""
    sources = data.get("sources")
    paths = data.get("files") or [each.get("path") for each in sources or [] if isinstance(each, dict)]
    return [_plain(Path(str(path)).name) for path in paths]


def _count(part: Any) -> str:
    if isinstance(part, dict):
        of = next((name for name in ("examples", "documents") if name in part), None)
        learnt = f" ({part['trained']:,} of {part['tokens']:,} tokens learnt)" if "trained" in part else ""
        return f"{part[of]:,} {of}{learnt}" if of else "some"
    return f"{part:,} examples" if isinstance(part, int) else "some"


def _method(origin: Origin) -> str:
    config = origin.run.get("config")
    train = config.get("train") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(train, dict):
        return ""
    adapter = config.get("adapter")
    how = "all weights"
    if isinstance(adapter, dict):
        kind = "DoRA" if adapter.get("dora") else "rank-stabilised LoRA" if adapter.get("rank_stabilised") else "LoRA"
        how = f"{kind} of rank {adapter.get('rank')}, alpha {adapter.get('alpha')}"
    method = origin.run.get("method", "pretraining")
    return _plain(
        f"{method} of {how}: {origin.run.get('step')} steps of {train.get('batch_size')} rows of up to "
        f"{train.get('context')} tokens, {train.get('optimiser')}, learning rate {train.get('lr')} "
        f"({train.get('schedule')}), {train.get('dtype')}, seed {config.get('seed')}.",
        400,
    )


def _results(origin: Origin) -> list[str]:
    if not origin.after:
        return ["None are known."]
    lines = ["| on held-out data | before | after |", "|---|---|---|"]
    for key, what in FIGURES.items():
        if key in origin.after:
            before = f"{origin.before[key]:.4f}" if key in origin.before else "-"
            lines.append(f"| {what} | {before} | {origin.after[key]:.4f} |")
    return lines


def _limits(origin: Origin, config: ModelConfig, model: Model) -> list[str]:
    lines = [
        "- It was not tested for safety or fairness by this export, and repeats what its data say.",
        f"- It reads at most {config.max_positions:,} tokens.",
    ]
    if origin.after:
        lines.append("- The held-out data are of the same source as what was learnt; on other text expect less.")
    if model.head_kind == "sequence_classifier":
        lines.append("- It answers with one of its labels whatever it is given.")
    return lines


def _general(source: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """What a GGUF file says of where it comes from."""
    if source.suffix != ".gguf":
        return {}
    with GgufFile.open(source) as file:
        found = {name: file.metadata.get(f"general.{name}") for name in names}
    return {
        name: value
        for name, value in found.items()
        if (isinstance(value, str) and value)
        or (isinstance(value, list) and value and all(isinstance(each, str) for each in value))
    }


def _front_matter(source: Path) -> dict[str, str]:
    """Plain ``key: value`` lines at the head of a model card."""
    path = source / "README.md"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:20_000] if path.is_file() else ""
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not text.startswith("---\n"):
        return {}
    head = text[4:].partition("\n---")[0]
    return dict(re.findall(r"^(\w+): *([\w.\-]+) *$", head, re.MULTILINE))


def _figures(row: Any) -> dict[str, float]:
    given = row if isinstance(row, dict) else {}
    return {name: float(given[name]) for name in FIGURES if isinstance(given.get(name), int | float)}


def _plain(text: Any, limit: int = 120) -> str:
    """One line that cannot leave its place in a card."""
    return re.sub(r"[`|<>\r\n]+", " ", str(text))[:limit].strip()
