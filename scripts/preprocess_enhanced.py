#!/usr/bin/env python3
"""Turn a folder of recordings into log-mel spectrograms and leak-free manifests."""

import argparse
import contextlib
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.efficientnet_config import BACKGROUND_CLASS, AugmentationConfig, FrontendConfig
from models.errors import ConfigError
from utils.running import cli

_FRONTEND_FLAGS = ("sample_rate", "n_fft", "hop_length", "n_mels", "f_min", "f_max")
_ROLES = ("path", "label", "group", "fold", "start", "end")  # of a table's columns
_AUGMENTATIONS = {"stretch": "use_time_stretch", "pitch": "use_pitch_shift", "level": "use_volume",
                  "noise": "use_noise", "background": "use_background", "equaliser": "use_waveform_equaliser"}
_RATIO_TOLERANCE = 1e-6  # .7 + .15 + .15 is not exactly 1 in binary


def build_parser() -> cli.CommandParser:
    """Return the parser of this command."""
    parser = cli.CommandParser(__doc__)
    parser.add_argument("--input_dir", type=Path, required=True, help="recordings; the first folder below is the class")
    parser.add_argument("--output_dir", type=Path, required=True, help="where manifests and spectrograms go")
    labels = parser.add_argument_group("labels from a table, or from annotations")
    labels.add_argument("--labels_csv", type=Path, help="CSV or TSV with a path and a label per row")
    for role in _ROLES:
        labels.add_argument(f"--{role}_column", help=f"column of the {role} (default: a usual name)")
    labels.add_argument("--annotations", type=Path, help="folder of Raven, Audacity or BirdNET tables, or one of them,"
                        " or the decisions of a review page")
    labels.add_argument("--extend", type=Path, metavar="DATASET", help="folder of an earlier data set to add to: its"
                        " recordings keep labels and sides, what is added goes to training")
    labels.add_argument("--label_map", type=Path, help="CSV or JSON, raw label -> class")
    labels.add_argument("--drop_unmapped", action="store_true", help="leave out labels that --label_map lacks")
    labels.add_argument("--min_overlap_seconds", type=cli.non_negative_seconds, default=0.5,
                        help="how much of an annotation a window must hold to get its label, in s; half of one that is"
                        " shorter than twice that")
    labels.add_argument("--background_windows", action="store_true",
                        help="windows of annotated recordings in which nothing is marked become the background class")
    labels.add_argument("--background_label", default=BACKGROUND_CLASS, help="name of the background class")
    front = parser.add_argument_group("front end")
    defaults = FrontendConfig()
    units = {"sample_rate": "Hz", "n_fft": "samples", "hop_length": "samples", "n_mels": "bands", "f_min": "Hz",
             "f_max": "Hz"}
    for name in _FRONTEND_FLAGS:
        value = getattr(defaults, name)
        front.add_argument(f"--{name}", type=type(value), default=value, help=f"in {units[name]}")
    front.add_argument("--segment_duration", type=cli.positive_int, default=defaults.segment_duration_ms,
                       help="length of a window in ms")
    front.add_argument("--segment_overlap", type=cli.non_negative_int, default=0, help="overlap of windows in ms")
    front.add_argument("--segment_selection", choices=("active", "all"), default="active",
                       help="all windows, or those that hold sound")
    balance = parser.add_argument_group("augmentation, of the training split only")
    balance.add_argument("--apply_augmentation", action="store_true", help="make augmented copies")
    balance.add_argument("--augmentation_factor", type=cli.positive_int, default=3, help="copies per segment")
    usual = [name for name, setting in _AUGMENTATIONS.items() if getattr(AugmentationConfig(), setting)]
    balance.add_argument("--augmentations", type=cli.comma_list, default=",".join(usual), metavar="A,B,...",
                         help=f"what copies are changed by, of {', '.join(_AUGMENTATIONS)}")
    balance.add_argument("--balance_classes", action="store_true", help="augment minority classes to the largest")
    balance.add_argument("--max_balance_ratio", type=float, default=10.0, help="a class grows at most this many times")
    balance.add_argument("--background_dir", type=Path, help="recordings without calls to mix into copies (default: the"
                         " training windows of environmental_sound)")
    split = parser.add_argument_group("split")
    for side, value in (("train", 0.70), ("val", 0.15), ("test", 0.15)):
        split.add_argument(f"--{side}_ratio", type=cli.share, default=value, help=f"share of {side}, 0..1")
    split.add_argument("--group_by", choices=("recording", "folder", "site", "night", "column"), default="recording",
                       help="what stays on one side of the split; site and night as the recorder tells them")
    split.add_argument("--random_state", type=cli.non_negative_int, default=42, help="seed of split and augmentation")
    cli.add_worker_flags(parser)
    parser.add_argument("--audit", action="store_true", help="examine the recordings, write audit.html, make nothing")
    parser.add_argument("--overwrite", action="store_true", help="redo everything instead of continuing")
    parser.add_argument("--strict", action="store_true", help="fail when any input fails")
    return parser


