"""What a run will take, put together: size, arithmetic, data, memory, time and cost."""

import math
from dataclasses import dataclass

from langwright.core.config import Frozen
from langwright.model.config import ModelConfig
from langwright.model.flops import training_flops
from langwright.train.config import LoopSettings, TrainConfig
from langwright.train.planning.advice import Fit, find_fit
from langwright.train.planning.devices import Device
from langwright.train.planning.memory import MASTER, MOMENTS, count_weights
from langwright.train.planning.pace import Pace
from langwright.train.planning.scaling import BESIROGLU, worth_of

SAVE_RATE = 300e6
"""Bytes a second at which a checkpoint is hashed, written and flushed; an assumption about the disk."""
STATE_BYTES = MASTER
"""Bytes a weight of a checkpoint, beside those of the optimiser."""


@dataclass(frozen=True)
class Machine:
    """Where a run is planned for. ``memory`` is bytes free on each of ``count`` devices, None when nobody knows."""

    title: str
    kind: str
    memory: float | None
    count: int = 1
    rate: float | None = None
    """Operations a second at best; None where the time is measured."""
    mfu: float | None = None
    watts: float | None = None
    price_per_hour: float | None = None


class Size(Frozen):
    """Weights, and operations of a training step a token of a sequence."""

    parameters: int
    embeddings: int
    flops_per_token: float


class DataPlan(Frozen):
    """Tokens: what the run reads, what there is, and what the size deserves."""

    tokens: int
    steps: int
    tokens_per_step: int
    unique: int | None
    epochs: float | None
    worth: float | None
    """Fresh tokens that the repeated ones are worth."""
    optimal: float
    """Compute-optimal tokens for this size."""
    optimal_parameters: float
    """Compute-optimal size for this arithmetic."""


class MemoryPlan(Frozen):
    """Bytes at the fullest moment, on each device."""

    peak: int
    moment: str
    terms: dict[str, int]
    available: int | None
    fits: bool
    micro_batch: int
    """Sequences that go through the model at once on a device."""
    largest_micro_batch: int
    """The most that fit; 0 when not even one does."""
    sharded: bool
    """Whether weights, gradients and optimiser are divided over the devices."""


class TimePlan(Frozen):
    """Seconds of the whole run, and how they were found."""

    training: float
    validation: float
    saving: float
    step: float
    tokens_per_second: float
    measured: bool
    mfu: float | None
    """Share of the best rate: assumed, or None where it was measured and the best rate is not known."""

    @property
    def total(self) -> float:
        return self.training + self.validation + self.saving


class CostPlan(Frozen):
    """What that comes to. None where a rate is not known."""

    device_hours: float
    kilowatt_hours: float | None
    money: float | None


class Plan(Frozen):
    """Everything; ``advice`` is what to change, ``assumed`` is what was not given and not measured."""

    machine: str
    devices: int
    dtype: str
    size: Size
    flops: float
    data: DataPlan
    memory: MemoryPlan | None
    time: TimePlan | None
    cost: CostPlan | None
    advice: tuple[str, ...]
    assumed: tuple[str, ...]


def plan_run(
    config: TrainConfig,
    shape: ModelConfig,
    machine: Machine,
    *,
    unique_tokens: int | None = None,
    val_tokens: int | None = None,
    pace: Pace | None = None,
    assumed: tuple[str, ...] = (),
) -> Plan:
    """The plan of a run whose steps and dtype are decided, timed by ``pace`` where there is one, else by the table."""
    settings, weights = config.train, count_weights(shape)
    assert settings.max_steps is not None
    flops_per_token = training_flops(shape, settings.context)
    tokens = settings.max_steps * settings.batch_size * settings.context
    fit = find_fit(config, shape, machine.kind, machine.memory, machine.count, weights)
    time = _plan_time(settings, weights.total, machine, flops_per_token, tokens, val_tokens, pace)
    return Plan(
        machine=machine.title,
        devices=machine.count,
        dtype=settings.dtype,
        size=Size(parameters=weights.total, embeddings=weights.embeddings, flops_per_token=flops_per_token),
        flops=tokens * flops_per_token,
        data=plan_data(weights.total, tokens, tokens * flops_per_token, settings, unique_tokens),
        memory=_plan_memory(fit, machine),
        time=time,
        cost=plan_cost(time.total, machine) if time else None,
        advice=fit.advice,
        assumed=assumed,
    )


