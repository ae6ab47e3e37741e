"""The rules of the house that a reader of the code can rely on, read from the code itself."""

import ast
import functools
import sys

import pytest

from tests.conftest import PROJECT

PACKAGES = ("models", "utils", "scripts")
ALLOWED = {"models": {"models"}, "utils": {"models", "utils"}, "scripts": {"models", "utils", "scripts"}}
DRAWING = {"matplotlib", "seaborn"}
FILE_MODULES = {"os", "pathlib", "io", "shutil", "tempfile", "soundfile", "pydub", "csv", "pickle", "pandas"}
FILE_CALLS = {"open", "np.save", "np.load", "np.savez", "np.loadtxt", "np.genfromtxt", "np.fromfile", "np.memmap",
              "torch.save", "torch.load", "librosa.load", "torchaudio.load", "Path"}
LATE_IMPORTS = {"utils/cli.py": {"from tqdm import tqdm"}}  # --help must not wait for it
FILES = sorted(path for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))


def name_of(path):
    return path.relative_to(PROJECT).as_posix()


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path):
    """Return the dotted names of everything a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def top_level(modules):
    return {module.split(".")[0] for module in modules}


def called_names(path):
    return {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}


def files_of(*packages):
    return [path for path in FILES if path.relative_to(PROJECT).parts[0] in packages]


def test_the_project_is_found():
    assert {path.relative_to(PROJECT).parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_from_scripts_to_utils_to_models(path):
    package = path.relative_to(PROJECT).parts[0]
    own = top_level(imported_modules(path)) & {*PACKAGES, "tests"}
    assert own <= ALLOWED[package]


def test_no_module_imports_itself_in_a_circle():
    modules = {name_of(path)[:-3].replace("/", "."): imported_modules(path) for path in FILES}
    waiting = {name: imports & set(modules) for name, imports in modules.items()}
    while free := [name for name, imports in waiting.items() if not imports]:
        waiting = {name: imports - set(free) for name, imports in waiting.items() if name not in free}
    assert sorted(waiting) == []


@pytest.mark.parametrize("name", ["models/efficientnet_config.py", "models/errors.py", "models/__init__.py"])
def test_the_configuration_needs_the_standard_library_only(name):
    modules = imported_modules(PROJECT / name)
    assert top_level(modules) <= {*sys.stdlib_module_names, "models"}
    assert {module for module in modules if module.startswith("models")} <= {
        "models", "models.errors", "models.errors.ConfigError"}


def test_pictures_are_drawn_in_one_place():
    drawing = {name_of(path) for path in FILES if top_level(imported_modules(path)) & DRAWING}
    assert drawing == {"utils/reports.py"}


@pytest.mark.parametrize("path", files_of("models", "utils"), ids=name_of)
def test_nothing_is_printed_below_the_scripts(path):
    assert not called_names(path) & {"print", "sys.stdout.write", "sys.stderr.write"}


@pytest.mark.parametrize("path", files_of("models"), ids=name_of)
def test_models_touch_no_files(path):
    assert not top_level(imported_modules(path)) & FILE_MODULES
    assert not called_names(path) & FILE_CALLS


@pytest.mark.parametrize("path", files_of("models", "utils"), ids=name_of)
def test_imports_stand_at_the_top(path):
    inside = {module for function in ast.walk(tree_of(path)) if isinstance(function, (ast.FunctionDef, ast.ClassDef))
              for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))
              for module in [ast.unparse(node)]}
    assert inside <= LATE_IMPORTS.get(name_of(path), set())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_error_is_caught_by_its_root(path):
    caught = [ast.unparse(node.type) if node.type else "everything" for node in ast.walk(tree_of(path))
              if isinstance(node, ast.ExceptHandler)]
    assert not {"everything", "Exception", "BaseException"} & set(caught)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_randomness_comes_from_global_generators(path):
    drawn_by = {name.partition("(")[0] for name in called_names(path)}
    global_draws = {name for name in drawn_by if name.startswith(("np.random.", "random."))}
    assert global_draws <= {"np.random.default_rng", "np.random.SeedSequence", "np.random.Generator"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_recordings_are_never_decoded_by_torchaudio(path):
    assert "torchaudio.load" not in called_names(path)
