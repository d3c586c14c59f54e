"""Several documents in one row, none of which sees another."""

import numpy as np


def number_documents(ids: np.ndarray, opener: int) -> np.ndarray:
    """Which document of its row each of ``ids`` (B, T) belongs to, from 0, (B, T) int64: each begins at an ``opener``.

    For a left-to-right model that is the end-of-text id. As a target it ends the document before it; as an input it
    does nothing but open the one after it, as it does at the start of the stream and for a model that writes from
    nothing. So no target is lost, and none is predicted from another document.
    """
    numbers = np.cumsum(ids == opener, axis=1, dtype=np.int64)
    return numbers - numbers[:, :1]
