"""A model as others want it: a Hugging Face folder, a GGUF file, an adapter alone, or what Ollama makes a model of.

Everything that is written is loaded back and compared before it takes its place, so there is an export that computes
what the model did, or none.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from langwright.apps.model_card import Origin, public_run, read_origin, render_card
from langwright.apps.modelfile import write_modelfile
from langwright.core.errors import UserError
from langwright.core.files import atomic_file, committed_folder, explained, write_atomic
from langwright.core.json_text import read_json_object, write_json
from langwright.infer.certificate import (
    EXACT,
    PARITY,
    certificate_path,
    certify,
    golden_prompts,
    write_certificate,
)
from langwright.infer.evaluating import evaluating
from langwright.infer.lm import LM, load
from langwright.model.adapters import has_adapters, save_adapter
from langwright.model.adapters.merge import fold
from langwright.model.adapters.opening import find_base, is_adapter
from langwright.model.adapters.peft_config import CONFIG, read_peft_config
from langwright.model.checkpoint.catalogue import list_models
from langwright.model.checkpoint.gguf_save import Stored, gguf_architecture, save_gguf
from langwright.model.checkpoint.hub import resolve
from langwright.model.checkpoint.save import save_model
from langwright.model.model import Model
from langwright.tokenizer.gguf import tokenizer_to_gguf
from langwright.train.card import OWN_FAMILIES

Format = Literal["hf", "gguf", "adapter", "ollama"]
FORMATS, DTYPES = get_args(Format), get_args(Stored)
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MERGED = 1e-4
"""By how much of the largest logit (of 1 at least) merging may change one: float32 sums of some thirty layers differ by
1e-6 to 1e-5 when made in another order, and a merge that is wrong differs by 1e-2 and more."""
ROUNDING: Mapping[str, float] = {"float32": EXACT, "float16": 0.01, "bfloat16": 0.1, "q8_0": 0.1}
"""The same for what rounding the weights may change; beyond it something else is wrong."""
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
"""What a model's own generation_config.json may say of how to draw."""
MODEL_FILE = "model.gguf"
Stage = Callable[[str], Any]


@dataclass
class Exported:
    """What was written, and how near it is: the largest differences of a logit on the golden prompts."""

    path: Path
    format: Format
    dtype: str
    merge_difference: float | None = None
    """Between base and adapter, and both in one; None where there was no adapter to merge."""
    difference: float = 0.0
    """Between the model and what was written, loaded back."""
    allowed: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def facts(self) -> list[str]:
        """For the model card."""
        found = [f"Written as {self.dtype} and loaded back, no logit of the golden prompts differs by more than "]
        found[0] += f"{self.difference:.1e} from the model in float32."
        if self.merge_difference is not None:
            found.insert(
                0, f"Merged in float32; base and adapter differ from it by {self.merge_difference:.1e} at most."
            )
        return found + self.notes


def export(
    ref: str,
    target: Path,
    *,
    format: Format = "hf",
    dtype: Stored = "float32",
    force: bool = False,
    max_difference: float | None = None,
    stage: Stage = lambda _: nullcontext(),
) -> Exported:
    """Write the model ``ref`` to ``target``: a folder, or with ``gguf`` a file.

    An adapter is merged into its base in float32, but for ``adapter``. ``max_difference`` bounds how far a logit may be
    off, in merging and in writing, in place of `MERGED` and `ROUNDING`. What stood at ``target`` is replaced with
    ``force`` alone. Raises `UserError` for what cannot be exported so, and for a result that computes something else;
    then nothing is written.
    """
    path = resolve(ref)
    if dtype == "q8_0" and format in ("hf", "adapter"):
        raise UserError("q8_0 is a format of GGUF files; use --format gguf, or --dtype float32, float16 or bfloat16")
    source = find_base(path) if is_adapter(path) else path
    _check_target(target, format, force, (path, source))
    with stage("loading"):
        lm = load(path, device="cpu", dtype=torch.float32, fuse=False)
    origin = read_origin(ref, path, source)
    done = Exported(target, format, dtype)
    if format == "adapter":
        _write_adapter(lm, path, origin, done)
        return done
    if format in ("gguf", "ollama"):
        gguf_architecture(lm.model)
    prompts = [ids for _, ids in golden_prompts(lm.tokenizer, lm.model)]
    with stage("computing the golden prompts"):
        before = _outputs(lm.model, prompts)
    if has_adapters(lm.model):
        with stage("merging"):
            before = _merge(lm.model, prompts, before, done, max_difference)
    with _place(target, format) as place:
        with stage("writing"):
            written = _write(lm, place, path, origin, done)
        tokenizer, ends = lm.tokenizer, sorted(lm.tokenizer.eos_ids | set(lm.config.eos_ids))
        del lm  # two models at a time would be twice the memory
        with stage("loading back"):
            again = load(written, device="cpu", dtype=torch.float32)
            _check(_outputs(again.model, prompts), before, done, ROUNDING[dtype], max_difference)
            certificate = certify(again.model, again.tokenizer)
        if format == "gguf":
            certificate_path(target).unlink(missing_ok=True)  # it is the old file's, and the new one is about to come
        else:
            write_certificate(certificate_path(written), certificate)
            named = [name for end in ends if (name := tokenizer.spelling(end))]
            if format == "ollama":
                text, reason = write_modelfile(tokenizer, MODEL_FILE, named)
                write_atomic(place / "Modelfile", text)
                done.notes += [f"The Modelfile has no TEMPLATE: {reason}."] if reason else []
            _describe(place, origin, again.model, done)
    if format == "gguf":
        write_certificate(certificate_path(target), certificate)
    return done


