"""The rules of the house: imports run downward, files stay small, nothing unsafe is called."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "langwright"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the top of the house down; packages of one row never import each other.
ROWS = [
    {"cli"},
    {"serve"},
    {"apps", "eval", "interp"},
    {"train"},
    {"infer"},
    {"data"},
    {"model", "tokenizer"},
    {"core"},
]
ROW_OF = {name: number for number, row in enumerate(ROWS) for name in row}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def imports(path: Path) -> set[str]:
    """Every module of our own that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import; write the whole name"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("langwright.")}


def identify(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_walls_are_looked_at() -> None:
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_imports_run_downward(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0]
    if layer.endswith(".py"):
        return  # the package's own face
    assert layer in ROW_OF, f"{layer} has no place in the house; add it to the design first"
    for name in imports(path):
        other = name.split(".")[1]
        if other == layer or other not in ROW_OF:
            continue
        assert ROW_OF[other] > ROW_OF[layer], f"{layer} may not import {name}"


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "bench").rglob("*.py"))], ids=identify
)
def test_files_stay_small_and_well_named(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
    assert path.stem not in FORBIDDEN_NAMES


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "eval", "exec", "os.system", "yaml.load"}, f"{called} in {path.name}"
            shell = [keyword for keyword in node.keywords if keyword.arg == "shell"]
            assert not shell, f"a shell is started in {path.name}"


def test_core_and_cli_start_without_torch() -> None:
    """`langwright --help` must not wait for torch, nor for the modules of the verbs."""
    for path in (PACKAGE / "__init__.py", PACKAGE / "cli" / "main.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        heavy = {"torch", "numpy", "pydantic", "transformers", "langwright.infer", "langwright.train"}
        for node in top:
            names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not any(name.split(".")[0] in heavy or name in heavy for name in names)


def test_public_things_say_what_they_are() -> None:
    """Every public module, class and function of the package has a docstring."""
    silent = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if not ast.get_docstring(tree):
            silent.append(identify(path))
        public = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
        silent += [
            f"{identify(path)}:{node.name}"
            for node in public
            if not node.name.startswith("_") and not ast.get_docstring(node)
        ]
    assert not silent
