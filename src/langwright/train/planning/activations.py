"""What one forward keeps for its backward, counted from the structure.

Autograd keeps the inputs that a gradient formula needs. A tensor that two operations need is kept once, hence names: a
block's activations are a table from the name of a tensor to its bytes. `tests/unit/train/planning/test_memory.py` holds
these tables against the bytes that a real step holds.
"""

from dataclasses import dataclass

from langwright.model.config import ModelConfig
from langwright.model.kernels import LARGE

Saved = dict[str, float]
"""Bytes by the name of a tensor; the part before the dot says which module it belongs to."""


@dataclass(frozen=True)
class Pass:
    """One pass through a model: ``rows`` sequences of ``context`` tokens at ``width`` bytes a number, on ``device``."""

    model: ModelConfig
    rows: int
    context: int
    width: int
    device: str
    whole: bool = False
    """Whether blocks are computed again as a whole."""

    @property
    def tokens(self) -> int:
        return self.rows * self.context

    @property
    def noise(self) -> int:
        """Bytes a number of a dropout mask: a CPU keeps the factors, others whether a number was kept."""
        return self.width if self.device == "cpu" else 1


def block_activations(step: Pass, layer: int) -> Saved:
    """What block number ``layer`` keeps, its input included and its output not."""
    config, slots = step.model, step.model.slots(layer)
    stream = step.tokens * config.d_model
    saved: Saved = {}
    _enter(saved, step, "attn_in" in slots, "attn", "stream.start")
    _attention(saved, step, layer)
    if "attn_out" in slots:
        saved |= _norm(step, "attn_out", stream, "attn.projected")
    if "attn_res" in slots:
        saved |= _norm(step, "attn_res", stream, "stream.attended")
    _enter(saved, step, "mlp_in" in slots, "mlp", "stream.start" if config.parallel_residual else "stream.middle")
    _mlp(saved, step)
    if "mlp_out" in slots:
        saved |= _norm(step, "mlp_out", stream, "mlp.projected")
    if "mlp_res" in slots:
        saved |= _norm(step, "mlp_res", stream, "stream.end")
    if config.dropout:
        saved["dropout.attn"] = saved["dropout.mlp"] = stream * step.noise
    return saved


def embedding_activations(step: Pass) -> Saved:
    """What the embedding keeps: masks, and the input of its norm."""
    config, saved = step.model, {}
    stream = step.tokens * config.d_model
    rate = config.dropout if config.embed_dropout is None else config.embed_dropout
    if rate:
        saved["dropout.embed"] = stream * step.noise
    if config.embed_norm:
        saved |= _norm(step, "embed", stream, "stream.embedded")
    return saved


def final_activations(step: Pass) -> Saved:
    """What the norm before the head keeps; without one the head's own copy is all."""
    return _norm(step, "final", step.tokens * step.model.d_model, "stream.final") if step.model.final_norm else {}


def mlp_gradients(step: Pass) -> float:
    """Bytes of the gradients that are alive at once in the backward of the last block's MLP, where most still is.

    That of the stream and of the last matrix, and wide ones: a product has two inputs, relu's result is kept for itself
    and for the matrix after it, and a square's rule makes factors of its own.
    """
    config = step.model
    inner = step.tokens * config.d_mlp
    if lean(step):  # what was made again stands beside its gradient
        wide = 4 if config.gated else 3 if config.activation == "relu2" else 2
    else:
        wide = 2 if config.gated or config.activation == "relu" else 3 if config.activation == "relu2" else 1
    return step.width * (step.tokens * config.d_model + inner * wide + config.d_model * config.d_mlp)


def _enter(saved: Saved, step: Pass, normed: bool, module: str, source: str) -> None:
    """The input that the first matrices of a module share, and what makes it."""
    stream = step.tokens * step.model.d_model
    if normed:
        saved |= _norm(step, f"{module}_in", stream, source)
        saved[f"{module}.input"] = stream * step.width
    else:
        saved[source] = stream * step.width


