"""`make gallery`: trains every system that learns in minutes on a CPU, and makes docs/gallery.md of their pictures.

    python tools/gallery.py [NAME ...] [--runs runs/gallery] [--workers 2]

Each entry is one `fastgan train` and one command that shows what the run can do, both as they stand on the page. Two
are trained at once, on one core each. An entry whose run is finished is not trained again: remove its folder for that.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "gallery"
WIDEST = 900  # pixels of a picture on the page


@dataclass(frozen=True)
class Entry:
    """One picture of the page.

    title, words: on the page;  train: options of `fastgan train` beside the preset
    show:    the command, with RUN in place of the run folder; not run here where it has IMAGES for the reader's own
    picture: in the run folder, the last that matches
    cell:    pixels from one picture of the sheet to the next: 64 and what is between them, as fastgan's grids have it
    """

    preset: str
    title: str
    words: str
    show: str
    picture: str
    train: str = ""
    cell: int = 66


ENTRIES = (
    Entry("digits", "Unconditional", "Seeds 0 to 63.", "sample RUN --seeds 0-63", "samples-0-63.png"),
    Entry(
        "digits-conditional",
        "Conditional, by projection",
        "Seeds 0 to 79; a column is a class.",
        "sample RUN --seeds 0-79",
        "samples-0-79.png",
    ),
    Entry(
        "digits-auxiliary",
        "Auxiliary classifier",
        "Seeds 0 to 79; a column is a class.",
        "sample RUN --seeds 0-79",
        "samples-0-79.png",
    ),
    Entry(
        "digits-bigan",
        "Adversarially learned inference",
        "Digits, and below each what the generator makes of its code.",
        "encode RUN digits",
        "codes.png",
    ),
    Entry(
        "digits-vae-gan",
        "VAE with a learned similarity",
        "Digits, and below each its reconstruction.",
        "encode RUN digits",
        "codes.png",
    ),
    Entry(
        "digits-mixture",
        "Mixture of generators",
        "Seeds 0 to 63, of all heads.",
        "sample RUN --seeds 0-63",
        "samples-0-63.png",
    ),
    Entry(
        "digits-began",
        "Autoencoding critic (boundary equilibrium)",
        "Seeds 0 to 63.",
        "sample RUN --seeds 0-63",
        "samples-0-63.png",
    ),
    Entry(
        "stylegan2-digits",
        "StyleGAN2",
        "Seeds 0 to 63, styles pulled to the mean by 0.8.",
        "sample RUN --seeds 0-63 --truncation 0.8",
        "samples-0-63-truncation-0.8.png",
        train="--kimg 40",
    ),
    Entry(
        "pix2pix-digits",
        "Paired translation",
        "Noisy digits, and the clean ones made of them.",
        "translate RUN digits --derive",
        "translated/sheet.png",
    ),
    Entry(
        "cyclegan-digits",
        "Unpaired translation",
        "Inverted digits, and the digits made of them; no pair was ever seen together.",
        "translate RUN digits --derive",
        "translated/sheet.png",
    ),
    Entry(
        "srgan-digits",
        "Super-resolution",
        "Digits of the training set, reduced to 4x4: by bicubic interpolation, by the network, as they were. From the"
        " run's own last grid.",
        "upscale RUN IMAGES",
        "fakes-*.png",
    ),
    Entry(
        "inpaint-digits",
        "Inpainting",
        "The hole, what the network fills in, and the original.",
        "inpaint RUN digits",
        "inpainted/sheet.png",
    ),
)


def fastgan(arguments: str, log: Path) -> None:
    """Run `fastgan ARGUMENTS` on one core; what it prints goes to `log`. Its error is ours."""
    command = [sys.executable, "-m", "fastgan", *shlex.split(arguments)]
    with log.open("a") as lines:
        done = subprocess.run(
            command, stdout=lines, stderr=lines, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        )
    if done.returncode:
        raise SystemExit(f"fastgan {arguments}: status {done.returncode}; {log} says why")


def make(entry: Entry, runs: Path) -> None:
    """Train and show one entry; its picture goes to the docs."""
    run = runs / entry.preset
    run.parent.mkdir(parents=True, exist_ok=True)
    log = runs / f"{entry.preset}.log"
    fastgan(f"train --preset {entry.preset} --device cpu --out {shlex.quote(str(run))} {entry.train}", log)
    if "IMAGES" not in entry.show:
        fastgan(entry.show.replace("RUN", shlex.quote(str(run))) + " --device cpu", log)
    with Image.open(sorted(run.glob(entry.picture))[-1]) as picture:
        cell = entry.cell  # what is cut off is whole pictures
        width, height = (min(side, (WIDEST + 2) // cell * cell - 2) for side in picture.size)
        shown = picture.crop((0, 0, width, height))
        PICTURES.mkdir(parents=True, exist_ok=True)
        shown.save(PICTURES / f"{entry.preset}.png", optimize=True)
    print(f"{entry.preset}: {PICTURES / entry.preset}.png", flush=True)


def seconds_of(run: Path) -> tuple[float, float]:
    """Thousand images, and minutes, that a run trained."""
    last = json.loads((run / "stats.jsonl").read_text().splitlines()[-1])
    return last["images"] / 1000, last["seconds"] / 60


def page(runs: Path) -> str:
    """The page, of all entries whose picture is there."""
    lines = [
        "# Gallery",
        "",
        "Made by `make gallery` on two CPU cores, one for each run, in minutes: small networks on the 1,797",
        "handwritten digits that scikit-learn ships. Nothing is picked: the first seeds, the first images. The",
        "commands are those that made the pictures; larger presets of the same systems are for a GPU",
        "([systems](systems.md), [images to images](images-to-images.md), [StyleGAN2](stylegan2.md)). In colour,",
        "beside plain PyTorch: [on photographs](photographs.md).",
    ]
    for entry in ENTRIES:
        if not (PICTURES / f"{entry.preset}.png").exists():
            continue
        train = " ".join(filter(None, ("fastgan train --preset", entry.preset, "--out RUN", entry.train)))
        trained = ""
        if (runs / entry.preset / "stats.jsonl").exists():
            trained = "{:.0f} thousand images, {:.1f} minutes.".format(*seconds_of(runs / entry.preset))
        lines += ["", f"## {entry.title}", "", f"    {train}", f"    fastgan {entry.show}", ""]
        lines += [f"{entry.words} {trained}".rstrip(), "", f"![{entry.title}](gallery/{entry.preset}.png)"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="presets; all without one")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gallery", help="folder for the runs")
    parser.add_argument("--workers", type=int, default=2, help="runs at once")
    options = parser.parse_args()
    wanted = [entry for entry in ENTRIES if not options.names or entry.preset in options.names]
    with ThreadPoolExecutor(options.workers) as pool:
        for _ in pool.map(lambda entry: make(entry, options.runs), wanted):
            pass
    PAGE.write_text(page(options.runs))
    print(f"the page: {PAGE}")


if __name__ == "__main__":
    main()
