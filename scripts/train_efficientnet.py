#!/usr/bin/env python3
"""Train EfficientNet B0-B3 or ResNet18 on preprocessed spectrograms."""

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.efficientnet_config import (DEFAULT_PRESET, FROM_SCRATCH, IMAGENET, EfficientNetConfig, list_configs,
                                        with_distillation_settings, with_start_settings)
from models.errors import ConfigError
from utils.running import cli


def build_parser() -> cli.CommandParser:
    """Return the parser of this command."""
    parser = cli.CommandParser(__doc__, go_on="the same command with --resume goes on from the last finished epoch, in"
                                              " a cross-validation from the last finished fold")
    parser.add_argument("--train_csv", type=Path, help="manifest to learn from")
    parser.add_argument("--val_csv", type=Path, help="manifest that chooses the best epoch")
    parser.add_argument("--model_dir", type=Path, required=True, help="where checkpoints, scores and pictures go")
    parser.add_argument("--config", default=DEFAULT_PRESET, help=f"{', '.join(list_configs())}, or a .json file")
    cli.add_config_flags(parser)
    run_group = parser.add_argument_group("this run")
    for flag, value in (("--pretrained", IMAGENET), ("--no_pretrained", FROM_SCRATCH)):
        run_group.add_argument(flag, dest="initial_weights", action="store_const", const=value,
                               default=argparse.SUPPRESS, help=f"older spelling of --initial_weights {value}")
    run_group.add_argument("--pretrained_weights", dest="initial_weights", metavar="FILE", default=argparse.SUPPRESS,
                           help="older spelling of --initial_weights FILE")
    run_group.add_argument("--distill_dir", type=Path, help="folder of recordings, labels not needed: the network"
                           " learns what --teacher hears in them, and becomes a start")
    run_group.add_argument("--teacher", type=Path, help=".onnx with its description beside it, or a .pth of NightScan")
    run_group.add_argument("--distill_minutes", type=cli.positive_seconds, default=10.0,
                           help="minutes of a recording that are used, in random stretches of a longer one")
    run_group.add_argument("--linear_probe", action="store_true",
                           help="keep the body as it is, fit only a linear classifier on what it hears: takes seconds")
    run_group.add_argument("--export_onnx", action="store_true", help="also write the best model as .onnx: front end,"
                           " classes and calibration inside, no PyTorch needed; checked on validation windows")
    run_group.add_argument("--export_int8", action="store_true", help="also write it with weights of 8 bits, a third of"
                           " the size, and say how far it is from the checkpoint")
    run_group.add_argument("--cross_validation", action="store_true",
                           help="k folds over train and val instead of one model")
    run_group.add_argument("--k_folds", type=cli.positive_int, default=5, help="number of folds")
    run_group.add_argument("--resume", action="store_true", help="continue the run in --model_dir")
    run_group.add_argument("--resume_from", type=Path, help="continue from this *_last.pth")
    run_group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    run_group.add_argument("--workers", type=cli.non_negative_int,
                           help="loading processes (default: 4 on a GPU, 0 on the CPU, which is busy training)")
    run_group.add_argument("--deterministic", action="store_true", help="only deterministic algorithms, slower")
    run_group.add_argument("--allow_leakage", action="store_true",
                           help="train although a recording is in both manifests; is recorded in the checkpoint")
    return parser


def run(flags: argparse.Namespace) -> int:
    """Check the flags, train or cross-validate, say how it went."""
    check_flags(flags)
    # late: these bring torch, which --help should not wait for
    with cli.quick_imports():
        from utils.storage.config_files import read_config, settings_in_file
        from utils.cross_validation import cross_validate_manifests
        from utils.training.distributed import join_processes, leave_processes
        from utils.training.starter import kind_of_start, resolve_start
        from utils.training.data import read_training_data
        from utils.training.model_folder import checkpoint_path
        from utils.training.run import probe_model, resume_config, train_model
        from utils.running.devices import resolve_device, use_deterministic_algorithms

    config = cli.config_from_flags(read_config(flags.config), vars(flags))
    given = {*settings_in_file(flags.config), *cli.given_settings(vars(flags))}
    processes, device = join_processes(resolve_device(flags.device))
    if not processes.is_main:
        logging.getLogger("utils").setLevel(logging.WARNING)  # one process tells, for all
    if flags.deterministic:
        use_deterministic_algorithms()
    n_workers = flags.workers if flags.workers is not None else (0 if device.type == "cpu" else 4)
    if flags.distill_dir:
        return distil_start(flags, with_distillation_settings(config, given=given), device=device,
                            n_workers=n_workers)
    config = resolve_start(config)
    goes_on = (flags.resume or flags.resume_from) and not flags.cross_validation  # its checkpoint has all settings
    config = with_start_settings(config, given=given, start=None if goes_on else kind_of_start(config))
    data = read_training_data(flags.train_csv, flags.val_csv, allow_leakage=flags.allow_leakage)
    if flags.cross_validation:
        summary = cross_validate_manifests(
            [data.train, data.val], config, model_dir=flags.model_dir, k_folds=flags.k_folds, device=device,
            n_workers=n_workers, resume=flags.resume)
        print(f"{flags.k_folds} folds: " + ", ".join(
            f"{name} {summary['mean'][name]:.3f} ± {summary['std'][name]:.3f}" for name in ("accuracy", "macro_f1")))
        print(f"summary: {flags.model_dir / 'cross_validation' / 'summary.json'}")
        return cli.EXIT_DONE
    if flags.linear_probe:
        scores = probe_model(data, config, model_dir=flags.model_dir, device=device, n_workers=n_workers)
        return finish(flags, scores, checkpoint_path(flags.model_dir, config.model_name, "best"), data)
    resume_from = flags.resume_from or (find_last(flags.model_dir) if flags.resume else None)
    if resume_from:
        config = resume_config(resume_from, config, cli.given_settings(vars(flags)))
    scores = train_model(data, config, model_dir=flags.model_dir, device=device, n_workers=n_workers,
                         resume_from=resume_from, processes=processes)
    leave_processes()
    if not processes.is_main:
        return cli.EXIT_DONE
    return finish(flags, scores, checkpoint_path(flags.model_dir, config.model_name, "best"), data)


