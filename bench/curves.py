"""Draws validation curves: ``python -m bench.curves OUT.png LABEL=RUN [LABEL=RUN ...]``."""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def read(run: Path) -> tuple[list[int], list[float], list[int], list[float]]:
    """Steps and bits per byte of the validations, steps and training losses of a run's ``metrics.jsonl``."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evals = [row for row in rows if row["event"] == "eval"]
    steps = [row for row in rows if row["event"] == "step"]
    return (
        [row["step"] for row in evals],
        [row["val_bpb"] for row in evals],
        [row["step"] for row in steps],
        [row["loss"] for row in steps],
    )


def draw(out: Path, runs: dict[str, Path]) -> None:
    """Two panels: validation bits per byte, and training loss, over steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for label, run in runs.items():
        at, bpb, steps, losses = read(run)
        left.plot(at, bpb, marker="o", markersize=3, label=f"{label}: {bpb[-1]:.3f}")
        right.plot(steps, losses, linewidth=0.9, label=label)
    left.set(title="validation, bits per byte", xlabel="step", ylim=(0, None))
    right.set(title="training loss, nats a token", xlabel="step", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), {label: Path(run) for label, _, run in (word.partition("=") for word in sys.argv[2:])})
