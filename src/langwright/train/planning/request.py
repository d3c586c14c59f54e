"""From what a user asks to a plan: recipe, data, device, rates."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from langwright.core.config import Frozen
from langwright.core.errors import UserError
from langwright.core.hardware import available_memory
from langwright.core.runtime import pick_device, set_threads
from langwright.data.loader import PreparedData, open_data
from langwright.model.config import ModelConfig
from langwright.tokenizer.load import load_tokenizer
from langwright.train.compute import pick_compute_dtype
from langwright.train.config import LoopSettings, Positive, TrainConfig, load_recipe
from langwright.train.planning.advice import find_fit
from langwright.train.planning.devices import Device, find_device, known_devices
from langwright.train.planning.memory import count_weights
from langwright.train.planning.pace import SECONDS, Pace, measure_pace
from langwright.train.planning.plan import Machine, Plan, machine_of, plan_run, plan_size
from langwright.train.planning.scaling import TOKENS_A_PARAMETER

VOCAB_SIZE = 8192
"""Assumed without data: what `langwright prepare` trains unless told otherwise."""


class PlanRequest(Frozen):
    """What `langwright plan` is asked beside the recipe."""

    data: Path | None = None
    """Folder that `langwright prepare` wrote; without it the run is planned for a vocabulary of --vocab-size."""
    vocab_size: Positive | None = None
    """Tokens in the vocabulary, where there are no data yet."""
    tokens: float | None = Field(default=None, gt=0)
    """Train on so many tokens instead of the recipe's steps."""
    params: float | None = Field(default=None, gt=0)
    """Instead of a recipe: so many parameters, such as 175e9; needs --tokens or takes 20 a parameter."""
    count: Positive = 1
    """Devices of the table that share the work."""
    mfu: float | None = Field(default=None, gt=0, le=1)
    """Share of the device's best rate that training reaches; default: the table's assumption."""
    price_per_hour: float | None = Field(default=None, gt=0)
    """Of one device, in any currency."""
    watts: float | None = Field(default=None, gt=0)
    """Of one device; default for those of the table: the maker's figure."""
    probe: bool = True
    """Measure a few steps here (at most half a minute); without it a plan for this machine has no times."""


def make_plan(recipe: str | None, overrides: Mapping[str, Any], request: PlanRequest) -> Plan:
    """The plan that was asked for; raises `UserError` for what fits nowhere.

    A device of the table is planned by its figures, any other is this machine's and is measured, if a piece fits there.
    """
    if recipe is None:
        return _plan_numbers(overrides, request)
    if request.params is not None:
        raise UserError("give a recipe or --params, not both: the recipe decides the parameters")
    config = load_recipe(recipe, overrides)
    data = open_data(request.data) if request.data else None
    shape, assumed = _shape(config, data, request)
    device = known_devices().get(config.device.lower())
    if device is None:
        _refuse_table_words(request)
    config, told = _decide(config, shape, data, request, device)
    assumed += told
    if device is not None:
        machine = machine_of(device, request.count, request.mfu, request.watts, request.price_per_hour)
        assumed.append(
            f"{device.title} reaches {machine.mfu:.0%} of {machine.rate or 0:.3g} operations a second ({device.source})"
        )
        pace = None
    else:
        machine, pace = _here(config, shape, request)
    return plan_run(
        config,
        shape,
        machine,
        unique_tokens=data.train.n_tokens if data else None,
        val_tokens=data.val.n_tokens if data else None,
        pace=pace,
        assumed=tuple(assumed),
    )


def _refuse_table_words(request: PlanRequest) -> None:
    """What is measured here needs no assumption, and more of this machine there are not."""
    for name, value, default in (("count", request.count, 1), ("mfu", request.mfu, None)):
        if value != default:
            names = ", ".join(known_devices())
            raise UserError(f"--{name} needs a --device of the table ({names}); this machine is measured as it is")


