#!/usr/bin/env python3
"""Write a synthesised six-class data set, to try NightScan without recordings of one's own."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.running import cli


def build_parser() -> cli.CommandParser:
    """Return the parser of this command."""
    parser = cli.CommandParser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True,
                        help="new or empty folder; gets one folder per class")
    parser.add_argument("--recordings_per_class", type=cli.positive_int, default=30,
                        help="recordings of each class, 3 to 14 s long")
    parser.add_argument("--random_state", type=cli.non_negative_int, default=42,
                        help="the same value writes the same recordings")
    return parser


def run(flags: argparse.Namespace) -> int:
    """Write the data set and say how much."""
    # late: it brings SciPy and soundfile, which --help should not wait for
    with cli.quick_imports():
        from utils.demo.recordings import write_demo_data

    paths = write_demo_data(flags.output_dir, n_recordings_per_class=flags.recordings_per_class,
                            random_state=flags.random_state)
    print(f"wrote {len(paths)} recordings to {flags.output_dir}")
    return cli.EXIT_DONE


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.run_command(build_parser(), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
