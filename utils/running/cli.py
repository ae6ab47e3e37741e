"""What the four commands share: flags, logging, errors to exit codes."""

import argparse
import contextlib
import dataclasses
import gc
import io
import logging
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from models.efficientnet_config import DEFAULT_PRESET, AugmentationConfig, EfficientNetConfig, get_config
from models.errors import AudioError, ConfigError, NightScanError
from utils.running.parallel import SILENCE_SECONDS

VERSION = "2.0.0"
EXIT_DONE, EXIT_NOTHING_USABLE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
AUGMENTATION_FLAGS = ("freq_mask_param", "time_mask_param", "mixup_alpha")

logger = logging.getLogger(__name__)


class CommandParser(argparse.ArgumentParser):
    """An argument parser that shows every default and takes ``--batch-size`` for ``--batch_size``.

    Parameters
    ----------
    description : str
        First line of ``--help``.
    go_on : str
        What continues a run that was interrupted.
    """

    def __init__(self, description: str, *, go_on: str = "the same command goes on from it") -> None:
        super().__init__(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
        self.go_on = go_on
        shared = self.add_argument_group("shared by all commands")
        shared.add_argument("-v", "--verbose", action="store_true", help="more messages, and tracebacks of errors")
        shared.add_argument("-q", "--quiet", action="store_true", help="only warnings and errors")
        shared.add_argument("--log_file", type=Path, help="also write messages to this file")
        shared.add_argument("--version", action="version", version=f"NightScan Audio {VERSION}")

    def parse_known_args(self, args=None, namespace=None):
        """Parse after respelling dashed flags with underscores."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([_underscored(word) for word in words], namespace)

    def error(self, message: str) -> typing.NoReturn:
        """Report a usage error in one line and leave with exit code 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see --help)\n")


class _HelpFormatter(argparse.HelpFormatter):
    """Adds ``(default: X)`` where there is a default to tell."""

    def _get_help_string(self, action):
        text = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS) or action.required or "default" in text:
            return text
        shown = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        return f"{text} (default: {shown})".replace("%", "%%")


def _underscored(word: str) -> str:
    if not word.startswith("--") or word == "--":
        return word
    flag, equals, value = word.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every plain field of EfficientNetConfig; none has a default, so only those given count."""
    preset = get_config(DEFAULT_PRESET)
    group = parser.add_argument_group(f"settings on top of --config (shown: those of {DEFAULT_PRESET})")
    for config in (preset, preset.augmentation):
        hints = typing.get_type_hints(type(config))
        for field in dataclasses.fields(config):
            if isinstance(config, AugmentationConfig) and field.name not in AUGMENTATION_FLAGS:
                continue
            kind = _scalar_type(hints[field.name])
            if kind is not None:
                _add_flag(group, field, kind, getattr(config, field.name))


def _scalar_type(hint) -> type | None:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((option for option in options if option in (int, float, str, bool)), None)


def _add_flag(group, field: dataclasses.Field, kind: type, shown) -> None:
    text = f"{field.metadata['help']} (default: {'chosen for the run' if shown is None else shown})"
    if kind is bool:
        group.add_argument(f"--{field.name}", action="store_true", default=argparse.SUPPRESS, help=text)
        group.add_argument(f"--no_{field.name}", dest=field.name, action="store_false", default=argparse.SUPPRESS,
                           help=f"switch {field.name} off")
    else:
        group.add_argument(f"--{field.name}", type=kind, choices=field.metadata["choices"],
                           default=argparse.SUPPRESS, help=text)


def add_worker_flags(parser: argparse._ActionsContainer) -> None:
    """Add where recordings are worked on, and the limit after which a file is taken to hang."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=positive_int, help="processes (default: CPU cores)")
    where.add_argument("--cluster", metavar="tcp://HOST:PORT", help="address of a Dask scheduler: work on its cluster,"
                       " whose workers see the same paths (default: on this machine)")
    parser.add_argument("--silence_limit", type=positive_seconds, default=SILENCE_SECONDS,
                        help="seconds without a decoded block after which a file is given up as hung")


def make_absolute(flags: argparse.Namespace, *names: str) -> None:
    """Make paths among the flags absolute: another process may have another working directory."""
    for name in names:
        given = getattr(flags, name)
        if given is not None:
            setattr(flags, name, [path.absolute() for path in given] if isinstance(given, list) else given.absolute())


