#!/usr/bin/env python3
"""Classify files, folders and long recordings with a trained model."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.errors import ConfigError
from utils.running import cli

_FORMATS = ("json", "csv")  # of utils.prediction.outputs, which --help should not wait for


def __getattr__(name: str):
    """Offer ``EfficientNetPredictor`` here, as NightScan's users import it, without loading torch for ``--help``."""
    if name == "EfficientNetPredictor":
        from utils.prediction.predictor import EfficientNetPredictor
        return EfficientNetPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> cli.CommandParser:
    """Return the parser of this command."""
    parser = cli.CommandParser(__doc__)
    parser.add_argument("--model_path", type=Path, required=True, help="a .pth from train_efficientnet.py")
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="files, folders, or a .txt list of files")
    parser.add_argument("--output", type=Path, help="results file (default: JSON on stdout)")
    parser.add_argument("--formats", type=_formats, default="json", help="json, csv, or both with a comma")
    parser.add_argument("--config_path", type=Path,
                        help="JSON config whose thresholds and reject_class replace the model's")
    parser.add_argument("--class_names", type=cli.comma_list,
                        help="outputs of a NightScan 1 ResNet18, in order, with commas")
    parser.add_argument("--batch_size", type=cli.positive_int, default=32, help="windows per pass")
    parser.add_argument("--return_all_scores", action="store_true", help="add the probability of every class")
    parser.add_argument("--top_k", type=cli.non_negative_int, default=0, help="add the K best classes; 0 is off")
    thresholds = parser.add_mutually_exclusive_group()
    thresholds.add_argument("--no_threshold", action="store_true", help="always report the top class")
    thresholds.add_argument("--min_confidence", type=cli.share, help="one threshold for all classes, 0..1"
                            " (default: the model's own per class)")
    segments = parser.add_argument_group("segments")
    segments.add_argument("--segment_mode", action="store_true", help="one result per segment, not per file")
    segments.add_argument("--segment_duration", type=cli.positive_int,
                          help="length of a segment in ms (default: the model's window)")
    segments.add_argument("--segment_overlap", type=cli.non_negative_int, default=0, help="overlap in ms")
    parser.add_argument("--workers", type=cli.positive_int, help="decoding processes (default: CPU cores, at most 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    cli.add_silence_flag(parser)
    parser.add_argument("--overwrite", action="store_true", help="start anew instead of continuing a stopped run")
    parser.add_argument("--strict", action="store_true", help="fail when any input fails")
    return parser


def _formats(text: str) -> tuple[str, ...]:
    formats = cli.comma_list(text)
    for name in formats:
        if name not in _FORMATS:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(_FORMATS)}, got {name!r}")
    return formats


def run(flags: argparse.Namespace) -> int:
    """Predict, write or print the results, say how many files failed."""
    if flags.output is None and flags.formats != ("json",):
        raise ConfigError(f"--formats {','.join(flags.formats)} needs --output: only JSON goes to stdout")
    # late: these bring torch, which --help should not wait for
    with cli.quick_imports():
        from utils.prediction.predictor import EfficientNetPredictor
        from utils.prediction.records import PredictionSettings
        from utils.prediction.run import find_inputs, predict_to_files, predict_to_results
        from utils.running.parallel import LocalProcesses, default_workers

    settings = PredictionSettings(
        segment_mode=flags.segment_mode, segment_duration_ms=flags.segment_duration,
        segment_overlap_ms=flags.segment_overlap, use_thresholds=not flags.no_threshold,
        min_confidence=flags.min_confidence, return_all_scores=flags.return_all_scores, top_k=flags.top_k)
    predictor = EfficientNetPredictor(
        flags.model_path, flags.config_path, device=flags.device, batch_size=flags.batch_size,
        class_names=flags.class_names, settings=settings,
        executor=LocalProcesses(flags.workers or min(4, default_workers()), silence_seconds=flags.silence_limit))
    paths = find_inputs(flags.input)
    if flags.output is None:
        results = predict_to_results(predictor, paths)
        print(cli.json_text(results))
    else:
        results, written = predict_to_files(predictor, paths, config_path=flags.config_path, output=flags.output,
                                            formats=flags.formats, overwrite=flags.overwrite)
    summary = results["summary"]
    if flags.output is not None:
        print(f"{summary['ok']} of {summary['files']} files predicted: {', '.join(map(str, written))}")
    if summary["ok"] == 0 or flags.strict and summary["failed"]:
        return cli.EXIT_NOTHING_USABLE
    return cli.EXIT_DONE


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.run_command(build_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
