"""Tables of the README, generated from the result files.

python -m benchmarks.table                    prints the tables of all results
python -m benchmarks.table --write README.md  replaces what is between <!-- benchmarks:SUBJECT --> and
                                              <!-- /benchmarks -->
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from fastgan.bench import Result, duration, limits
from fastgan.errors import FastganError, suggest

RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"(<!-- benchmarks:(\w+) -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)


def load_results(folder: Path = RESULTS) -> dict[str, list[Result]]:
    """Subject -> its results, one per device, GPUs first."""
    results: dict[str, list[Result]] = {}
    for path in sorted(folder.glob("*/*.json")):
        result = Result.load_file(path)
        results.setdefault(result.subject, []).append(result)
    return {
        subject: sorted(devices, key=lambda r: (r.device.kind == "cpu", r.device.slug))
        for subject, devices in sorted(results.items())
    }


def markdown(results: list[Result]) -> str:
    """One subject's results as markdown: a table per device, with where and when it was measured.

    A CPU's absolute figures mean little elsewhere, so they show as ratios alone.
    """
    return "\n".join("\n".join(_device_lines(result)) for result in results)


def _device_lines(result: Result) -> list[str]:
    device = result.device
    gpu = device.kind != "cpu"
    made = f"torch {device.torch}, {device.date}" + (f", commit {device.commit}" if device.commit else "")
    lines = [f"{device.name}, {made}:", ""]
    columns = ["", "", *(["median", "of the limit"] if gpu else []), "fastgan's speed (95% interval)"]
    if any(case.memory for case in result.cases):
        columns.append("peak memory")
    lines += [_row(columns), _row(["---"] * len(columns))]
    for case in result.cases:
        for number, name in enumerate(case.seconds):
            row = ["" if number else case.name, name]
            if gpu:
                row += [duration(case.median(name)), ", ".join(limits(result, case, name))]
            row.append("" if name == case.ours else str(case.ratio(name)))
            if "peak memory" in columns:
                row.append(f"{case.memory[name] / 2**20:.0f} MiB" if name in case.memory else "")
            lines.append(_row(row))
    notes = [f"{topic}: {note}" for case in result.cases for topic, note in case.notes.items()]
    return [*lines, *([""] if notes else []), *(f"- {note}" for note in dict.fromkeys(notes)), ""]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def fill(document: str, results: dict[str, list[Result]]) -> str:
    """`document` with every benchmark block replaced. FastganError for a block of an unknown subject."""

    def block(match: re.Match[str]) -> str:
        start, subject, end = match.groups()
        if subject not in results:
            raise FastganError(f"<!-- benchmarks:{subject} --> has no results{suggest(subject, results)}")
        return f"{start}\n{markdown(results[subject])}\n{end}"

    return BLOCK.sub(block, document)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--write", type=Path, metavar="FILE", help="fill in the blocks of this file instead")
    arguments = parser.parse_args(argv)
    results = load_results(arguments.results)
    try:
        if arguments.write:
            arguments.write.write_text(fill(arguments.write.read_text(), results))
            return
    except FastganError as error:
        sys.exit(f"{arguments.write}: {error}")
    for subject, devices in results.items():
        print(f"## {subject}\n\n{markdown(devices)}")


if __name__ == "__main__":
    main()
