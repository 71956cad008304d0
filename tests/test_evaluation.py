"""Scores: each side once through the network, the real side kept; `fastgan eval` as a user meets it; in training."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastgan import cli, metrics
from fastgan.data.pack import PackOptions, pack
from fastgan.errors import FastganError
from fastgan.evaluation import METRICS, evaluate, generated_images, numbers_of, parse_metrics
from fastgan.features import Extractor, FeatureProtocol, open_extractor
from fastgan.metrics.sources import Images, images_of
from fastgan.run.log import read_statistics
from fastgan.scores import scores_as_json
from fastgan.trained import load_run

rng = np.random.default_rng(0)
REAL = torch.from_numpy(rng.integers(0, 256, (60, 3, 4, 4), dtype=np.uint8))
FAKE = torch.from_numpy(rng.integers(0, 200, (50, 3, 4, 4), dtype=np.uint8))
TINY = ["--preset", "digits", "--batch", "16", "--device", "cpu", "--set", "data.size=16"]
TINY += ["--set", "system.networks.generator_width=4"]
TINY += ["--set", "system.networks.generator_layers=[16]", "--set", "system.latent=8"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


class Network:
    """Means of each channel's halves, [N, 6]; counts what it sees."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.float().unflatten(2, (2, 2)).mean((3, 4)).flatten(1)


def extractor(network: Network, weights: str = "1") -> Extractor:
    protocol = FeatureProtocol("mine", "", "none", weights, "not at all")
    return Extractor(protocol, network, torch.device("cpu"), lambda x: x * 0.1)


def test_all_metrics_from_one_pass_of_each_side(cache: Path) -> None:
    network = Network()
    names = tuple(METRICS)
    results = evaluate(images_of(REAL), images_of(FAKE), extractor(network), names, batch_size=7)
    assert network.seen == len(REAL) + len(FAKE)
    x, y = Network()(REAL), Network()(FAKE)
    found = {result.name: result for result in results}
    assert found["fid"].value == pytest.approx(metrics.fid(x, y).value, rel=1e-12)
    assert found["kid"].value == pytest.approx(metrics.kid(x, y).value, rel=1e-12)
    assert found["inception_score"].value == pytest.approx(metrics.inception_score(y * 0.1).value, rel=1e-12)
    assert found["density_coverage"].values == metrics.density_coverage(x, y).values
    assert all(result.protocol.features == "mine" for result in results)
    assert len(results) == len(names) + 1  # prdc gives two
    numbers = numbers_of(results)
    assert {"fid", "kid", "kid.std", "inception_score", "precision", "recall", "density", "coverage", "f8"} <= set(
        numbers
    )
    assert numbers["kid"] == found["kid"].value


@pytest.mark.parametrize(("name", "kind"), [("fid", ".npz"), ("kid", ".npy")])
def test_the_real_side_is_computed_once(cache: Path, name: str, kind: str) -> None:
    network = Network()

    def value() -> float:
        network.seen = 0
        return float(evaluate(images_of(REAL), images_of(FAKE), extractor(network), [name])[0])

    first = value()
    assert network.seen == len(REAL) + len(FAKE)
    assert [path.suffix for path in cache.iterdir()] == [kind]
    assert value() == pytest.approx(first, rel=1e-9)
    assert network.seen == len(FAKE)
    next(cache.iterdir()).write_bytes(b"broken")
    assert value() == pytest.approx(first, rel=1e-9)
    assert network.seen == len(REAL) + len(FAKE)


def test_another_set_another_network_another_resize_are_not_mixed_up(cache: Path) -> None:
    network = Network()
    one = extractor(network)
    other_pixels = REAL.clone()
    other_pixels[3, 0, 0, 0] ^= 1
    resized = Extractor(replace(one.protocol, resize="clean"), network, one.device)
    for number, (real, extract) in enumerate(
        ((REAL, one), (other_pixels, one), (REAL, extractor(network, "2")), (REAL, resized)), 1
    ):
        network.seen = 0
        evaluate(images_of(real), images_of(FAKE), extract, ["fid"])
        assert network.seen == len(REAL) + len(FAKE)
        assert len(list(cache.iterdir())) == number
    checked = Extractor(replace(one.protocol, verified="SHA-256"), network, one.device)
    network.seen = 0
    evaluate(images_of(REAL), images_of(FAKE), checked, ["fid"])
    assert network.seen == len(FAKE)  # the same file, verified otherwise


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "file" / "below"))
    for name in ("fid", "kid"):
        assert np.isfinite(float(evaluate(images_of(REAL), images_of(FAKE), extractor(Network()), [name])[0]))