def _check_target(target: Path, format: Format, force: bool, sources: tuple[Path, ...]) -> None:
    is_file = target.suffix == ".gguf"
    if is_file != (format == "gguf"):
        what = "one file: give a name that ends in .gguf" if format == "gguf" else "a folder: give a name without .gguf"
        raise UserError(f"--to {target}: {format} writes {what}")
    if any(source.resolve().is_relative_to(target.resolve()) for source in sources):
        raise UserError(f"--to {target}: the model itself lies there; choose another place")
    if target.is_dir() and is_file:
        raise UserError(f"--to {target}: is a folder; give the name of a file in it")
    there = any(target.iterdir()) if target.is_dir() else target.exists()
    if there and not force:
        raise UserError(f"--to {target}: already exists; add --force to replace it, or choose another place")


@torch.inference_mode()
def _outputs(model: Model, prompts: list[list[int]]) -> list[Tensor]:
    with evaluating(model):
        return [model(torch.tensor([ids]))[0].float() for ids in prompts]


def _difference(found: list[Tensor], wanted: list[Tensor]) -> tuple[float, float]:
    """The largest difference, infinite where there is a NaN, and the largest output, 1 at least."""
    worst = max(
        (one - other).abs().nan_to_num(float("inf")).max().item() for one, other in zip(found, wanted, strict=True)
    )
    return worst, max(1.0, *(each.abs().max().item() for each in wanted))


def _merge(
    model: Model, prompts: list[list[int]], before: list[Tensor], done: Exported, max_difference: float | None
) -> list[Tensor]:
    """Fold the adapters into ``model``; what it gives now."""
    after = _outputs(fold(model), prompts)
    worst, scale = _difference(after, before)
    allowed = MERGED * scale if max_difference is None else max_difference
    done.merge_difference = worst
    if not worst <= allowed:
        raise UserError(
            f"merged into its base, the adapter gives logits that differ by {worst:.2g}, and {allowed:.2g} is allowed; "
            "nothing was written; use --format adapter, or allow more with --max-difference"
        )
    return after


def _check(
    found: list[Tensor], wanted: list[Tensor], done: Exported, share: float, max_difference: float | None
) -> None:
    done.difference, scale = _difference(found, wanted)
    done.allowed = share * scale if max_difference is None else max_difference
    if not done.difference <= done.allowed:
        raise UserError(
            f"written as {done.dtype}, the model gives logits that differ by {done.difference:.2g}, and "
            f"{done.allowed:.2g} is allowed; nothing was written; use another --dtype, or a --max-difference"
        )


