"""Where a chat template runs: jinja2's immutable sandbox with an allow-list, a clock and a limit on what it may make.

A template comes with a model, so it is somebody else's program (CVE-2026-5760 is what happens without a sandbox). Three
things hold it:

- names: only the methods, filters and functions listed here and in `template_library` exist;
- size: every value that the template makes is measured, and whatever could multiply text is checked before it is made;
- time: the thread's CPU clock is read at every loop turn, call, filter, operator and attribute, and what runs between
  two readings is short because sizes are bounded.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import wraps
from itertools import islice
from typing import Any

from jinja2 import Template, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from langwright.tokenizer import template_library
from langwright.tokenizer.provenance import MAX_ITEMS, Marked, TemplateLimit, joined, tracked

MAX_SOURCE_CHARS = 100_000
MAX_MADE = 32_000_000
"""Characters that one rendering may make in all, with `OVERHEAD` for each string and item."""
OVERHEAD = 32
MAX_INT_BITS = 4096

ATTRIBUTES: dict[type, frozenset[str]] = {
    str: frozenset(
        "startswith endswith strip lstrip rstrip removeprefix removesuffix split rsplit splitlines replace join upper"
        " lower title capitalize find rfind index rindex count isdigit isdecimal isnumeric isalpha isalnum isspace"
        " isupper islower istitle isascii".split()
    ),
    dict: frozenset("get items keys values".split()),
    list: frozenset("index count".split()),
    tuple: frozenset("index count".split()),
    LoopContext: frozenset(
        "index index0 revindex revindex0 first last length previtem nextitem depth depth0 cycle changed".split()
    ),
}
REFUSED = (
    nodes.Block,
    nodes.Extends,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.EvalContextModifier,  # autoescape would turn text into jinja2's Markup, which drops the authors
)


class Generation(Extension):
    """``{% generation %} ... {% endgeneration %}`` holds what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

    def parse(self, parser: Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_spoken"), [], [], body, lineno=line)

    def _spoken(self, caller: Callable[[], Marked]) -> Marked:
        return caller().spoken()


class Metered:
    """What a ``for`` runs over, reading the clock at every turn."""

    def __init__(self, items: Iterable[Any], check: Callable[[], None]):
        self._items = items
        self._check = check

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._check()
            yield item

    def __len__(self) -> int:
        if not isinstance(self._items, Sized):
            raise TypeError("it has no length")
        return len(self._items)


class _Meter(NodeTransformer):
    """Puts a filter of ours where the compiler would emit bare Python that no hook sees."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not offered", node.lineno)
        node.iter = nodes.Filter(node.iter, "#each", [], [], None, None, lineno=node.lineno)
        return node

    def visit_List(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filtered("#made", node)

    visit_Tuple = visit_Dict = visit_List

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered("join", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered("#cut", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        self.generic_visit(node)
        node.expr = _filtered("#compared", node.expr)
        return node

    def visit_NSRef(self, node: nodes.NSRef) -> nodes.Node:
        if node.attr.startswith("_"):
            raise TemplateSyntaxError("a namespace holds no names that begin with an underscore", node.lineno)
        return node


def _filtered(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one template; one rendering at a time."""

    intercepted_binops = frozenset("+ - * / // % **".split())
    concat = staticmethod(joined)  # type: ignore[assignment]

    def __init__(self) -> None:
        # optimized=False: nothing is computed while compiling, where no clock runs
        extensions = [loopcontrols, Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=extensions)
        self._deadline = 0.0
        self._made = 0
        filters = {name: self.filters[name] for name in template_library.FROM_JINJA} | template_library.FILTERS
        filters["#made"] = lambda value: value
        self.filters = {name: self._guarded(function) for name, function in filters.items()}
        self.filters["#each"] = lambda value: value if isinstance(value, Undefined) else Metered(value, self.check)
        self.filters["#cut"] = self._cut
        self.filters["#compared"] = self._timed(lambda value: value)
        self.tests = {name: self._timed(function) for name, function in self.tests.items()}
        self.globals = dict(template_library.GLOBALS)
        self.finalize = pass_context(lambda _, value: self.measured(template_library.to_text(value)))

    def load(self, source: str) -> Template:
        """Compile a template; raises jinja2's syntax errors, and whatever Python's compiler says to a monster."""
        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateLimit(f"a source of more than {MAX_SOURCE_CHARS:,} characters")
        tree = self.parse(source)
        for node in tree.find_all(REFUSED):
            raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not offered", node.lineno)
        tree = _Meter().visit(tree)
        tree.set_environment(self)
        return self.template_class.from_code(self, self.compile(tree), self.globals, None)

    def render(self, template: Template, variables: dict[str, Any], cpu_seconds: float) -> Marked:
        """Render in at most ``cpu_seconds`` of this thread's time; raises `TemplateLimit`, and what jinja2 raises."""
        self._deadline = time.thread_time() + cpu_seconds
        self._made = 0
        return tracked(template.render(variables))

    def check(self) -> None:
        """Raise `TemplateLimit` when the time is up."""
        if time.thread_time() > self._deadline:
            raise TemplateLimit("it computes too long")

    def measured(self, value: Any) -> Any:
        """``value`` after paying for it; lazy results become lists. Raises `TemplateLimit`."""
        self.check()
        if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise TemplateLimit("a huge number")
        if not isinstance(value, str | list | tuple | dict | range | Undefined | Namespace) and isinstance(
            value, Iterable
        ):
            value = list(islice(value, MAX_ITEMS + 1))
        return self._pay(value, len(value) if isinstance(value, str) else OVERHEAD * _count_items(value))

    def _pay(self, value: Any, price: int) -> Any:
        self._made += price + OVERHEAD
        if self._made > MAX_MADE:
            raise TemplateLimit("it makes too much text")
        return value

    def _cut(self, value: Any) -> Any:
        """A slice: its items stand elsewhere already, but the row of them is new."""
        self.check()
        return self._pay(value, len(value) * (1 if isinstance(value, str) else OVERHEAD))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            self.check()
            return function(*arguments, **named)

        return timed

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        subject = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)  # it carries jinja2's mark for a first argument that jinja2 itself passes
        def guarded(*arguments: Any, **named: Any) -> Any:
            self.check()
            given = [*arguments[:subject], _tracked(arguments[subject]), *arguments[subject + 1 :]]
            return self.measured(function(*given, **named))

        return guarded

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.check()
        result = __self.measured(super().call(__context, __obj, *args, **kwargs))
        given = [*args, *kwargs.values()]
        if type(result) is str and any(isinstance(value, Marked) for value in given):
            return Marked(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.check()
        left, right = _tracked(left), _tracked(right)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not offered")
        if operator == "*":
            _check_repeats(left, right)
        if operator == "**":
            _check_power(left, right)
        return self.measured(super().call_binop(context, operator, left, right))

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.check()
        return super().getattr(_tracked(obj), attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.check()
        return super().getitem(_tracked(obj), argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(attr in allowed for kind, allowed in ATTRIBUTES.items() if isinstance(obj, kind))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(
            f"{attribute!r} of a {'str' if isinstance(obj, str) else type(obj).__name__} is not offered"
        )

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is refused like every method that is not listed."""


def _tracked(value: Any) -> Any:
    return tracked(value) if isinstance(value, str) else value


def _count_items(value: Any) -> int:
    """Items in a container at every depth, those that stand in it twice counted twice; raises `TemplateLimit`."""
    count, pending = 0, [value]
    while pending:
        item = pending.pop()
        count += 1
        if isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            pending += item
        elif item is not value and not isinstance(item, str | int | float | None | Undefined | range):
            raise SecurityError(f"a {type(item).__name__} cannot stand in a list")
        if count + len(pending) > MAX_ITEMS:
            raise TemplateLimit(f"more than {MAX_ITEMS:,} items")
    return count


def _check_repeats(left: Any, right: Any) -> None:
    for items, times in ((left, right), (right, left)):
        if isinstance(items, list | tuple) and isinstance(times, int) and max(len(items), 1) * times > MAX_ITEMS:
            raise TemplateLimit(f"more than {MAX_ITEMS:,} items")


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MAX_INT_BITS:
        raise TemplateLimit("a huge number")
