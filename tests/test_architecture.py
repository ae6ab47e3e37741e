"""The rules of the house that a reader of the code can rely on, read from the code itself."""

import ast
import functools
import sys

import pytest

from tests.conftest import PROJECT

PACKAGES = ("models", "utils", "scripts")
# a room is a folder of utils/, or a group of files that belong together; every file of utils/ is in exactly one
FILES_OF_ROOMS = {"utils/training_utils.py": "training", "utils/cross_validation.py": "training",
                  "utils/metrics.py": "metrics", "utils/tallies.py": "metrics",
                  "utils/reports.py": "reports", "utils/pages.py": "pages",
                  "utils/examples.py": "examples"}
GROUND = {"audio", "storage", "networks", "running", "metrics", "reports", "pages", "examples"}
STAGES = {"preparation", "training", "prediction", "evaluation", "demo"}
# who may import whom, as architecture draws it: stages stand on the ground, evaluation scores through prediction
EDGES = {
    "models": set(),
    **dict.fromkeys(("preparation", "training", "prediction", "demo"), {"models", *GROUND}),
    "evaluation": {"models", "prediction", *GROUND},
    "scripts": {"models", *GROUND, *STAGES},
    # the ground has floors of its own, so that no two of its rooms lean on each other
    "running": {"models"}, "metrics": {"models"}, "audio": {"models", "storage"}, "storage": {"models"},
    "networks": {"models", "running", "storage"}, "pages": {"models", "storage"},
    "reports": {"models", "metrics", "pages", "storage"},
    "examples": {"models", "audio", "pages", "reports", "storage"},
}
DRAWING = {"matplotlib", "seaborn"}
FILE_MODULES = {"os", "pathlib", "io", "shutil", "tempfile", "soundfile", "pydub", "csv", "pickle", "pandas"}
FILE_CALLS = {"open", "np.save", "np.load", "np.savez", "np.loadtxt", "np.genfromtxt", "np.fromfile", "np.memmap",
              "torch.save", "torch.load", "librosa.load", "torchaudio.load", "Path"}
LATE_IMPORTS = {
    "utils/running/cli.py": {"from tqdm import tqdm"},  # --help must not wait for it
    "utils/running/cluster.py": {"import distributed",  # an extra
                                 "from utils.running.cluster_worker import perform"},  # in a worker
    # torchvision takes more than a second, and only ResNet18 is worth it
    "models/efficientnet.py": {"from torchvision.models import resnet18"},
    "utils/storage/checkpoints.py": {"from torchvision.models import ResNet18_Weights"},
    "models/calibration.py": {"from scipy import optimize"},  # only training fits
    "utils/audio/ffmpeg.py": {"from pydub import AudioSegment"},  # most recordings need no ffmpeg
    "utils/networks/teachers.py": {"import onnxruntime"},  # only distillation hears one
    # each library only where it applies the network: PyTorch takes longer to load than a short recording to score
    "utils/networks/opening.py": {"from utils.storage.checkpoints import load_model",
                                  "from utils.running.devices import resolve_device",
                                  "from utils.networks.onnx_backends import open_converted",
                                  "from utils.networks.torch_backend import TorchBackend",
                                  "from utils.networks.export import ConvertingBackend"},
    "utils/networks/onnx_backends.py": {"import onnxruntime", "import openvino"},
    "utils/networks/conversions.py": {"import onnxruntime",
                                      "from onnxruntime.capi import onnxruntime_pybind11_state as errors"},
    "utils/networks/export.py": {"import onnx", "from onnxruntime import quantization"},
    "utils/prediction/conversion.py": {"from utils.networks.export import convert",
                                       "from utils.storage.checkpoints import load_model"},
    "utils/prediction/outputs.py": {"import pyarrow", "from pyarrow import parquet"},  # an extra
    "utils/evaluation/peak.py": {"import resource"},  # it is not there on Windows
    "utils/reports.py": {"import seaborn"},  # half a second, for one of the pictures
    # torch, scikit-learn and matplotlib: while they load, no recording is worked on
    "utils/preparation/run.py": {"from models.data_augmentation import AudioAugmentationPipeline",
                                 "from utils.preparation.augmented_copies import"
                                 " augment_all, background_pool, plan_copies",
                                 "from utils.preparation.audit_files import write_audit",
                                 "import utils.preparation.audit_files"},
    "utils/preparation/dataset.py": {"from utils.preparation.audit import audit",
                                     "from utils.reports import plot_overview"},
}
# where whatever a decoder raises is that file's, and whatever work raises is handed to the process that asked for it
CATCHING_EVERYTHING = {"utils/audio/streams.py", "utils/running/parallel.py", "utils/running/cluster.py",
                       "utils/running/cluster_worker.py"}
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


def room_of(module):
    """Return the room of a module's dotted name; None for the bare package ``utils`` and what is not ours."""
    package, _, rest = module.partition(".")
    if package in ("models", "scripts"):
        return package
    name = rest.partition(".")[0]
    return FILES_OF_ROOMS.get(f"utils/{name}.py", name) if package == "utils" and name not in ("", "__init__") else None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms_import_only_the_rooms_they_stand_on(path):
    modules = imported_modules(path)
    assert "tests" not in top_level(modules)
    room = room_of(name_of(path)[:-3].replace("/", "."))
    rooms = {room_of(module) for module in modules} - {None, room}
    assert rooms <= EDGES.get(room, set())


def test_every_file_of_utils_is_in_a_known_room():
    rooms = {room_of(name_of(path)[:-3].replace("/", ".")) for path in files_of("utils")} - {None}
    assert rooms == GROUND | STAGES


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
    assert not {"everything", "BaseException"} & set(caught)
    assert "Exception" not in caught or name_of(path) in CATCHING_EVERYTHING


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_randomness_comes_from_global_generators(path):
    drawn_by = {name.partition("(")[0] for name in called_names(path)}
    global_draws = {name for name in drawn_by if name.startswith(("np.random.", "random."))}
    assert global_draws <= {"np.random.default_rng", "np.random.SeedSequence", "np.random.Generator"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_recordings_are_never_decoded_by_torchaudio(path):
    assert "torchaudio.load" not in called_names(path)
