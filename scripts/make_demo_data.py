"""Write a synthesised six-class data set, to try NightScan without recordings of one's own."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.errors import ConfigError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output_dir", "--output-dir", type=Path, required=True, default=argparse.SUPPRESS,
                        help="new or empty folder; gets one folder per class")
    parser.add_argument("--recordings_per_class", "--recordings-per-class", type=int, default=30,
                        help="recordings of each class, 3 to 14 s long")
    parser.add_argument("--random_state", "--random-state", type=int, default=42,
                        help="the same value writes the same recordings")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : list[str], optional
        Arguments; None takes those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 2 wrong usage.
    """
    args = build_parser().parse_args(argv)
    # imported here, for SciPy and soundfile take longer to load than --help may
    from utils.demo_data import write_demo_data
    try:
        paths = write_demo_data(args.output_dir, n_recordings_per_class=args.recordings_per_class,
                                random_state=args.random_state)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {len(paths)} recordings to {args.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
