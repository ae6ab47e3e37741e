#!/usr/bin/env python3
"""Compare trained models on a test manifest, with intervals, pictures and a page."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.errors import ConfigError
from utils.running import cli
from utils.storage.names import name_to_text


def build_parser() -> cli.CommandParser:
    """Return the parser of this command."""
    parser = cli.CommandParser(__doc__)
    parser.add_argument("--test_csv", type=Path, help="test manifest from preprocessing")
    parser.add_argument("--predictions", type=Path, help="what predict wrote, to be compared with --annotations")
    parser.add_argument("--annotations", type=Path, help="folder of Raven, Audacity or BirdNET tables, or one of them")
    parser.add_argument("--output_dir", type=Path, required=True, help="where report.html and the rest go")
    parser.add_argument("--efficientnet_model", type=Path, help="efficientnet_best.pth")
    parser.add_argument("--resnet18_model", type=Path, help="resnet18_best.pth, or NightScan 1's state dict")
    parser.add_argument("--models", type=Path, nargs="+", default=[], metavar="MODEL",
                        help="any .pth or .onnx files, called by their names; the first is compared with each other")
    parser.add_argument("--class_names", type=cli.comma_list,
                        help="outputs of a NightScan 1 ResNet18, in order, with commas (default: the manifest's"
                        " classes in alphabetical order)")
    parser.add_argument("--audio_dir", type=Path, help="folder of the recordings, for a model with another front end"
                        " than the spectrograms (default: what preprocessing noted)")
    parser.add_argument("--batch_size", type=cli.positive_int, default=32, help="windows per pass")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--workers", type=cli.non_negative_int, default=0, help="processes that read spectrograms")
    parser.add_argument("--bootstrap", type=cli.positive_int, default=2000, help="resamples for the intervals")
    parser.add_argument("--confidence", type=cli.share, default=0.95, help="of the intervals, 0..1")
    parser.add_argument("--latency_runs", type=cli.positive_int, default=30, help="timed runs after the warm-up")
    parser.add_argument("--seed", type=cli.non_negative_int, default=42, help="seed of the resamples")
    return parser


def run(flags: argparse.Namespace, *, command: str) -> int:
    """Load the models, evaluate them, say what came out; ``command`` is what was typed."""
    if flags.predictions or flags.annotations:
        return run_detections(flags)
    if flags.test_csv is None:
        raise ConfigError("give --test_csv and a model, or --predictions and --annotations")
    given = {"EfficientNet": flags.efficientnet_model, "ResNet18": flags.resnet18_model}
    models = {name: path for name, path in given.items() if path is not None} | named_models(flags.models)
    if not models:
        raise ConfigError("give --efficientnet_model, --resnet18_model, or any with --models")
    if not 0 < flags.confidence < 1:
        raise ConfigError(f"--confidence must lie between 0 and 1, got {flags.confidence:g}")
    if flags.audio_dir is not None:
        cli.existing_folder(flags.audio_dir, "--audio_dir")
    # late: these bring torch, which --help should not wait for
    with cli.quick_imports():
        from utils.evaluation.run import EvaluationSettings, evaluate_models, legacy_class_names
        from utils.prediction.predictor import EfficientNetPredictor
        from utils.storage.manifest import read_manifest

    manifest = read_manifest(flags.test_csv)
    settings = EvaluationSettings(
        output_dir=flags.output_dir, audio_dir=flags.audio_dir, n_bootstrap=flags.bootstrap,
        confidence=flags.confidence, n_workers=flags.workers, latency_runs=flags.latency_runs, seed=flags.seed,
        other_backends=("onnx",), measures_memory=True, command=command)
    # networks are compared in one library; an exported one is scored by what deploys it
    predictors = {name: (path, EfficientNetPredictor(path, device=flags.device, batch_size=flags.batch_size,
                                                     class_names=flags.class_names or legacy_class_names(manifest),
                                                     backend="auto" if path.suffix == ".onnx" else "torch"))
                  for name, path in models.items()}
    evaluation = evaluate_models(predictors, manifest, settings)
    for model in evaluation.models:
        print(f"{model.name} ({model.description.model_name}): accuracy {model.metrics['accuracy']:.3f}, macro F1"
              f" {model.metrics['macro_f1']:.3f}, {model.latency.median_ms:.1f} ms a window")
    for name, comparison in evaluation.comparisons.items():
        print(f"{evaluation.models[0].name} against {name}: {comparison.verdict}")
    print(f"report: {flags.output_dir / 'report.html'}")
    return cli.EXIT_DONE


def run_detections(flags: argparse.Namespace) -> int:
    """Compare what prediction found with what people marked."""
    if not (flags.predictions and flags.annotations):
        raise ConfigError("--predictions and --annotations need each other")
    # late: these bring pandas, which --help should not wait for
    with cli.quick_imports():
        from utils.evaluation.detections import DetectionSettings, evaluate_detections
        from utils.evaluation.detections_page import write_detection_report

    settings = DetectionSettings(n_bootstrap=flags.bootstrap, confidence=flags.confidence, seed=flags.seed)
    evaluation = evaluate_detections(flags.predictions, flags.annotations, settings)
    write_detection_report(flags.output_dir, evaluation)
    print(f"report: {flags.output_dir / 'report.html'}")
    return cli.EXIT_DONE


def named_models(paths: Sequence[Path]) -> dict[str, Path]:
    """Return each model under the shortest end of its path that tells it from the others."""
    unique = list(dict.fromkeys(path.absolute() for path in paths))
    for n_folders in range(max((len(path.parts) for path in unique), default=1)):
        for with_extension in (False, True):
            names = ["/".join([*path.parts[-1 - n_folders:-1], path.name if with_extension else path.stem])
                     for path in unique]
            if len(set(names)) == len(names):
                return dict(zip(names, unique, strict=True))
    return {}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if arguments is None else list(map(str, arguments))
    command = name_to_text(shlex.join([Path(__file__).name, *words]))
    return cli.run_command(build_parser(), lambda flags: run(flags, command=command), arguments)


if __name__ == "__main__":
    sys.exit(main())