def given_settings(flags: Mapping) -> list[str]:
    """Return the names of the config settings that were given as flags."""
    names = {field.name for field in dataclasses.fields(EfficientNetConfig)}
    return [name for name in flags if name in names or name in AUGMENTATION_FLAGS]


def config_from_flags(base: EfficientNetConfig, flags: Mapping) -> EfficientNetConfig:
    """Return ``base`` with the settings that were given as flags; ConfigError for impossible values."""
    given = given_settings(flags)
    changes = {name: flags[name] for name in given if name not in AUGMENTATION_FLAGS}
    masks = {name: flags[name] for name in given if name in AUGMENTATION_FLAGS}
    if masks:
        changes["augmentation"] = base.augmentation.replace(**masks)
    return base.replace(**changes)


def positive_int(text: str) -> int:
    """Parse a flag that must be a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def non_negative_int(text: str) -> int:
    """Parse a flag that must be a whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def positive_seconds(text: str) -> float:
    """Parse a flag that must be a time above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0 seconds, got {text}")
    return value


def non_negative_seconds(text: str) -> float:
    """Parse a flag that must be a time of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 seconds or more, got {text}")
    return value


def share(text: str) -> float:
    """Parse a flag that must lie in 0..1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be in 0..1, got {text}")
    return value


def comma_list(text: str) -> tuple[str, ...]:
    """Parse a flag that takes names with commas between them; each counts once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def stdout_takes_any_text() -> bool:
    """Whether stdout is in UTF-8; elsewhere JSON escapes what the encoding may lack."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import without looking for garbage: there is none, and the search takes a tenth of a command's start."""
    gc.disable()
    try:
        yield
        gc.freeze()  # what was imported stays: it need not be looked through later either
    finally:
        gc.enable()


def run_command(parser: CommandParser, command: Callable[[argparse.Namespace], int],
                arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn what happens into an exit code.

    Parameters
    ----------
    parser : CommandParser
        Of the command.
    command : callable
        Takes the parsed flags, returns an exit code.
    arguments : sequence of str, optional
        Command line; ``sys.argv`` when None.

    Returns
    -------
    int
        0 done, 1 nothing usable, 2 wrong usage, 130 interrupted.
    """
    flags = parser.parse_args(arguments)
    _let_every_name_be_printed()
    with _logging(parser, flags):
        try:
            return command(flags)
        except NightScanError as error:
            logger.debug("traceback", exc_info=True)
            logger.error("%s", error)
            return EXIT_NOTHING_USABLE if isinstance(error, AudioError) else EXIT_USAGE
        except OSError as error:
            logger.debug("traceback", exc_info=True)
            logger.error("%s: %s: check that the place exists, is writable and has room", error.filename or "a file",
                         error.strerror or error)
            return EXIT_USAGE
        except KeyboardInterrupt:
            logger.error("interrupted; finished work is kept and %s", parser.go_on)
            return EXIT_INTERRUPTED


def _let_every_name_be_printed() -> None:
    """Let a name that the terminal's encoding lacks be escaped instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test or a notebook may have put something else in its place
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _logging(parser: CommandParser, flags: argparse.Namespace) -> Iterator[None]:
    root = logging.getLogger()
    level = logging.DEBUG if flags.verbose else logging.WARNING if flags.quiet else logging.INFO
    handlers: list[logging.Handler] = [_ProgressHandler()]
    handlers[0].setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    if flags.log_file:
        try:
            flags.log_file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(flags.log_file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            parser.error(f"--log_file {flags.log_file} cannot be written ({error.strerror}): choose another place")
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for handler in handlers:
        root.addHandler(handler)
    for name in ("models", "utils", "scripts", "__main__"):
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


class _ProgressHandler(logging.StreamHandler):
    """Writes above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # late, so that --help does not wait for it

        tqdm.write(self.format(record), file=sys.stderr)


def existing_folder(path: Path, flag: str) -> Path:
    """Return ``path`` if it is a folder; ConfigError naming the flag otherwise."""
    if not path.is_dir():
        raise ConfigError(f"{flag} {path} is not a folder: give one that exists")
    return path
