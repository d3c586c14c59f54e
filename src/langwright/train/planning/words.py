"""A plan in plain words, a line at a time."""

from langwright.train.planning.advice import gigabytes
from langwright.train.planning.plan import DataPlan, MemoryPlan, Plan, TimePlan
from langwright.train.planning.scaling import OVERTRAINED, SMALLEST_FITTED

WIDTH = 10
"""Of the names on the left."""


def plan_lines(plan: Plan) -> list[str]:
    """What `langwright plan` prints."""
    devices = f"{plan.devices:,} x {plan.machine}" if plan.devices > 1 else plan.machine
    lines = [
        _row("model", f"{plan.size.parameters:,} parameters, {_si(plan.size.flops_per_token)}FLOPs a token"),
        _row("work", f"{plan.flops:.3g} FLOPs on {devices}, {plan.dtype}"),
        *_data_lines(plan.data, plan.size.parameters),
        *(_memory_lines(plan.memory, plan.devices) if plan.memory else []),
        *(
            _time_lines(plan.time)
            if plan.time
            else [_row("time", "not known: measure here (no --no-probe), or name a --device")]
        ),
    ]
    if plan.cost:
        told = [f"{_figures(plan.cost.device_hours)} device-hours"]
        if plan.cost.kilowatt_hours is not None:
            told.append(f"{_figures(plan.cost.kilowatt_hours)} kWh")
        if plan.cost.money is not None:
            told.append(f"{plan.cost.money:,.2f} at the price given")
        lines.append(_row("cost", ", ".join(told)))
    lines += [_row("change" if not number else "", text) for number, text in enumerate(plan.advice)]
    lines += [_row("assumed" if not number else "", text) for number, text in enumerate(plan.assumed)]
    return lines


def clock(seconds: float) -> str:
    """``42 s``, ``12 min``, ``3.4 h``, ``21 days``, ``3.2 years``: two figures that a person can use."""
    for size, unit, below in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172_800), (86_400, "days", 63_072_000)):
        if seconds < below:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 31_536_000:,.3g} years"


def _data_lines(data: DataPlan, parameters: int) -> list[str]:
    ratio = data.tokens / parameters
    steps = f" in {data.steps:,} steps of {data.tokens_per_step:,}" if data.steps else ""
    lines = [_row("tokens", f"{data.tokens:,}{steps}; {ratio:,.3g} a parameter")]
    if data.unique and data.epochs:
        told = f"{data.unique:,} different ones, {data.epochs:.2f} passes"
        if data.epochs > 1 and data.worth:
            told += f", worth {_count(data.worth)} fresh ones (Muennighoff et al. 2023)"
        lines.append(_row("", told))
    share = data.tokens / data.optimal
    verdict = f"{share:.2g} of that" if share < 0.8 else f"{share:,.0f} times that" if share > 2 else "about that"
    lines.append(
        _row(
            "",
            f"compute-optimal for this size: {_count(data.optimal)} tokens, {data.optimal / parameters:.0f} "
            f"a parameter (Besiroglu et al. 2024); the run has {verdict}",
        )
    )
    lines.append(_row("", f"the best size for this work: {_count(data.optimal_parameters)} parameters"))
    if share > 1.25:
        name, most = max(OVERTRAINED.items(), key=lambda item: item[1])
        lines.append(
            _row("", f"more than optimal makes a small model better still: {name} had {most:,.0f} a parameter")
        )
    if parameters < SMALLEST_FITTED:
        lines.append(_row("", f"below {SMALLEST_FITTED / 1e6:.0f} M parameters the law is an extrapolation"))
    return lines


def _memory_lines(memory: MemoryPlan, devices: int) -> list[str]:
    each = "a device" if devices > 1 else "in all"
    there = f" of {gigabytes(memory.available)} free" if memory.available is not None else ""
    verdict = "" if memory.available is None else ", fits" if memory.fits else ", DOES NOT FIT"
    lines = [_row("memory", f"{gigabytes(memory.peak)} {each}{there}{verdict} (fullest: {memory.moment})")]
    ordered = sorted(memory.terms.items(), key=lambda item: -item[1])
    lines += [_row("", f"{gigabytes(size):>9}  {name}") for name, size in ordered if size >= 0.005 * memory.peak]
    more = memory.largest_micro_batch != memory.micro_batch
    most = f"; at most {memory.largest_micro_batch} would fit" if more and memory.available is not None else ""
    lines.append(_row("", f"{memory.micro_batch} sequences go through at once{most}"))
    return lines


def _time_lines(time: TimePlan) -> list[str]:
    how = "measured here" if time.measured else "by the table"
    lines = [_row("time", f"{clock(time.total)} ({how}): {time.tokens_per_second:,.0f} tokens/s")]
    if time.step:
        lines[0] += f", {time.step:.3g} s a step"
        lines.append(
            _row(
                "",
                f"training {clock(time.training)}, validation {clock(time.validation)}, saving {clock(time.saving)}; "
                f"start-up not counted",
            )
        )
    return lines


def _figures(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def _row(name: str, text: str) -> str:
    return f"{name:<{WIDTH}}{text}"


def _si(number: float) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= factor:
            return f"{number / factor:,.3g} {prefix}" if number < 999 * factor else f"{number / factor:,.0f} {prefix}"
    return f"{number:,.0f} "


def _count(number: float) -> str:
    for factor, name in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if number >= factor:
            return f"{number / factor:,.3g}{name}"
    return f"{number:,.0f}"