def finish(flags: argparse.Namespace, scores: dict, best: Path, data) -> int:
    """Export a model where that was asked for, say how it does on validation and where it is."""
    print(f"validation: accuracy {scores['accuracy']:.3f}, macro F1 {scores['macro_f1']:.3f}")
    print(f"model: {best}")
    if flags.export_onnx or flags.export_int8:
        from utils.training.exporting import export_best  # late: onnx is not needed for training

        for path in export_best(best, data.val, onnx=flags.export_onnx, int8=flags.export_int8):
            print(f"export: {path}")
    return cli.EXIT_DONE


def distil_start(flags: argparse.Namespace, config: EfficientNetConfig, *, device, n_workers: int) -> int:
    """Teach a network what a teacher hears, say how well it hears it."""
    with cli.quick_imports():
        import torch

        from utils.networks.teachers import load_teacher
        from utils.running.parallel import LocalProcesses, default_workers
        from utils.training.distillation import STARTER_NAME, distil

    teacher = load_teacher(flags.teacher, device=flags.device, n_threads=torch.get_num_threads())
    scores = distil(flags.distill_dir, teacher, config, model_dir=flags.model_dir, device=device, n_workers=n_workers,
                    executor=LocalProcesses(default_workers()), minutes_each=flags.distill_minutes,
                    resume=flags.resume)
    print("held-out recordings: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    print(f"start: {flags.model_dir / STARTER_NAME} (use it with --initial_weights)")
    return cli.EXIT_DONE


def check_flags(flags: argparse.Namespace) -> None:
    """Raise ConfigError for flags that do not fit each other or this machine."""
    if flags.resume and flags.resume_from:
        raise ConfigError("--resume and --resume_from exclude each other: give one")
    if flags.resume_from and flags.cross_validation:
        raise ConfigError("--resume_from does not go with --cross_validation: use --resume, which keeps finished folds")
    if bool(flags.distill_dir) != bool(flags.teacher):
        raise ConfigError("--distill_dir and --teacher belong together: give both or neither")
    if flags.distill_dir:
        cli.existing_folder(flags.distill_dir, "--distill_dir")
        if (flags.train_csv or flags.val_csv or flags.cross_validation or flags.resume_from
                or int(os.environ.get("WORLD_SIZE", "1")) > 1):
            raise ConfigError("--distill_dir goes with none of --train_csv, --val_csv, --cross_validation,"
                              " --resume_from and torchrun: leave them out")
    elif not (flags.train_csv and flags.val_csv):
        raise ConfigError("--train_csv and --val_csv are needed: give the manifests that preprocess_enhanced.py wrote,"
                          " or --distill_dir with --teacher")
    if flags.linear_probe and (flags.distill_dir or flags.cross_validation or flags.resume or flags.resume_from
                               or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        raise ConfigError("--linear_probe goes neither with --distill_dir, --cross_validation, --resume, --resume_from"
                          " nor with torchrun: it takes seconds, leave them out")
    if (flags.export_onnx or flags.export_int8) and (flags.distill_dir or flags.cross_validation):
        raise ConfigError("--export_onnx and --export_int8 are for a model: leave out --distill_dir and"
                          " --cross_validation")
    if flags.k_folds < 2:
        raise ConfigError(f"--k_folds must be at least 2, got {flags.k_folds}")
    if flags.cross_validation and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--cross_validation runs on one process: start it without torchrun")


def find_last(model_dir: Path) -> Path:
    """Return the training state in a model folder; ConfigError when there is none, or two."""
    found = sorted(model_dir.glob("*_last.pth"))
    if len(found) != 1:
        raise ConfigError(f"--resume needs one *_last.pth in {model_dir}, found {len(found)}: leave --resume out for"
                          f" a first run, or choose with --resume_from")
    return found[0]


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.run_command(build_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
