"""Small ``.onnx`` files with all that is read of one of ours, written without tracing a network."""

import json

import numpy as np

from models.calibration import Calibration
from models.classes import ClassList, DecisionRules
from models.description import ModelDescription
from tests.conftest import TINY_CLASSES, TINY_FRONTEND, tiny_config
from utils.networks.conversions import EMBEDDINGS, FORMAT_VERSION, INPUT, KIND, LOGITS, METADATA_KEY, PROBABILITIES

DESCRIPTION = ModelDescription(
    path="model/best.pth", sha256="0123456789abcdef" * 4, model_name="efficientnet-b0",
    config=tiny_config(frontend=TINY_FRONTEND), frontend=TINY_FRONTEND, classes=ClassList(TINY_CLASSES),
    calibration=Calibration(1.5, (0.1, 0.0, -0.2, 0.0)), n_parameters=128,
    rules=DecisionRules({name: 0.5 + 0.05 * number for number, name in enumerate(TINY_CLASSES)}, "unknown"),
    metadata={"epoch": 3, "scores": {"macro_f1": 0.5}, "allow_leakage": False})


def mix():
    """Return what makes logits of the means of bands: each class hears a quarter of them."""
    n_classes = len(TINY_CLASSES)
    return np.repeat(np.eye(n_classes, dtype=np.float32), TINY_FRONTEND.n_mels // n_classes, axis=0) / 80


def logits_by_hand(log_mels):
    return log_mels.mean(axis=2) @ mix()


def metadata(description=DESCRIPTION, *, precision="float32", **changes):
    return {"kind": KIND, "format_version": FORMAT_VERSION, "model": description.to_dict(), "library": "onnx",
            "precision": precision, "compared": {"n_windows": 4}, **changes}


def write_onnx(path, content=None):
    """Write a network that hears the mean of each band; ``content`` is what stands in its metadata, text as it is."""
    import onnx  # late: whoever uses this file skips where it is missing
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor, make_tensor_value_info
    number = onnx.TensorProto.FLOAT
    nodes = [make_node("ReduceMean", [INPUT], [EMBEDDINGS], axes=[2], keepdims=0),
             make_node("MatMul", [EMBEDDINGS, "mix"], [LOGITS]),
             make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1)]
    outputs = [(LOGITS, len(TINY_CLASSES)), (PROBABILITIES, len(TINY_CLASSES)), (EMBEDDINGS, TINY_FRONTEND.n_mels)]
    graph = make_graph(
        nodes, "bands", [make_tensor_value_info(INPUT, number, ["n", TINY_FRONTEND.n_mels, TINY_FRONTEND.n_frames])],
        [make_tensor_value_info(name, number, ["n", size]) for name, size in outputs],
        [make_tensor("mix", number, mix().shape, mix().ravel())])
    model = make_model(graph, ir_version=8, opset_imports=[make_opsetid("", 13)])
    content = metadata() if content is None else content
    if content != "":
        text = content if isinstance(content, str) else json.dumps(content)
        model.metadata_props.add(key=METADATA_KEY, value=text)
    onnx.save(model, path)
    return path
