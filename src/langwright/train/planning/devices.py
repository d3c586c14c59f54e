"""Machines that are planned for without being at hand."""

from functools import cache
from importlib.resources import as_file, files
from typing import Literal

from pydantic import Field

from langwright.core.config import Frozen, read_toml
from langwright.core.errors import UserError


class Device(Frozen):
    """What is known of a machine; see ``devices.toml``."""

    name: str
    title: str
    kind: Literal["cpu", "cuda", "mps"]
    bfloat16: float | None = Field(default=None, gt=0)
    """Operations a second at best; None: not in hardware."""
    float32: float = Field(gt=0)
    memory: float = Field(gt=0)
    """Bytes."""
    watts: float = Field(gt=0)
    mfu: float = Field(gt=0, le=1)
    """Share of the best rate that training is assumed to reach."""
    source: str

    def best_rate(self, dtype: str) -> float:
        """Operations a second at best in ``dtype``; bfloat16 that is not in hardware is no faster than float32."""
        return self.bfloat16 or self.float32 if dtype == "bfloat16" else self.float32


@cache
def known_devices() -> dict[str, Device]:
    """Every device of the table, by name."""
    with as_file(files("langwright.train.planning") / "devices.toml") as path:
        return {
            name: Device.parse({"name": name} | values, f"{path}: {name}") for name, values in read_toml(path).items()
        }


def find_device(name: str) -> Device:
    """The device of that name; raises `UserError` naming those there are."""
    devices = known_devices()
    if name.lower() not in devices:
        raise UserError(
            f"device {name!r} is not in the table; use {', '.join(devices)}, or leave --device out to measure here"
        )
    return devices[name.lower()]
