"""Make the two tiny teachers of this folder again: ``make_teachers.py FOLDER``; needs the package onnx.

One hears waveforms with four filters of eight samples, steep from low to high, and says how much passes each; the other
hears log-mels and says the mean of each band.
"""

import sys
from pathlib import Path

FILTERS = ((1, 1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 1, -1, -1, -1, -1), (1, 1, -1, -1, 1, 1, -1, -1),
           (1, -1, 1, -1, 1, -1, 1, -1))
MIX = ((1, -1, 0), (0, 1, -1), (-1, 0, 1), (1, 1, 1))  # from the four levels to three tags


def save(path, nodes, *, given, wanted, weights=()):
    """Write a graph; the same bytes each time."""
    import onnx  # late: the tests read FILTERS and MIX without it
    from onnx import helper
    float_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info(name, float_type, shape) for name, shape in given],
        [helper.make_tensor_value_info(name, float_type, shape) for name, shape in wanted],
        [helper.make_tensor(name, kind, shape, values) for name, kind, shape, values in weights])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), path)


def main(folder):
    """Write both."""
    from onnx import TensorProto
    from onnx.helper import make_node as node
    float_type = TensorProto.FLOAT
    save(folder / "tiny_waveform.onnx", [
        node("Unsqueeze", ["waveform", "one"], ["channels"]),
        node("Conv", ["channels", "haar"], ["bands"], strides=[4]),
        node("Abs", ["bands"], ["levels"]),
        node("ReduceMean", ["levels"], ["embedding"], axes=[2], keepdims=0),
        node("MatMul", ["embedding", "mix"], ["tags"]),
        node("Squeeze", ["embedding"], ["dropped"]),  # without a first axis where there is one window
        node("ReduceMean", ["embedding"], ["mean"], axes=[0], keepdims=1),  # of all windows
        node("Log", ["tags"], ["logs"]),  # not finite for silence
    ], given=[("waveform", ["n", "t"])],
        wanted=[("embedding", ["n", 4]), ("tags", ["n", 3]), ("dropped", None), ("mean", [1, 4]), ("logs", ["n", 3])],
        weights=[("one", TensorProto.INT64, [1], [1]), ("haar", float_type, [4, 1, 8], sum(FILTERS, ())),
                 ("mix", float_type, [4, 3], sum(MIX, ()))])
    save(folder / "tiny_log_mel.onnx", [node("ReduceMean", ["log_mel"], ["embedding"], axes=[1, 3], keepdims=0)],
         given=[("log_mel", ["n", 1, "mels", "frames"])], wanted=[("embedding", ["n", "mels"])])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