def _norm(step: Pass, name: str, numbers: float, source: str, features: int | None = None) -> Saved:
    """A norm of ``source``, which has ``numbers`` numbers, ``features`` (default d_model) at a time."""
    features = features or step.model.d_model
    kind, wide = step.model.norm, step.width == 4
    if kind == "layernorm":
        return {source: numbers * step.width, f"{name}.statistics": 8 * numbers / features}
    if step.device == "cpu" and (wide or kind == "rmsnorm"):  # by hand: `langwright.model.kernels.RMSScale`
        return {source: numbers * step.width, f"{name}.statistics": 4 * numbers / features}
    # Autograd's root mean square norms compute in float32: in it they keep their input, else a wide copy of it, and the
    # result of the division, which Gemma's keeps wide.
    kept = {source if wide else f"{name}.wide": numbers * 4.0}
    divided = numbers * (4 if kind == "gemma_rmsnorm" else step.width)
    return kept | {f"{name}.divided": divided, f"{name}.statistics": 4 * numbers / features}


def _attention(saved: Saved, step: Pass, layer: int) -> None:
    config, width = step.model, step.width
    query = step.tokens * config.n_heads * config.d_head
    key = step.tokens * config.n_kv_heads * config.d_head
    if config.qk_norm:
        saved |= _norm(step, "q_norm", query, "attn.q_projected", config.d_head)
        saved |= _norm(step, "k_norm", key, "attn.k_projected", config.d_head)
    if config.positions == "rotary" and not wide_tables(step):
        saved["attn.tables"] = 4 * step.context * config.d_head * width
    saved |= {"attn.q": query * width, "attn.k": key * width, "attn.v": key * width, "attn.mixed": query * width}
    square = step.rows * config.n_heads * step.context**2
    window = config.layer_specs[config.layer_types[layer]].window
    if config.attn_softcap is not None:
        saved |= {"attn.k": query * width, "attn.v": query * width, "attn.pattern": square * (4 + 2 * width)}
        if config.attn_dropout:
            saved["dropout.pattern"] = square * 8
    elif config.attn_dropout and step.device == "cpu":
        # No fused kernel drops out on a CPU: scores are computed in float32, and every one is kept three times.
        saved |= {"attn.pattern": square * 12.0, "attn.scaled": query * 4 * (3 if width < 4 else 1)}
    else:
        saved["attn.logsumexp"] = step.tokens * config.n_heads * 4
        if window is not None and step.context > window:
            saved["attn.mask"] = step.context**2 * width


def lean(step: Pass) -> bool:
    """Whether what lies between an MLP's matrices is made again in the backward: `langwright.model.mlp.MLP`."""
    config = step.model
    large = step.tokens * config.d_mlp >= LARGE
    return large and step.device == "cpu" and not step.whole and config.activation != "relu" and not config.mlp_dropout


def wide_tables(step: Pass) -> bool:
    """Whether rotary tables, which are float32, serve as they are; else every use keeps a rounded copy."""
    return step.width == 4


def _mlp(saved: Saved, step: Pass) -> None:
    config = step.model
    inner = step.tokens * config.d_mlp * step.width
    saved["mlp.before"] = inner  # what the activation had, or for relu, gave
    if lean(step):
        saved |= {"mlp.up": inner} if config.gated else {}
        saved |= {"mlp.sigmoid": inner} if config.activation == "quick_gelu" else {}
        return
    if config.gated:
        saved |= {"mlp.activated": inner, "mlp.up": inner, "mlp.hidden": inner}
        if config.activation == "relu":
            del saved["mlp.activated"]
    elif config.activation != "relu":
        saved["mlp.hidden"] = inner
    if config.activation == "quick_gelu":
        saved["mlp.sigmoid"] = inner
    if config.mlp_dropout:
        saved |= {"mlp.hidden": inner, "dropout.hidden": step.tokens * config.d_mlp * step.noise}
