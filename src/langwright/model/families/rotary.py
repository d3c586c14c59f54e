"""Rotary settings in ``config.json``: two spellings, five kinds."""

from collections.abc import Mapping
from typing import Any

from langwright.core.errors import UserError
from langwright.model.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    Rope,
    RopeScaling,
    YarnScaling,
)
from langwright.model.families.base import ConfigReader


def read_rope(reader: ConfigReader, max_positions: int, theta: float = 10_000.0, fraction: float | None = None) -> Rope:
    """Rotary settings in either spelling: ``rope_parameters``, or ``rope_theta`` with ``rope_scaling``.

    ``theta`` and ``fraction`` are what absence means; a ``fraction`` of None is a family that rotates whole heads.
    """
    theta = float(reader.take("rope_theta", theta, float))
    scaling = reader.take("rope_scaling", {}, dict)
    given = reader.take("rope_parameters", {}, dict)
    return rope_from(given | scaling, reader.source, max_positions, theta, fraction)


def rope_from(
    values: Mapping[str, Any], source: str, max_positions: int, theta: float, fraction: float | None = None
) -> Rope:
    """One `Rope` from the keys of a ``rope_parameters`` (or ``rope_scaling``) object; strict like the rest."""
    inner = ConfigReader(values, f"{source}: rope_parameters")
    kind = inner.take("type", "default", str)
    kind = inner.take("rope_type", kind, str)
    theta = float(inner.take("rope_theta", theta, float))
    if fraction is None:
        inner.fixed("partial_rotary_factor", 1.0)
    else:
        fraction = float(inner.take("partial_rotary_factor", fraction, float))
    scaling: RopeScaling | None = None
    if kind == "default":
        inner.ignore("factor")
    elif kind == "linear":
        scaling = LinearScaling(factor=inner.take("factor", kind=float))
        inner.ignore("original_max_position_embeddings")
    elif kind == "dynamic":
        inner.ignore("original_max_position_embeddings")
        scaling = DynamicScaling(factor=inner.take("factor", kind=float), original_positions=max_positions)
    elif kind == "yarn":
        scaling = YarnScaling(
            factor=inner.take("factor", kind=float),
            original_positions=inner.take("original_max_position_embeddings", max_positions),
            beta_fast=inner.take("beta_fast", 32.0, float) or 32.0,
            beta_slow=inner.take("beta_slow", 1.0, float) or 1.0,
            attention_factor=inner.take("attention_factor", None, float),
            mscale=inner.take("mscale", None, float),
            mscale_all_dim=inner.take("mscale_all_dim", None, float),
            truncate=inner.take("truncate", True, bool),
        )
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=inner.take("factor", kind=float),
            low_freq_factor=inner.take("low_freq_factor", kind=float),
            high_freq_factor=inner.take("high_freq_factor", kind=float),
            original_positions=inner.take("original_max_position_embeddings", max_positions),
        )
    else:
        raise UserError(f"{source}: rotary scaling {kind!r} is not supported (linear, dynamic, yarn and llama3 are)")
    inner.finish()
    return Rope(theta=theta, fraction=1.0 if fraction is None else fraction, scaling=scaling)


def write_rope(rope: Rope) -> dict[str, Any]:
    """The keys of a ``rope_parameters`` object; the inverse of `rope_from`."""
    values: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1.0:
        values["partial_rotary_factor"] = rope.fraction
    scaling = rope.scaling
    if scaling is None:
        return values
    values |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if not isinstance(scaling, LinearScaling | DynamicScaling):  # dynamic scaling begins at max_position_embeddings
        values["original_max_position_embeddings"] = scaling.original_positions
    if isinstance(scaling, Llama3Scaling):
        values |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if isinstance(scaling, YarnScaling):
        values |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        optional = {name: getattr(scaling, name) for name in ("attention_factor", "mscale", "mscale_all_dim")}
        values |= {name: value for name, value in optional.items() if value is not None}
    return values


def write_rope_keys(rope: Rope) -> dict[str, Any]:
    """The rotary keys of a ``config.json`` in both spellings: `transformers` before 5 reads only the older one."""
    new = write_rope(rope)
    old = {name: value for name, value in new.items() if name not in ("rope_theta", "partial_rotary_factor")}
    return {
        "rope_parameters": new,
        "rope_theta": rope.theta,
        "rope_scaling": old if rope.scaling else None,
    }