def _plan_numbers(overrides: Mapping[str, Any], request: PlanRequest) -> Plan:
    assert request.params is not None
    others = [name for name in overrides if name != "device"]
    if others:
        raise UserError(f"--{others[0].replace('_', '-')} belongs to a recipe; with --params there is none")
    device = find_device(str(overrides.get("device", "h100")))
    machine = machine_of(device, request.count, request.mfu, request.watts, request.price_per_hour)
    assumed = [f"{device.title} reaches {machine.mfu:.0%} of {machine.rate:.3g} operations a second ({device.source})"]
    tokens = request.tokens
    if tokens is None:
        tokens = 20 * request.params
        assumed.append("20 tokens a parameter (Hoffmann et al. 2022)")
    return plan_size(request.params, tokens, machine, tuple(assumed))


def _shape(config: TrainConfig, data: PreparedData | None, request: PlanRequest) -> tuple[ModelConfig, list[str]]:
    if data is None:
        size = request.vocab_size or VOCAB_SIZE
        assumed = [] if request.vocab_size else [f"a vocabulary of {size:,} (give --data or --vocab-size)"]
        return config.model.build(vocab_size=size, context=config.train.context), assumed
    if request.vocab_size is not None:
        raise UserError("give --data or --vocab-size, not both: the data have their vocabulary")
    tokenizer = load_tokenizer(data.tokenizer_path)
    size = max(tokenizer.vocab_size, data.train.vocab_size)
    return config.model.build(vocab_size=size, context=config.train.context), []


def _decide(
    config: TrainConfig, shape: ModelConfig, data: PreparedData | None, request: PlanRequest, device: Device | None
) -> tuple[TrainConfig, list[str]]:
    """The configuration with steps, dtype and device decided, and what was assumed for that."""
    settings, assumed = config.train, []
    steps, told = decide_steps(
        settings, count_weights(shape).total, request.tokens, data.train.n_tokens if data else None
    )
    assumed += [told] if told else []
    if device is not None:
        dtype = settings.dtype if settings.dtype != "auto" else "bfloat16" if device.bfloat16 else "float32"
        return config.replace(train=settings.replace(max_steps=steps, dtype=dtype)), assumed
    here = pick_device(config.device)
    dtype = str(pick_compute_dtype(settings.dtype, here)).removeprefix("torch.")
    settings = settings.replace(max_steps=steps, dtype=dtype)
    return config.replace(train=settings, device=str(here), threads=set_threads(config.threads)), assumed


def _here(config: TrainConfig, shape: ModelConfig, request: PlanRequest) -> tuple[Machine, Pace | None]:
    """This machine, and its pace where one may be measured."""
    device = torch.device(config.device)
    available = available_memory(device)
    title = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this machine ({config.device})"
    if device.type == "cpu":
        title = f"this machine ({config.threads} threads)"
    machine = Machine(
        title, device.type, available, request.count, watts=request.watts, price_per_hour=request.price_per_hour
    )
    fit = find_fit(config, shape, device.type, available, request.count)
    if not request.probe or not fit.largest:
        return machine, None
    settings = config.train
    rows = min(fit.rows, fit.largest)
    return machine, measure_pace(config.replace(train=settings.replace(micro_batch_size=rows)), shape, SECONDS)


def decide_steps(
    settings: LoopSettings, parameters: float, tokens: float | None, unique: int | None
) -> tuple[int, str | None]:
    """Steps of the run, and what was assumed to find them: given, as many as ``tokens`` takes, the epochs', or as many
    as the size deserves."""
    a_step = settings.batch_size * settings.context
    if tokens is not None:
        return max(1, math.ceil(tokens / a_step)), None
    if settings.max_steps is not None:
        return settings.max_steps, None
    if unique is not None:
        windows = max(1, (unique - 1) // settings.context)
        return max(1, math.ceil((settings.epochs or 1.0) * windows / settings.batch_size)), None
    wanted = TOKENS_A_PARAMETER * parameters
    return math.ceil(wanted / a_step), f"as many steps as {TOKENS_A_PARAMETER} tokens a parameter take"
