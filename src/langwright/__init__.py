"""Langwright: make, adapt, judge, explain and serve language models.

    import langwright as lw
    lm = lw.load("smollm2-135m-instruct")
    print(lm.generate([{"role": "user", "content": "Why is the sky blue?"}]).text)

Importing the package imports nothing else; torch comes with the first use of `load` or `LM`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langwright.infer.lm import LM, load

__version__ = "0.1.0"
__all__ = ["LM", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("LM", "load"):
        from langwright.infer import lm

        return getattr(lm, name)
    raise AttributeError(f"module 'langwright' has no attribute {name!r}")
