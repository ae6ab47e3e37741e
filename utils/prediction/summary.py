"""What a person reads at the end of a run."""

from datetime import timedelta

from utils.prediction.run import RunResult


def describe(result: RunResult) -> str:
    """Return the end of a run in a few lines: how much, what was found, what failed and why, where to look next."""
    summary = result.summary
    seconds, audio = summary["wall_seconds"], summary["audio_seconds"]
    lines = [f"{summary['ok']:,} of {summary['files']:,} files predicted: {audio / 3600:,.2f} h of audio,"
             f" {summary['segments']:,} segments, in {timedelta(seconds=round(seconds))}"
             f" ({audio / max(seconds, 1e-3):,.0f} times real time)"]
    if summary["per_class"]:
        lines.append("classes:  " + ", ".join(f"{name} {count:,}" for name, count in summary["per_class"].items()))
    if summary["failed"]:
        reasons = ", ".join(f"{status} {count:,}" for status, count in summary["failures"].items())
        lines.append(f"failed:   {reasons} (the reason of each stands in the table of recordings)")
    if "clips" in summary:
        lines.append(f"clips:    {summary['clips']:,}")
    lines.append("written:  " + "\n          ".join(map(str, result.written)))
    return "\n".join(lines)