def plan_size(parameters: float, tokens: float, machine: Machine, assumed: tuple[str, ...] = ()) -> Plan:
    """A plan from two numbers alone: 6 N D operations (Kaplan et al. 2020), and the state that must fit somewhere."""
    flops = 6 * parameters * tokens
    seconds = flops / (machine.rate * machine.mfu * machine.count) if machine.rate and machine.mfu else None
    time = None
    if seconds is not None:
        rate, none = tokens / seconds, 0.0
        time = TimePlan(
            training=seconds,
            validation=none,
            saving=none,
            step=none,
            tokens_per_second=rate,
            measured=False,
            mfu=machine.mfu,
        )
    state = parameters * (MASTER * (2 + MOMENTS["adamw"]) + 2)
    advice = []
    if machine.memory:
        least = math.ceil(state / (0.8 * machine.memory))
        advice.append(
            f"weights, gradients and optimiser are {state / 1e9:,.0f} GB: at least {least:,} such devices to divide "
            f"them over, a fifth of each left for activations"
        )
    return Plan(
        machine=machine.title,
        devices=machine.count,
        dtype="bfloat16",
        size=Size(parameters=round(parameters), embeddings=0, flops_per_token=6 * parameters),
        flops=flops,
        data=plan_data(parameters, tokens, flops, None, None),
        memory=None,
        time=time,
        cost=plan_cost(time.total, machine) if time else None,
        advice=tuple(advice),
        assumed=("arithmetic is 6 operations a parameter and token; attention comes on top", *assumed),
    )


def plan_data(
    parameters: float, tokens: float, flops: float, settings: LoopSettings | None, unique: int | None
) -> DataPlan:
    """What the run reads beside what there is and what would be best."""
    a_step = settings.batch_size * settings.context if settings else 0
    return DataPlan(
        tokens=round(tokens),
        steps=settings.max_steps or 0 if settings else 0,
        tokens_per_step=a_step,
        unique=unique,
        epochs=tokens / unique if unique else None,
        worth=worth_of(tokens, unique) if unique else None,
        optimal=BESIROGLU.tokens_for(parameters),
        optimal_parameters=BESIROGLU.parameters_for(flops),
    )


def plan_cost(seconds: float, machine: Machine) -> CostPlan:
    """Hours of all devices together, and what they cost at the rates given."""
    hours = seconds / 3600 * machine.count
    return CostPlan(
        device_hours=hours,
        kilowatt_hours=hours * machine.watts / 1000 if machine.watts else None,
        money=hours * machine.price_per_hour if machine.price_per_hour else None,
    )


def machine_of(device: Device, count: int, mfu: float | None, watts: float | None, price: float | None) -> Machine:
    """A device of the table; planned in bfloat16 where it has it."""
    dtype = "bfloat16" if device.bfloat16 else "float32"
    # A GPU's libraries and the gaps between torch's blocks take their share.
    usable = (
        device.memory * 0.95 - 1e9 if device.kind == "cuda" else device.memory * (0.9 if device.kind == "cpu" else 0.75)
    )
    return Machine(
        device.title,
        device.kind,
        usable,
        count,
        device.best_rate(dtype),
        mfu or device.mfu,
        watts or device.watts,
        price,
    )


def _plan_memory(fit: Fit, machine: Machine) -> MemoryPlan:
    peak = fit.use.peak
    return MemoryPlan(
        peak=peak.bytes,
        moment=peak.name,
        terms=peak.terms,
        available=None if machine.memory is None else round(machine.memory),
        fits=fit.fits,
        micro_batch=fit.rows,
        largest_micro_batch=fit.largest,
        sharded=fit.shards > 1,
    )


def _plan_time(
    settings: LoopSettings,
    parameters: int,
    machine: Machine,
    flops_per_token: float,
    tokens: float,
    val_tokens: int | None,
    pace: Pace | None,
) -> TimePlan | None:
    assert settings.max_steps is not None
    if pace is None and (machine.rate is None or machine.mfu is None):
        return None
    a_step = settings.batch_size * settings.context
    if pace is not None:
        step = pace.step(settings.batch_size)
        scoring = pace.validation
    else:
        assert machine.rate is not None
        assert machine.mfu is not None
        step = a_step * flops_per_token / (machine.rate * machine.mfu * machine.count)
        # Validation is a forward, a third of the work, on one device, in float32, which few kernels are made for.
        scoring = flops_per_token / 3 / (machine.rate * machine.mfu / 4)
    scored = min(settings.eval_tokens or math.inf, val_tokens or settings.eval_tokens or 0)
    times = 2 + (settings.max_steps - 1) // settings.eval_every if settings.eval_every else 2
    saves = 1 + (settings.max_steps - 1) // settings.save_every if settings.save_every else 1
    state = parameters * (STATE_BYTES + MASTER * MOMENTS[settings.optimiser])
    training = settings.max_steps * step
    return TimePlan(
        training=training,
        validation=times * scored * scoring,
        saving=saves * state / SAVE_RATE,
        step=step,
        tokens_per_second=a_step / step,
        measured=pace is not None,
        mfu=machine.mfu if pace is None else (a_step * flops_per_token / step / machine.rate if machine.rate else None),
    )