def run(flags: argparse.Namespace) -> int:
    """Check the flags, preprocess, say what came of it."""
    settings_checks(flags)
    if flags.cluster:
        cli.make_absolute(flags, "input_dir", "output_dir", "background_dir")
    # late: these bring NumPy, SciPy and pandas, which --help should not wait for
    with cli.quick_imports():
        from utils.audio.recordings import find_recordings
        from utils.running import cluster, parallel
        from utils.preparation import sources
        from utils.preparation.extraction import PreprocessSettings
        from utils.preparation.run import examine, preprocess

    frontend = FrontendConfig(segment_duration_ms=flags.segment_duration,
                              **{name: getattr(flags, name) for name in _FRONTEND_FLAGS})
    settings = PreprocessSettings(
        input_dir=flags.input_dir, output_dir=flags.output_dir, frontend=frontend,
        segment_overlap_ms=flags.segment_overlap, segment_selection=flags.segment_selection,
        augmentation_factor=flags.augmentation_factor if flags.apply_augmentation else 0,
        balance_classes=flags.balance_classes, max_balance_ratio=flags.max_balance_ratio,
        ratios=(flags.train_ratio, flags.val_ratio, flags.test_ratio), random_state=flags.random_state,
        min_overlap_seconds=flags.min_overlap_seconds, group_by=flags.group_by, labels_from=_labels_from(flags),
        background_label=flags.background_label if flags.background_windows else None,
        background_dir=flags.background_dir, augmentation=AugmentationConfig().replace(
            **{setting: name in flags.augmentations for name, setting in _AUGMENTATIONS.items()}))
    found = sources.find_sources(
        flags.input_dir, labels_csv=flags.labels_csv, annotations=flags.annotations, group_by=flags.group_by,
        columns=sources.TableColumns(**{role: getattr(flags, f"{role}_column") for role in _ROLES}),
        label_map=flags.label_map, drop_unmapped=flags.drop_unmapped, background_label=flags.background_label,
        need_labels=not flags.audit, extend=flags.extend)
    local = parallel.LocalProcesses(flags.workers or parallel.default_workers(), silence_seconds=flags.silence_limit)
    with contextlib.nullcontext(local) if flags.cluster is None else cluster.DaskCluster(
            flags.cluster, recordings=[source.audio_path(flags.input_dir) for source in found],
            files=find_recordings(flags.background_dir)[:1] if flags.background_dir else (),
            folder=flags.output_dir, silence_seconds=flags.silence_limit) as executor:
        if flags.audit:
            results = examine(settings, found, executor=executor)
        else:
            results = preprocess(settings, found, executor=executor, overwrite=flags.overwrite)
    tally = Counter(result.outcome.status for result in results)
    if flags.audit:
        print(f"{tally['ok']} of {len(results)} recordings are usable: open {flags.output_dir / 'audit.html'}")
    else:
        n_segments = sum(len(result.windows) for result in results)
        print(f"{tally['ok']} of {len(results)} recordings gave {n_segments} segments in {flags.output_dir}")
    failed = len(results) - tally["ok"]
    if failed:
        listing = ", ".join(f"{n} {status}" for status, n in sorted(tally.items()) if status != "ok")
        print(f"{failed} could not be used ({listing}): the reasons are in"
              f" {flags.output_dir / ('audit.csv' if flags.audit else 'files.csv')}")
    # a copy of a recording is left out on purpose: nothing of it is missing
    return cli.EXIT_NOTHING_USABLE if flags.strict and failed > tally["duplicate"] else cli.EXIT_DONE