def test_statistics_in_place_of_the_real_images(tmp_path: Path) -> None:
    statistics = metrics.FeatureStatistics().update(Network()(REAL))
    results = evaluate(statistics, images_of(FAKE), extractor(Network()), ["fid"])
    assert float(results[0]) == pytest.approx(metrics.fid(Network()(REAL), Network()(FAKE)).value, rel=1e-12)
    with pytest.raises(FastganError, match="kid: need the real images, not their statistics alone"):
        evaluate(statistics, images_of(FAKE), extractor(Network()), ["fid", "kid"])
    named = metrics.FeatureStatistics("mine, resize none, weights 1").update(Network()(REAL))
    named.save(tmp_path / "real.npz")
    loaded = metrics.FeatureStatistics.load(tmp_path / "real.npz")
    assert float(evaluate(loaded, images_of(FAKE), extractor(Network()), ["fid"])[0]) == float(results[0])
    with pytest.raises(FastganError, match=r"two networks .*weights 1; and mine, resize none, weights 2"):
        evaluate(loaded, images_of(FAKE), extractor(Network(), "2"), ["fid"])
    other = metrics.FeatureStatistics().update(torch.randn(9, 5))
    with pytest.raises(FastganError, match="use the same network for both"):
        evaluate(other, images_of(FAKE), extractor(Network()), ["fid"])


def test_names_of_metrics() -> None:
    assert parse_metrics(" fid, kid,fid,") == ("fid", "kid")
    with pytest.raises(FastganError, match=r"metric 'fidd' is unknown; did you mean 'fid'\?"):
        parse_metrics("kid,fidd")
    with pytest.raises(FastganError, match="no metric was named"):
        parse_metrics(",")
    extract = Extractor(extractor(Network()).protocol, Network(), torch.device("cpu"))
    with pytest.raises(FastganError, match="metric 'is' needs class logits, which mine does not have"):
        evaluate(images_of(REAL), images_of(FAKE), extract, ["is"])