@contextmanager
def _place(target: Path, format: Format) -> Iterator[Path]:
    if format == "gguf":
        with explained(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as place:
            yield place
    else:
        with committed_folder(target) as place:
            yield place


def _write(lm: LM, place: Path, path: Path, origin: Origin, done: Exported) -> Path:
    """Write the model; what can be loaded of it."""
    if done.format == "hf":
        save_model(lm.model, place, dtype=TORCH[done.dtype])
        lm.tokenizer.save(place)
        _write_generation_config(lm, place, path)
        # Before it is loaded back: a classifier's temperature and labels stand in it.
        write_atomic(place / "langwright.json", write_json(public_run(origin, {"dtype": done.dtype})))
        return place
    file = place if done.format == "gguf" else place / MODEL_FILE
    about = {f"general.{name}": value for name, value in origin.general.items()}
    about["general.name"] = origin.name
    if origin.licence:
        about["general.license"] = origin.licence
    if origin.base:
        about |= {"general.base_model.count": 1, "general.base_model.0.name": origin.base}
    if origin.is_hub_id:
        about["general.base_model.0.repo_url"] = f"https://huggingface.co/{origin.base}"
    metadata = tokenizer_to_gguf(lm.tokenizer, lm.config.vocab_size, lm.config.eos_ids)
    dtype: Any = done.dtype
    save_gguf(lm.model, file, metadata, dtype=dtype, about=about)
    return file


def _write_generation_config(lm: LM, place: Path, path: Path) -> None:
    """End tokens of model and tokenizer together, and how the model's authors draw, where they say so."""
    file = path / "generation_config.json"
    given = read_json_object(file) if path.is_dir() and file.is_file() else {}
    values: dict[str, Any] = read_json_object(place / "generation_config.json")
    values |= {name: given[name] for name in SAMPLING if isinstance(given.get(name), int | float)}
    ends = sorted(lm.tokenizer.eos_ids | set(lm.config.eos_ids))
    if lm.model.head_kind == "causal_lm" and ends:
        values["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    write_atomic(place / "generation_config.json", write_json(values))


def _describe(place: Path, origin: Origin, model: Model, done: Exported) -> None:
    """The model card, and ``langwright.json`` with what was measured."""
    figures = {"dtype": done.dtype, "max_logit_difference": done.difference, "merge_difference": done.merge_difference}
    write_atomic(place / "langwright.json", write_json(public_run(origin, figures)))
    stored = {"hf": done.dtype, "ollama": f"a GGUF file ({done.dtype})"}.get(done.format, f"an adapter ({done.dtype})")
    shared = model.head_kind == "causal_lm" and model.config.family not in OWN_FAMILIES
    theirs = '\n\nor `transformers.AutoModelForCausalLM.from_pretrained("PATH")`' if shared else ""
    use = {
        "hf": f'```python\nimport langwright as lw\n\nlw.load("PATH")\n```{theirs}',
        "ollama": "```\nollama create NAME -f Modelfile\n```",
    }.get(done.format, '```python\nimport langwright as lw\n\nlw.load("PATH")  # finds the base, and merges\n```')
    write_atomic(place / "README.md", render_card(origin, model, stored=stored, facts=done.facts, use=use))


def _write_adapter(lm: LM, path: Path, origin: Origin, done: Exported) -> None:
    """The adapter in PEFT's format, whose base is a hub id or an absolute path, since the folder is to move."""
    if not has_adapters(lm.model):
        raise UserError(f"{path}: is a whole model and no adapter; use --format hf")
    if done.dtype != "float32":
        raise UserError("an adapter is written in float32; leave --dtype out")
    given = read_peft_config(path)
    assert given.base is not None  # it was loaded
    hubs = {entry.name: entry.hub for entry in list_models()}
    beside = path / given.base
    here = beside if beside.exists() else Path(given.base).expanduser()
    base = str(here.resolve()) if here.exists() else hubs.get(given.base, given.base)
    with committed_folder(done.path) as place:
        save_adapter(lm.model, place, base=base)
        if given.revision is not None and not here.exists():
            values = read_json_object(place / CONFIG) | {"revision": given.revision}
            write_atomic(place / CONFIG, write_json(values))
        lm.tokenizer.save(place)
        if given.base in hubs and not here.exists():
            done.notes.append(
                f"It was trained on the catalogue's {given.base}, whose weights are those of {base} rounded; on the "
                "weights of the Hub it computes something slightly else, so there is no certificate."
            )
        else:
            write_certificate(place / PARITY, certify(lm.model, lm.tokenizer))
        _describe(place, origin, lm.model, done)
