#!/usr/bin/env python3
"""Classify files, folders and long recordings with a trained model."""

import argparse
import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.errors import ConfigError
from utils.running import cli

# of rooms below, which --help should not wait for
_FORMATS = ("json", "csv", "parquet", "raven", "audacity", "birdnet", "nights")
_BACKENDS, _PRECISIONS = ("auto", "torch", "onnx", "openvino"), ("float32", "bf16", "int8")


def __getattr__(name: str):
    """Offer ``EfficientNetPredictor`` here, as NightScan's users import it, without loading torch for ``--help``."""
    if name == "EfficientNetPredictor":
        from utils.prediction.predictor import EfficientNetPredictor
        return EfficientNetPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> cli.CommandParser:
    """Return the parser of this command."""
    parser = cli.CommandParser(__doc__)
    parser.add_argument("--model_path", type=Path, required=True,
                        help="a .pth from train_efficientnet.py, or an exported .onnx")
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="files, folders, or a .txt list of files")
    parser.add_argument("--config_path", type=Path,
                        help="JSON config whose thresholds and reject_class replace the model's")
    parser.add_argument("--class_names", type=cli.comma_list,
                        help="outputs of a NightScan 1 ResNet18, in order, with commas")
    results = parser.add_argument_group("results")
    results.add_argument("--output", type=Path, help="name of the results (default: JSON on stdout)")
    results.add_argument("--formats", type=_formats, default="json", help=f"of {', '.join(_FORMATS)}, with commas")
    results.add_argument("--return_all_scores", action="store_true", help="add the probability of every class")
    results.add_argument("--top_k", type=cli.non_negative_int, default=0, help="add the K best classes; 0 is off")
    results.add_argument("--timezone", help="zone of clocks that do not tell theirs, and in which times are told: a"
                         " name such as America/Lima, UTC, or an offset such as +02:00 (default: as recorders tell)")
    results.add_argument("--embeddings", type=Path, help="also write the embedding of every segment to this .npz")
    results.add_argument("--suggest", type=cli.positive_int, metavar="N",
                         help="also write a table of the N segments that are worth a person's hour (default: off)")
    results.add_argument("--reviewed", type=Path, nargs="+", default=(), metavar="FILE.csv",
                         help="tables of decisions from the review page: what stands in them is not suggested again")
    results.add_argument("--clips_dir", type=Path, help="also cut every detection out as WAV, into this folder")
    results.add_argument("--review", type=Path, metavar="FILE.html", help="also write a page on which a person hears"
                         " what was found, confirms, rejects or relabels it, and that hands labels back")
    thresholds = results.add_mutually_exclusive_group()
    thresholds.add_argument("--no_threshold", action="store_true", help="always report the top class")
    thresholds.add_argument("--min_confidence", type=cli.share, help="one threshold for all classes, 0..1"
                            " (default: the model's own per class)")
    segments = parser.add_argument_group("segments")
    segments.add_argument("--segment_mode", action="store_true", help="one result per segment, not per file")
    segments.add_argument("--segment_duration", type=cli.positive_int,
                          help="length of a segment in ms (default: the model's window)")
    segments.add_argument("--segment_overlap", type=cli.non_negative_int, default=0, help="overlap in ms")
    segments.add_argument("--merge_gap", type=cli.non_negative_seconds, metavar="SECONDS",
                          help="join segments of a class that lie no further apart to detections, and report those"
                          " (default: off)")
    work = parser.add_argument_group("how it is computed")
    work.add_argument("--backend", choices=_BACKENDS, default="auto",
                      help="library that applies the network; auto is the fastest that is installed")
    work.add_argument("--precision", choices=_PRECISIONS,
                      help="of the network's numbers (default: float32, on CUDA float16)")
    work.add_argument("--batch_size", type=cli.positive_int, help="windows per pass (default: what suits the back end)")
    work.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    cli.add_worker_flags(work)
    work.add_argument("--overwrite", action="store_true", help="score everything again")
    work.add_argument("--strict", action="store_true", help="fail when any input fails")
    return parser


def _formats(text: str) -> tuple[str, ...]:
    formats = cli.comma_list(text)
    for name in formats:
        if name not in _FORMATS:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(_FORMATS)}, got {name!r}")
    return formats


def run(flags: argparse.Namespace) -> int:
    """Predict, write or print the results, say how many files failed."""
    if flags.output is None and (flags.formats != ("json",) or flags.embeddings or flags.clips_dir
                                 or flags.suggest or flags.review):
        raise ConfigError("only JSON goes to stdout: give --output for other formats, --embeddings, --clips_dir,"
                          " --suggest and --review")
    if flags.reviewed and not flags.suggest:
        raise ConfigError("--reviewed leaves decided segments out of what is suggested: give --suggest N with it")
    if flags.output is not None and not flags.output.name:
        raise ConfigError(f"--output {flags.output} must end in a name for the results, such as results.json")
    if flags.cluster:
        cli.make_absolute(flags, "model_path", "input", "clips_dir")
    # late: --help should not wait for these
    with cli.quick_imports():
        from utils.networks.opening import plan_backend
        from utils.prediction.conversion import convert_first
        from utils.prediction.predictor import EfficientNetPredictor
        from utils.prediction.records import PredictionSettings
        from utils.prediction.run import OutputSettings, find_inputs, predict_to_files, predict_to_stream
        from utils.prediction.summary import describe
        from utils.running.cluster import DaskCluster
        from utils.running.parallel import LocalProcesses, default_workers

    settings = PredictionSettings(
        segment_mode=flags.segment_mode, segment_duration_ms=flags.segment_duration,
        segment_overlap_ms=flags.segment_overlap, use_thresholds=not flags.no_threshold,
        min_confidence=flags.min_confidence, return_all_scores=flags.return_all_scores, top_k=flags.top_k,
        merge_gap_seconds=flags.merge_gap, timezone=flags.timezone)
    paths = find_inputs(flags.input)
    local = LocalProcesses(flags.workers or default_workers(), silence_seconds=flags.silence_limit)
    model = {"device": flags.device, "class_names": flags.class_names, "backend": flags.backend,
             "precision": flags.precision}
    convert_first(plan_backend(flags.model_path, **model), paths, local)
    plan = plan_backend(flags.model_path, **model)
    with contextlib.nullcontext(local) if flags.cluster is None else DaskCluster(
            flags.cluster, recordings=paths, files=[plan.model_path, plan.converted or plan.model_path],
            folder=flags.clips_dir, silence_seconds=flags.silence_limit) as executor:
        predictor = EfficientNetPredictor(flags.model_path, flags.config_path, **model, batch_size=flags.batch_size,
                                          settings=settings, executor=executor,
                                          with_embeddings=bool(flags.embeddings or flags.suggest))
        if flags.output is None:
            result = predict_to_stream(predictor, paths, sys.stdout, ensure_ascii=not cli.stdout_takes_any_text())
        else:
            result = predict_to_files(
                predictor, paths, OutputSettings(output=flags.output, formats=flags.formats,
                                                 embeddings=flags.embeddings, clips_dir=flags.clips_dir,
                                                 n_suggested=flags.suggest or 0, reviewed=tuple(flags.reviewed),
                                                 review=flags.review),
                executor=executor, overwrite=flags.overwrite)
            print(describe(result))
    if result.summary["ok"] == 0 or flags.strict and result.summary["failed"]:
        return cli.EXIT_NOTHING_USABLE
    return cli.EXIT_DONE


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.run_command(build_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
