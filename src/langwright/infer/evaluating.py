"""Evaluation mode for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from langwright.model.model import Model


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Switch dropout off, and back to what it was afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