def test_progress_of_both_sides() -> None:
    seen: list[tuple[str, int, int]] = []
    unknown = Images("drawn", lambda size: iter(FAKE.split(size)))
    evaluate(
        images_of(REAL),
        unknown,
        extractor(Network()),
        ["fid"],
        batch_size=30,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [
        *(("real", done, 60) for done in (0, 30, 60)),
        *(("generated", done, 0) for done in (0, 30, 50)),
    ]


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was scored twice while it trained, with few samples."""
    folder = tmp_path_factory.mktemp("evaluation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTGAN_CACHE", str(folder / "cache"))
        sets = ["evaluation.samples=40", "evaluation.metrics=fid,prdc"]
        flags = [flag for text in sets for flag in ("--set", text)]
        out = ["--out", str(folder / "run"), "--kimg", "0.5", "--eval-every", "0.3"]
        assert cli.main(["train", *TINY, *out, *flags]) == 0
    return folder / "run"


def call(*arguments: Any) -> int:
    return cli.main(["eval", *map(str, arguments), "--device", "cpu"])


def test_scores_during_training(run: Path) -> None:
    columns = read_statistics(run / "stats.jsonl")
    scored = np.isfinite(columns["score.fid"])
    assert columns["images"][scored].tolist() == [304, 512]  # the first steps at or after 300, and the end
    for name in ("score.precision", "score.recall", "score.density", "score.coverage"):
        assert np.isfinite(columns[name][scored]).all()
    assert np.isfinite(columns["critic.loss"]).all()  # in the same lines, so that other curves have no gaps
    report = (run / "report.html").read_text()
    assert "<h3>Scores" in report
    assert "at 0.5 kimg: fid " in (run / "log.txt").read_text()


def test_the_score_of_a_run_is_that_of_its_pictures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(run.parent / "cache"))
    assert cli.main(["sample", str(run), "--seeds", "0-39", "--singles", str(tmp_path / "p"), "--device", "cpu"]) == 0
    capsys.readouterr()
    values = []
    for source in ([run, "--samples", 40], [tmp_path / "p", "--data", "digits"]):
        assert call(*source, "--json") == 0
        out, err = capsys.readouterr()
        found = json.loads(out)  # JSON and nothing else
        assert err == ""
        assert found["features"]["network"] == "digits"
        assert [result["name"] for result in found["results"]] == ["fid"]
        assert (found["results"][0]["n_real"], found["results"][0]["n_fake"]) == (1797, 40)
        values.append(found["results"][0]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    scored = read_statistics(run / "stats.jsonl")["score.fid"]
    assert values[0] == pytest.approx(scored[np.isfinite(scored)][-1], rel=1e-4)


def test_a_table_for_people(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(run.parent / "cache"))
    assert call(run, "--samples", 30, "--metrics", "fid,is,prdc") == 0
    text = capsys.readouterr().out
    for word in ("fid ", "inception_score", "recall", "coverage", "digits:64", "(30 images)", "(1,797 images)"):
        assert word in text
    assert "warning: 30 fake samples, fewer than 10,000" in text
    live, averaged = [], []
    for flags, values in (([], averaged), (["--live"], live)):
        assert call(run, "--samples", 30, "--json", *flags) == 0
        values.append(json.loads(capsys.readouterr().out)["results"][0]["value"])
    assert live != averaged


def test_the_curve_as_a_picture(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(run.parent / "cache"))
    assert call(run, "--samples", 30, "--metrics", "prd", "--plot", tmp_path / "prd.svg") == 0
    assert (tmp_path / "prd.svg").read_text().count("<polyline") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--plot", "prd.svg"], "--plot prd.svg: shows the curve of the metric prd; add it to --metrics"),
        (["RUN", "--metrics", "fdi"], "metric 'fdi' is unknown; did you mean 'fid'?"),
        (["RUN", "--features", "inception"], "the weights pt_inception-2015-12-05-6726825d.pth are not here"),
        (["RUN", "--features", "inception", "--weights", "/no/file.pth"], "/no/file.pth: No such file"),
        (["RUN", "--samples", "1"], "--samples must be 2 or more, got 1"),
        (["RUN", "--batch", "0"], "--batch must be 1 or more, got 0"),
        (["RUN", "--size", "99"], "--size 99: the pictures of"),
        (["RUN", "--resize", "lanczos"], "lanczos"),
        (["RUN", "--data", "/no/folder"], "/no/folder"),
        (["RUN", "--data", "/no/statistics.npz"], "/no/statistics.npz"),
        (["RUN", "--bf16"], "bf16: offered for inception and vgg16, not for 'digits'"),
        (["RUN", "--metrics", "diversity_ms_ssim"], "expected images of 161 pixels or more on each side, got [16, 16]"),
        (["RUN", "--metrics", "ppl", "--features", "vgg16"], "the weights vgg16-397923af.pth are not here"),
        (["RUN", "--metrics", "psnr"], "paired measures compare files of the same names"),
        (["EMPTY", "--metrics", "critic", "--data", "digits"], "metric 'critic' is of a run, and"),
        (["EMPTY"], "is no run, so --data has to name the real images"),
        (["EMPTY", "--data", "digits"], "no PNG, JPEG or WebP images"),
        (["/no/folder", "--data", "digits"], "no such file or folder"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(run), "EMPTY": str(tmp_path / "empty")}
    assert call(*(places.get(argument, argument) for argument in arguments)) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out == ""


def test_training_that_cannot_be_scored_does_not_begin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    flags = ["--eval-every", "1", "--set", "evaluation.features=inception", "--out", str(out)]
    assert cli.main(["train", *TINY, *flags]) == 2
    assert "are not here" in capsys.readouterr().err
    assert not out.exists()
    assert cli.main(["train", *TINY, "--out", str(out), "--set", "evaluation.metrics=fod"]) == 2
    assert "evaluation: metric 'fod' is unknown; did you mean 'fid'?" in capsys.readouterr().err


def test_a_run_goes_on_with_other_scores(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(run.parent / "cache"))
    out = shutil.copytree(run, tmp_path / "run")
    flags = ["--kimg", "0.7", "--set", "evaluation.metrics=kid", "--set", "evaluation.samples=30"]
    assert cli.main(["train", "--config", str(out / "config.toml"), "--out", str(out), *flags]) == 0
    columns = read_statistics(out / "stats.jsonl")
    assert columns["images"][np.isfinite(columns["score.fid"])].tolist() == [304, 512]
    assert columns["images"][np.isfinite(columns["score.kid"])].tolist() == [608, 704]


def test_scores_that_are_not_finite_are_null_in_json() -> None:
    from fastgan.metrics import Result
    from fastgan.scores import Scores

    @dataclass(frozen=True)
    class Protocol:
        k: int = 3

    scores = Scores("a", "b", "c", {}, (Result("fid", float("nan"), Protocol(), {"curve": (1.0, float("inf"))}),))
    found = json.loads(scores_as_json(scores))["results"][0]
    assert found["value"] is None
    assert found["values"]["curve"] == [1.0, None]
    assert found["protocol"] == {"k": 3}


def results_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return {result["name"]: result for result in json.loads(capsys.readouterr().out)["results"]}


def test_what_only_a_run_can_be_asked(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Path length by its definition, the critic's logits, pairs of pictures; no network is opened for the last two."""
    monkeypatch.setenv("FASTGAN_CACHE", str(run.parent / "cache"))
    flags = ["--samples", 48, "--batch", 16, "--json"]
    assert call(run, "--metrics", "ppl,critic,diversity_lpips", *flags) == 0
    found = results_of(capsys)
    assert list(found) == ["path_length", "critic_calibration", "diversity_lpips"]
    assert found["path_length"]["protocol"]["distance"] == "squared distance of digits:64"
    assert found["path_length"]["protocol"]["samples"] == 48
    config, players, device = load_run(run, True, "cpu", print)
    latents = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    ends = [players["generator"](z) for z in (latents, latents + 1e-2 * (latents.flip(0) - latents))]
    extract = open_extractor("digits", device=device)
    steps = [extract.run((x * 127.5 + 127.5).expand(-1, 3, -1, -1)).double() for x in ends]
    expected = float((steps[0] - steps[1]).square().sum(1).mean()) / 1e-4
    assert 0.3 < found["path_length"]["value"] / expected < 3
    critic = found["critic_calibration"]
    fakes = next(generated_images(config.system, players, config.shape, 48, device).batches(48)).float() / 127.5 - 1
    with torch.no_grad():
        assert critic["values"]["fake_mean"] == pytest.approx(float(players["critic"](fakes).mean()), rel=1e-4)
    assert (critic["n_real"], critic["n_fake"]) == (48, 48)
    assert any("those that the critic was trained on" in words for words in critic["warnings"])
    assert found["diversity_lpips"]["n_fake"] == 48
    assert found["diversity_lpips"]["value"] > 0
    for name in ("path_length", "diversity_lpips"):
        assert "by the squared distance of digits:64, in place of LPIPS" in found[name]["warnings"]


def test_files_of_the_same_name_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = REAL[:9].repeat(1, 1, 4, 4), REAL[1:10].repeat(1, 1, 4, 4)
    for name, images in (("a", x), ("b", y)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(
                tmp_path / name / f"{i}.{'png' if i else 'webp'}", lossless=True
            )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgan.image_scores.PAIRED_AT_ONCE", 4)
        pair = (tmp_path / "a", "--data", tmp_path / "b")
        assert call(*pair, "--metrics", "psnr,ssim,pixel_accuracy", "--json") == 0
    found = results_of(capsys)
    want = {"psnr": metrics.psnr(x, y), "ssim": metrics.ssim(x, y)}
    want["pixel_accuracy"] = metrics.pixel_accuracy(x, y, tolerance=16)
    for name, result in want.items():
        assert found[name]["value"] == pytest.approx(result.value, rel=1e-12)
        assert found[name]["values"] == pytest.approx(dict(result.values), rel=1e-9)
        assert found[name]["n_fake"] == 9
    (tmp_path / "b" / "3.png").rename(tmp_path / "b" / "z.png")
    assert call(*pair, "--metrics", "psnr") == 2
    assert "has no file named 3 (and 0 others of 9 lack a partner)" in capsys.readouterr().err


def test_a_pack_is_a_source(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(run.parent / "cache"))  # it has the trained digits network
    (tmp_path / "a").mkdir()
    for i, image in enumerate(REAL.repeat(1, 1, 4, 4)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "a" / f"{i:03}.png")
    pack(PackOptions(str(tmp_path / "a"), str(tmp_path / "pack"), size=16))
    values = []
    for place in ("a", "pack"):
        assert call(tmp_path / place, "--data", "digits", "--features", "digits", "--json") == 0
        values.append(results_of(capsys)["fid"]["value"])
    assert values[1] == pytest.approx(values[0], rel=1e-9)
    assert call(tmp_path / "pack", "--data", tmp_path / "a", "--features", "digits", "--size", 32) == 2
    assert "have 16; leave it out" in capsys.readouterr().err


def test_bf16_says_what_it_does_to_the_score() -> None:
    def half(images: Tensor) -> Tensor:
        return Network()(images).bfloat16().float()

    exact = extractor(Network())
    extract = replace(exact, run=half, exact=exact, protocol=replace(exact.protocol, arithmetic="bf16"))
    for real in (images_of(REAL), metrics.FeatureStatistics().update(half(REAL))):
        result = evaluate(real, images_of(FAKE), extract, ["fid", "is"], batch_size=16)[0]
        assert result.value == pytest.approx(metrics.fid(half(REAL), half(FAKE)).value, rel=1e-9)
        full = metrics.fid(Network()(REAL) if isinstance(real, Images) else half(REAL), Network()(FAKE)).value
        words = f"features in bf16: over the first 50 images fid is {result.value:.5g}, in fp32 {full:.5g}"
        assert words in result.warnings
        assert result.value != pytest.approx(full, rel=1e-6)
    with pytest.raises(FastganError, match="its effect is measured on some images once more"):
        evaluate(images_of(REAL), Images("drawn", lambda size: iter(FAKE.split(size))), extract, ["fid"])
