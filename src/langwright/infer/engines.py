"""The ways in which one model can be computed, under one signature: ours without and with a cache, and other programs.

Other programs are imported when they are asked for; where one is missing or knows no such model it is `Unavailable`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langwright.infer.evaluating import evaluating
from langwright.model.cache import KVCache
from langwright.model.families import FAMILIES
from langwright.model.model import Model

Prompt = str | Sequence[Mapping[str, str]]
"""A text, or the messages of a chat."""


class Unavailable(Exception):
    """Why an engine cannot be asked here."""


@dataclass(frozen=True)
class Seen:
    """What an engine gave for a sequence of ids, of which a prompt is the beginning.

    ``outputs`` (n, V) float32: logits from the prompt's last token on; (1, n) of a head that gives one row a sequence.
    ``states``: what embedding, every layer and final norm gave for the prompt, each (T, D); None where it is not known.
    """

    outputs: Tensor
    states: list[Tensor | None] | None = None


@dataclass(frozen=True)
class Engine:
    """``run`` is given a sequence of ids and the place of the prompt's last; ``encode`` makes ids of a prompt."""

    run: Callable[[Sequence[int], int], Seen]
    encode: Callable[[Prompt], list[int]] | None = None


@contextmanager
def _hidden(model: Model, seen: list[Tensor]) -> Iterator[None]:
    """Collect what every place of the backbone gives, from outside."""
    backbone = model.backbone
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out: seen.append(out[0]))
        for module in (backbone.embed, *backbone.layers, backbone.final_norm)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def run_whole(model: Model, sequence: Sequence[int], last: int) -> Seen:
    """All of it in one forward, as in training."""
    states: list[Tensor] = []
    with evaluating(model), _hidden(model, states):
        found = model(torch.tensor([list(sequence)], device=model.device))[0].float().cpu()
    outputs = found[None] if found.ndim == 1 else found[last:]
    return Seen(outputs, [state[: last + 1].float() for state in states])


@torch.inference_mode()
def run_cached(model: Model, sequence: Sequence[int], last: int) -> Seen:
    """The prompt in one forward, then a token at a time with a cache, as in serving."""
    ids, states = torch.tensor([list(sequence)], device=model.device), []
    cache = KVCache.static(model.config, 1, len(sequence), model.dtype, model.device)
    with evaluating(model):
        with _hidden(model, states):
            rows = [model(ids[:, : last + 1], cache=cache, last_only=True)[0]]
        rows += [model(ids[:, at : at + 1], cache=cache)[0] for at in range(last + 1, len(sequence))]
    return Seen(torch.cat(rows).float().cpu(), [state.float() for state in states])


def open_transformers(path: Path, model: Model, adapter: Path | None = None) -> Engine:
    """The checkpoint folder or ``.gguf`` file ``path`` in `transformers`, with an ``adapter`` by PEFT, in float32.

    ``model`` is ours, and says what kind it is. Raises `Unavailable`; what goes wrong while it loads is theirs to say.
    """
    try:
        import transformers
    except ImportError:
        raise Unavailable("not installed") from None
    family, kind = FAMILIES[model.config.family], model.head_kind
    found = getattr(transformers, family.architectures.get(kind, ""), None)
    if found is None:
        raise Unavailable(f"has no class for a {family.name} model with a {kind} head")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    more: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "attn_implementation": "eager"}
    folder = path
    if path.suffix == ".gguf":
        folder, more["gguf_file"] = path.parent, path.name
    else:
        more["use_safetensors"] = True
    if adapter is not None and kind.endswith("classifier"):
        more["num_labels"] = model.config.n_labels or 2
    theirs = found.from_pretrained(folder, **more)
    if adapter is not None:
        try:
            from peft import PeftModel
        except ImportError:
            raise Unavailable("peft is not installed, which reads adapters for it") from None
        theirs = PeftModel.from_pretrained(theirs, adapter, local_files_only=True)
    theirs = theirs.eval()

    @torch.inference_mode()
    def run(sequence: Sequence[int], last: int) -> Seen:
        ids = torch.tensor([list(sequence)])
        out = theirs(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
        # They report the last layer after the final norm.
        states = [state[0, : last + 1] for state in out.hidden_states]
        if kind == "embedding":
            outputs = model.head(out.last_hidden_state)
        else:
            outputs = out.logits if out.logits.ndim == 2 else out.logits[0, last:]
        return Seen(outputs.float(), [*states[:-1], None, states[-1]])

    source = path if adapter is None or not (adapter / "tokenizer.json").is_file() else adapter
    if not (source / "tokenizer.json").is_file():
        return Engine(run)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)

    def encode(prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
        return tokenizer(prompt)["input_ids"]

    return Engine(run, encode)


def open_llama_cpp(path: Path, room: int) -> Engine:
    """A ``.gguf`` file in llama.cpp, with keys and values in float32, for up to ``room`` tokens; or `Unavailable`."""
    try:
        import llama_cpp  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Unavailable("llama_cpp is not installed (pip install llama-cpp-python)") from None
    theirs = llama_cpp.Llama(
        str(path), n_ctx=room, n_gpu_layers=0, logits_all=True, type_k=0, type_v=0, flash_attn=False, verbose=False
    )

    def run(sequence: Sequence[int], last: int) -> Seen:
        theirs.reset()
        theirs.eval(list(sequence))
        return Seen(torch.tensor(theirs.scores[last : len(sequence)]))

    def encode(prompt: Prompt) -> list[int]:
        assert isinstance(prompt, str)
        return theirs.tokenize(prompt.encode(), add_bos=True, special=False)

    return Engine(run, encode)
