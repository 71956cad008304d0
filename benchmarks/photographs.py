"""Systems on 64x64 patches of photographs, each beside its usual arrangement in plain PyTorch, from the same run.

    python -m benchmarks.photographs [CONTEST ...] [--kimg FACTOR] [--pictures FOLDER] [--save-results]

The photographs are the seven that scikit-learn and scikit-image ship. All sides of a contest see the same batches, as
many images, and are timed in turn, a few steps each, in seconds of this thread's processor time (torch has one thread,
so that other work on the machine matters little). Afterwards each is scored on patches of the right ends of the
photographs, which no side was trained on, or by samples (benchmarks.photo_scores). docs/photographs.md shows it all.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from benchmarks import photo_contests
from benchmarks.photo_contests import OURS, Contest
from fastgan import bench
from fastgan.data.feeder import Feeder
from fastgan.errors import FastganError, suggest
from fastgan.run.images import grid

CONTESTS: dict[str, tuple[float, Callable[[float], Contest]]] = {  # name -> thousand images, how it is made
    "conditional": (20.0, photo_contests.conditional),
    "pix2pix-noise": (2.0, lambda kimg: photo_contests.translation("noise", kimg)),
    "pix2pix-gray": (2.0, lambda kimg: photo_contests.translation("gray", kimg)),
    "inpainting": (32.0, photo_contests.inpainting),
    "super-resolution": (4.0, photo_contests.super_resolution),
    "stylegan2": (6.5, photo_contests.stylegan2),
}
CHUNK = 256  # images that a side trains on before the next one's turn
RESULTS = Path(__file__).parent / "results"


def train(contest: Contest, kimg: float) -> Iterator[tuple[float, dict[str, list[float]]]]:
    """Trains all sides; at each quarter of the way: thousand images so far, and of every side the seconds per step, one
    number for each of its turns."""
    steps, chunk = round(kimg * 1000 / contest.batch), max(1, CHUNK // contest.batch)
    seconds: dict[str, list[float]] = {name: [] for name in contest.sides}
    names, turns = list(contest.sides), math.ceil(steps / chunk)
    with Feeder(contest.train, seed=0, batch=contest.batch, mirror=contest.mirror) as feeder:
        for turn in range(turns):
            done = min((turn + 1) * chunk, steps)
            batches = [contest.vary(next(feeder)) for _ in range(done - turn * chunk)]
            start = turn % len(names)  # who begins changes from turn to turn
            for name in names[start:] + names[:start]:
                began = time.thread_time()
                for batch in batches:
                    contest.sides[name](batch)
                seconds[name].append((time.thread_time() - began) / len(batches))
            if (turn + 1) * 4 // turns > turn * 4 // turns:
                yield done * contest.batch / 1000, seconds


def said(name: str, value: float) -> str:
    if "agreement" in name:
        return f"{name} {value:.1%}"
    return f"{name} {value:.3f}" if value < 1 else f"{name} {value:.2f}"


def case(name: str, contest: Contest, kimg: float, seconds: dict[str, list[float]]) -> bench.Case:
    """The outcome after so many thousand images."""
    notes = {
        f"{name}, {what}": ", ".join(said(*score) for score in scores.items())
        for what, scores in contest.reference.items()
    }
    for side in contest.sides:
        speed = contest.batch / bench.Case("", side, seconds).median(side)
        scores = [said(*score) for score in contest.scores(side).items()]
        notes[f"{name}, {side}"] = ", ".join([*scores, f"{speed:.1f} images/s of one core"])
    rounded = {side: [float(f"{value:.5g}") for value in times] for side, times in seconds.items()}
    return bench.Case(f"{contest.title}, {kimg:.3g} kimg", OURS, rounded, notes=notes)


def draw(name: str, contest: Contest, folder: Path) -> None:
    """One picture: what all sides make of the same, in a row; or else a sheet of each side beside the next."""
    made = [contest.pictures(side) for side in contest.sides]
    if contest.around:
        first, last = contest.around
        sheet = grid(torch.cat([first, *made, last], 3).clamp(-1, 1), columns=2)
    else:
        columns = 7 if name == "conditional" else 6
        sheets = [grid(pictures.clamp(-1, 1), columns=columns) for pictures in made]
        sheet = Image.new("RGB", (sum(each.width + 16 for each in sheets) - 16, sheets[0].height), "white")
        for number, each in enumerate(sheets):
            sheet.paste(each, (number * (each.width + 16), 0))
    sheet.save(folder / f"photos-{name}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CONTESTS)}; all without one")
    parser.add_argument("--kimg", type=float, default=1.0, help="times the length of each contest")
    parser.add_argument("--pictures", type=Path, help="folder for a sheet of each side")
    parser.add_argument("--save-results", action="store_true", help="write results/<device>/photographs.json")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    for name in options.names or list(CONTESTS):
        if name not in CONTESTS:
            raise FastganError(f"{name!r} is no contest{suggest(name, CONTESTS)}")
        kimg = CONTESTS[name][0] * options.kimg
        contest = CONTESTS[name][1](kimg)
        for done, seconds in train(contest, kimg):
            found = case(name, contest, done, seconds)
            result = bench.Result("photographs", bench.device_info(), 0.0, 0.0, bench.load_average(), (found,))
            print("\n".join(bench.text(result).splitlines()[2:]), flush=True)
            if options.save_results:
                add(result, options.results)
            if options.pictures:
                draw(name, contest, options.pictures)


def add(result: bench.Result, folder: Path) -> None:
    """Write a contest's result into the file, in place of an older one of the same contest."""
    path = folder / result.device.slug / f"{result.subject}.json"
    old = bench.Result.load_file(path).cases if path.exists() else ()
    cases = {contest_of(case): case for case in (*old, *result.cases)}
    replace(result, cases=tuple(cases.values())).save(folder)


def contest_of(case: bench.Case) -> str:
    """The name that its notes begin with."""
    return next(iter(case.notes)).split(",")[0]


if __name__ == "__main__":
    main()