def _labels_from(flags: argparse.Namespace) -> str:
    """Return what tells one way of labelling from another; what it reads may grow without becoming another."""
    names = ("labels_csv", "annotations", "label_map", "path_column", "label_column", "group_column", "fold_column",
             "start_column", "end_column", "drop_unmapped", "background_windows", "background_label")
    return "; ".join(f"{name}={getattr(flags, name)}" for name in names if getattr(flags, name))


def settings_checks(flags: argparse.Namespace) -> None:
    """Raise ConfigError for flags that do not fit each other."""
    cli.existing_folder(flags.input_dir, "--input_dir")
    total = flags.train_ratio + flags.val_ratio + flags.test_ratio
    if abs(total - 1) > _RATIO_TOLERANCE or flags.train_ratio == 0:
        raise ConfigError(f"--train_ratio, --val_ratio and --test_ratio must sum to 1 with some for training, got"
                          f" {flags.train_ratio:g} + {flags.val_ratio:g} + {flags.test_ratio:g}")
    if flags.segment_overlap >= flags.segment_duration:
        raise ConfigError(f"--segment_overlap must be below --segment_duration ({flags.segment_duration} ms), got"
                          f" {flags.segment_overlap} ms")
    if flags.max_balance_ratio < 1:
        raise ConfigError(f"--max_balance_ratio must be at least 1, got {flags.max_balance_ratio:g}")
    table_flags = [f"--{name}" for name in ("path_column", "group_column", "fold_column", "start_column", "end_column")
                   if getattr(flags, name)]
    if flags.extend:
        _check_extension(flags)
    if table_flags and not flags.labels_csv:
        raise ConfigError(f"{table_flags[0]} needs --labels_csv")
    if flags.label_column and not flags.labels_csv and not flags.annotations:
        raise ConfigError("--label_column needs --labels_csv or --annotations")
    if flags.background_windows and not flags.labels_csv and not flags.annotations:
        raise ConfigError("--background_windows needs --labels_csv or --annotations: a class folder labels the whole"
                          " recording")
    if flags.group_by == "column" and not flags.labels_csv:
        raise ConfigError("--group_by column needs --labels_csv")
    unknown = sorted(set(flags.augmentations) - set(_AUGMENTATIONS))
    if unknown:
        raise ConfigError(f"--augmentations: {unknown[0]!r} is none of {', '.join(_AUGMENTATIONS)}")
    if flags.background_dir is not None:
        cli.existing_folder(flags.background_dir, "--background_dir")
    if flags.drop_unmapped and not flags.label_map:
        raise ConfigError("--drop_unmapped needs --label_map")


def _check_extension(flags: argparse.Namespace) -> None:
    if flags.fold_column or not flags.labels_csv and not flags.annotations:
        raise ConfigError("--extend needs --annotations or --labels_csv, and takes the sides of the earlier data set"
                          " instead of --fold_column")
    if flags.extend.resolve() == flags.output_dir.resolve():
        raise ConfigError(f"--extend and --output_dir are both {flags.output_dir}: the earlier data set stays as it is,"
                          f" so write into another folder")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.run_command(build_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
