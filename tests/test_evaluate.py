"""Scores over many pictures: what is counted, what a stopped run keeps, and what the page says."""

import json
import math
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from shell import run

from dds_train.cli.main import CONF
from dds_train.commands.compare import choose, run_names
from dds_train.commands.evaluate import ALWAYS, add_scores, curves, with_fewer_steps
from dds_train.critters.dataset import to_tensor
from dds_train.critters.world import critter
from dds_train.errors import UserError
from dds_train.evaluation.cost import cost
from dds_train.evaluation.metrics.diversity import diversity
from dds_train.evaluation.metrics.pixels import mse
from dds_train.evaluation.metrics.scores import MEANINGS, EvaluationItem, Mean, build_scores, everywhere, meaning, means
from dds_train.evaluation.pie_bench import is_pie_bench, read_pie_bench
from dds_train.evaluation.plot import Point, overlap, scatter, shortened, ticks
from dds_train.evaluation.recommendation import REFERENCES, recommend
from dds_train.evaluation.report import GalleryRow, Report, number, write_report
from dds_train.evaluation.results import Results
from dds_train.images.files import save_image


def test_nans_are_counted_and_left_out() -> None:
    rows = [{"a": 1.0, "b": math.nan}, {"a": math.nan, "b": math.nan}, {"a": 3.0, "c": math.inf}]
    found = means(rows)
    assert found["a"] == {"mean": 2.0, "error": pytest.approx(1.0), "count": 2, "nan": 1}  # deviation sqrt(2), over sqrt(2)
    assert math.isnan(found["b"]["mean"])
    assert (found["b"]["count"], found["b"]["nan"]) == (0, 2)
    assert found["c"] == {"mean": math.inf, "error": pytest.approx(math.nan, nan_ok=True), "count": 1, "nan": 0}


def scored(case: EvaluationItem, output: torch.Tensor, folder: Path) -> dict[str, float]:
    """By all scores that apply and need no network."""
    scores = [score for score in build_scores([], None, None, "cpu", str(folder)).found if score.applies(case)]
    found = [score.measure([case], output) for score in scores]
    assert {name for one in found for name in one} == {name for score in scores for name in score.names}
    return {name: value.item() for one in found for name, value in one.items()}


def test_scores_of_one_critter(tmp_path: Path) -> None:
    source = critter(7, species="cat")
    truth = source.replaced(species="lion")
    image, wanted = to_tensor(source)[None], to_tensor(truth)[None]
    case = EvaluationItem("a", image, "a cat", "a lion", truth=wanted, critter=source, change={"species": "lion"})
    nothing, perfect = scored(case, image, tmp_path), scored(case, wanted, tmp_path)
    assert (nothing["right"], perfect["right"], perfect["gap closed"]) == (0, 1, 1)
    assert nothing["gap closed"] == pytest.approx(0)
    assert "PSNR outside" not in perfect
    mask = ((wanted - image).abs().sum(1, keepdim=True) > 0).float()
    masked = scored(EvaluationItem("a", image, "a cat", "a lion", mask=mask), wanted, tmp_path)
    assert (masked["PSNR outside"], masked["MSE outside"]) == (math.inf, 0)
    assert masked["PSNR"] < 40
    assert "gap closed" not in masked


def test_a_truth_that_is_a_picture(tmp_path: Path) -> None:
    image, truth = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.8)
    half = scored(EvaluationItem("a", image, "", "", truth=truth), truth / 2, tmp_path)
    assert half["gap closed"] == pytest.approx(0.75)  # half of the way is a quarter of the squared error
    assert half["PSNR to truth"] == pytest.approx(-20 * math.log10(0.2), abs=1e-4)
    assert "right" not in half
    assert math.isnan(scored(EvaluationItem("a", image, "", "", truth=image), truth, tmp_path)["gap closed"])  # there is no gap


def test_scores_of_a_batch_are_those_of_each(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    images, outputs = (torch.rand(3, 3, 24, 20, generator=rng) * 2 - 1 for _ in range(2))
    masks = (torch.rand(3, 1, 24, 20, generator=rng) > 0.5).float()
    masks[1] = 1
    cases = [EvaluationItem(str(i), images[i : i + 1], "", "", masks[i : i + 1], truth=-images[i : i + 1]) for i in range(3)]
    for score in build_scores([], None, None, "cpu", str(tmp_path)).found:
        if score.applies(cases[0]):
            batched_call = score.measure(cases, outputs)
            for i, case in enumerate(cases):
                for name, values in score.measure([case], outputs[i : i + 1]).items():
                    assert values.item() == pytest.approx(batched_call[name][i].item(), nan_ok=True), name
                    assert math.isnan(values.item()) == (name.endswith("outside") and i == 1)


def test_every_score_has_a_meaning() -> None:
    assert meaning("LPIPS alex outside") == MEANINGS["LPIPS"]
    assert meaning("PSNR to truth") != meaning("PSNR outside") == MEANINGS["PSNR"]
    assert meaning("CLIP target - source") != meaning("CLIP target inside") == MEANINGS["CLIP target"]


def test_diversity_is_a_ratio_of_spreads() -> None:
    inputs = torch.tensor([-1.0, 0, 1]).view(3, 1, 1, 1).expand(3, 2, 4, 4)
    assert diversity(inputs, 0.25 * inputs + 5).item() == pytest.approx(0.25)
    assert diversity(inputs, inputs[:1].expand(3, -1, -1, -1)) == 0


def test_what_cannot_be_loaded_is_left_out_with_a_line(tmp_path: Path) -> None:
    scores = build_scores(["vgg", "none"], str(tmp_path / "none"), str(tmp_path / "none"), "cpu", str(tmp_path))
    assert all("LPIPS" not in name and "CLIP" not in name for score in scores.found for name in score.names)
    assert [line.split(" (")[0].split(":")[0] for line in scores.left_out] == [
        "LPIPS",
        "LPIPS",
        "structure distance",
        f"CLIP model {tmp_path}/none",
    ]
    assert "there are squeeze, alex, vgg" in scores.left_out[1]
    assert all("give its folder" in line for line in scores.left_out[2:])
    assert scores.networks == {}


SETTINGS = {"setting": {"seed": 0}, "method": {"dds": {"steps": 3}}, "picture": {"a": 1, "b": 2}}


def test_results_go_on_where_they_stopped(tmp_path: Path) -> None:
    results = Results(tmp_path / "t", SETTINGS)
    for name in ("a", "b"):
        path = results.picture("dds", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    results.start("dds", "a", {"s / image": 0.1})
    results.add("dds", "a", {"PSNR": math.inf, "SSIM": math.nan})
    results.start("dds", "b", {"s / image": 1 / 3})  # killed in the next line
    with results.path.open("a") as file:
        file.write('{"method": "dds", "image": "b", "made": false, "sco')
    again = Results(tmp_path / "t", SETTINGS)
    assert again.of("dds", "a") == {"s / image": 0.1, "PSNR": math.inf, "SSIM": pytest.approx(math.nan, nan_ok=True)}
    assert again.of("dds", "b") == {"s / image": 1 / 3}
    assert again.of("sds", "a") == {}
    again.start("dds", "a", {"s / image": 0.2})  # made again: its scores are of another picture
    assert Results(tmp_path / "t", SETTINGS).of("dds", "a") == {"s / image": 0.2}
    again.picture("dds", "b").unlink()
    assert again.of("dds", "b") == {}
    lines = again.write_csv(["dds"], ["a", "b"]).read_text().splitlines()
    assert lines == ["image,method,s / image", "a,dds,0.2", "b,dds,"]


def test_a_result_that_is_no_picture_counts_as_nan(tmp_path: Path) -> None:
    results, image = Results(tmp_path, SETTINGS), torch.zeros(1, 3, 8, 8)
    for name, more in (("a", {}), ("b", {"diverged": 1.0})):
        save_image(torch.ones(3, 8, 8), results.picture("dds", name))
        results.start("dds", name, {"s / image": 0.1, **more})
    cases = [EvaluationItem(name, image, "", "") for name in "ab"]
    add_scores([everywhere("MSE", mse)], "dds", cases, results)
    assert results.of("dds", "a")["MSE"] == 0.25
    assert math.isnan(results.of("dds", "b")["MSE"])
    assert means([results.of("dds", name) for name in "ab"])["MSE"]["nan"] == 1


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    Results(tmp_path, SETTINGS)
    Results(tmp_path, {**SETTINGS, "method": {"sds": {}}, "picture": {"c": 3}})  # others may join
    for group, name in (("setting", "seed"), ("method", "dds"), ("picture", "b"), ("method", "sds")):
        with pytest.raises(UserError, match=f"results of another {group} {name}"):
            Results(tmp_path, {**SETTINGS, group: {name: 9}})
    Results(tmp_path, SETTINGS).claim({"network": {"CLIP": "a"}})
    with pytest.raises(UserError, match="results of another network CLIP"):
        Results(tmp_path, SETTINGS).claim({"network": {"CLIP": "b"}})


def test_pie_bench_is_read_as_its_authors_do(tmp_path: Path) -> None:
    (tmp_path / "annotation_images" / "0_random").mkdir(parents=True)
    Image.new("RGB", (512, 512), "red").save(tmp_path / "annotation_images" / "0_random" / "1.jpg")
    row = {"image_path": "0_random/1.jpg", "original_prompt": "a [cat] on a mat", "editing_prompt": "a [dog] on a mat"}
    runs = [512 * 100 + 50, 20, 512 * 101 + 50, 30, 512 * 512 - 3, 99]
    (tmp_path / "mapping_file.json").write_text(json.dumps({"000000000001": {**row, "mask": runs}}))
    assert is_pie_bench(str(tmp_path))
    (entry,) = read_pie_bench(tmp_path)
    assert (entry.source, entry.target) == ("a cat on a mat", "a dog on a mat")
    expected = np.zeros(512 * 512)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        for j in range(min(length, 512 * 512 - start)):
            expected[start + j] = 1
    expected = expected.reshape(512, 512)
    expected[0, :] = expected[-1, :] = expected[:, 0] = expected[:, -1] = 1
    assert np.array_equal(entry.mask[0, 0].numpy(), expected)
    everything = EvaluationItem("a", torch.zeros(1, 3, 16, 16), "", "", mask=torch.ones(1, 1, 16, 16))
    assert math.isnan(scored(everything, everything.image, tmp_path)["PSNR outside"])
    (tmp_path / "mapping_file.json").write_text(json.dumps({"1": {**row, "image_path": "none.jpg", "mask": []}}))
    with pytest.raises(UserError, match="no such file"):
        read_pie_bench(tmp_path)
    (tmp_path / "mapping_file.json").write_text(json.dumps({"1": {}}))
    with pytest.raises(UserError, match="not PIE-Bench's mapping file"):
        read_pie_bench(tmp_path)


class Page(HTMLParser):
    """Fails on a tag that is closed before it was opened, or never; counts pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(str(dict(attrs)["src"]))
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass


def as_summary(per_image: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Mean]]:
    return {method: means(rows) for method, rows in per_image.items()}


def test_the_best_edits_are_those_nearest_to_the_truth() -> None:
    near = {"identity": [0.0, 0.0, 0.0], "vae_reconstruction": [1.0, 1.0, 1.0], "a": [0.5, 0.6, 0.7], "b": [0.7, 0.4, 0.6]}
    kept = {"identity": math.inf, "vae_reconstruction": 40.0, "a": 20.0, "b": 30.0}
    rows = {e: [{"gap closed": gap, "background PSNR": kept[e]} for gap in gaps] for e, gaps in near.items()}
    recommendation = recommend(as_summary(rows), rows)
    assert (recommendation.best, recommendation.changed, recommendation.kept, recommendation.front) == (
        "a",
        "gap closed",
        "background PSNR",
        ("a", "b"),
    )
    # Gains of a over b: -0.2, 0.2, 0.1.
    gains = np.array([-0.2, 0.2, 0.1])
    assert f"behind by 0.033 ± {2 * gains.std(ddof=1) / math.sqrt(3):.3f}" in recommendation.why
    assert "do not tell the two apart" in recommendation.why
    rows["a"] = [{**row, "gap closed": 0.3 + other["gap closed"]} for row, other in zip(rows["a"], rows["b"], strict=True)]
    assert "apart" not in recommend(as_summary(rows), rows).why
    for row, gain in zip(rows["a"], (0.05, 0.3, 0.05), strict=True):  # 1.6 standard errors are not enough
        row["gap closed"] = gain
    rows["b"] = [{**row, "gap closed": 0.0} for row in rows["b"]]
    assert "do not tell the two apart" in recommend(as_summary(rows), rows).why


def test_a_much_faster_editor_that_is_nearly_as_good_is_named() -> None:
    edits = {"slow": (0.8, 2.0), "fast": (0.7, 0.01), "faster": (0.5, 0.001), "as slow": (0.75, 1.5)}
    rows = {name: [{"gap closed": gap, "s / image": seconds}] * 2 for name, (gap, seconds) in edits.items()}
    recommendation = recommend(as_summary(rows), rows)
    assert recommendation.best == "slow"
    assert "In haste: fast, 200 times as fast, gap closed 0.700." in recommendation.why
    del rows["fast"]
    assert "In haste" not in recommend(as_summary(rows), rows).why


def test_without_a_truth_the_best_balance_wins() -> None:
    def rows(direction: float, lpips: float) -> list[dict[str, float]]:
        return [{"CLIP direction": direction, "LPIPS squeeze": lpips}] * 3

    per_image = {"identity": rows(math.nan, 0), "loud": rows(0.3, 0.8), "fair": rows(0.24, 0.1), "meek": rows(0.03, 0.02)}
    per_image["worse"] = rows(0.2, 0.2)
    recommendation = recommend(as_summary(per_image), per_image)
    assert (recommendation.best, recommendation.changed, recommendation.kept) == ("fair", "CLIP direction", "LPIPS squeeze")
    assert f"{2 / (0.3 / 0.24 + 1 / 0.9):.3f}" in recommendation.why
    assert recommendation.front == ("loud", "fair")  # meek keeps most, and changes too little
    silent = {method: [{"PSNR": 20.0}] for method in per_image}
    assert recommend(as_summary(silent), silent).best is None


def test_numbers_have_three_digits_that_count() -> None:
    shown = [number(v) for v in (0.73812, 12.345, 1234.5, 0.000123, 1e-12, -0.5, math.inf, math.nan)]
    assert shown == ["0.738", "12.3", "1,234", "0.00012", "0", "-0.500", "∞", "NaN"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.213, 0.764), (-3, 1000), (5, 5), (29.6, 41.7)])
def test_ticks_enclose_what_is_plotted(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 9
    assert np.ptp(np.diff(found)) < 1e-9
    assert str(found[1] - found[0])[0] in "1250"


def test_points_stand_where_they_should() -> None:
    points = [Point("a", 0.0, 0.0), Point("b", 2.0, 1.0), Point("far", math.inf, 0.5), Point("none", math.nan, 0.5)]
    points.append(Point("middle", 1.0, 0.5))
    for flip in (False, True):
        drawn = scatter(points, [["a", "b"]], "x", "y", flip)
        (ax, ay), (bx, by), (fx, _), (mx, my) = [tuple(map(float, c)) for c in re.findall(r'cx="(\S+)" cy="(\S+)"', drawn)]
        assert ay > by  # upwards
        assert (ax > bx) == flip
        assert fx > max(ax, bx)
        assert (mx, my) == (pytest.approx((ax + bx) / 2, abs=0.1), pytest.approx((ay + by) / 2, abs=0.1))
    assert scatter(points[:1], [], "x", "y") == ""


def test_names_in_the_plot_do_not_run_into_one_another() -> None:
    assert shortened(["dds, 25 steps", "dds, 50 steps", "dds"]) == {"dds, 25 steps": "25 steps", "dds, 50 steps": "50 steps"}
    assert shortened(["t a, strength 0.5", "t a, strength 1"]) == {"t a, strength 0.5": "0.5"}
    rng = np.random.default_rng(0)
    points = [Point(f"editor {i}", *rng.uniform(0, 1, 2)) for i in range(12)]
    drawn = scatter(points, [], "x", "y")
    labels = re.findall(r'<text x="(\S+)" y="(\S+)" fill="#222">(.*?)</text>', drawn)
    assert [label for *_, label in labels] == [point.name for point in points]
    boxes = [(float(x), float(y) - 10, float(x) + 6.4 * len(label), float(y) + 3) for x, y, label in labels]
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    assert all(box[0] > 0 and box[2] < 760 for box in boxes)


def report_of(tmp_path: Path) -> Report:
    Image.new("RGB", (8, 9)).save(tmp_path / "any.png")
    gaps = {"identity": 0, "vae_reconstruction": 0.98, "sds": 0.4, "<dds>": 0.7}
    kept = {"identity": math.inf, "vae_reconstruction": 20, "sds": 18, "<dds>": 19}
    each = {"first": 0.5, "second": 0.9, "third": math.nan}
    rows = [
        GalleryRow(
            name,
            "a → b",
            lambda: (torch.zeros(3, 8, 9), torch.ones(3, 8, 9)),
            {method: {"gap closed": gap * factor, "background PSNR": kept[method]} for method, factor in gaps.items()},
        )
        for name, gap in each.items()
    ]
    summary = as_summary({method: [row.scores[method] for row in rows] for method in gaps})
    return Report(
        "a cat → a lion", "3 pictures", summary, [["sds", "<dds>"]], rows, lambda *_: tmp_path / "any.png", ["no weights"]
    )


def test_the_page_says_which_editor_to_use(tmp_path: Path) -> None:
    write_report(tmp_path, report_of(tmp_path))
    text = (tmp_path / "report.html").read_text()
    assert "Use <b>&lt;dds&gt;</b>" in text
    assert "no weights" in text
    assert text.index("<td>second") < text.index("<td>first") < text.index("<td>third")  # best first
    assert "<svg" in text
    assert re.search(r"class=best>0\.490", text)  # 0.7 of the mean of 0.5 and 0.9
    assert "(1 NaN)" in text
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.sources) == 3 * (2 + 4)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", text)  # nothing from elsewhere


def test_a_long_gallery_shows_best_and_worst(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    write_report(tmp_path, report, most=2)
    text = (tmp_path / "report.html").read_text()
    assert "<td>second" in text
    assert "<td>third" in text
    assert "<td>first" not in text
    assert "2 of 3 are shown" in text


def test_editors_that_differ_in_a_dial_are_one_curve() -> None:
    dds = {"kind": "optimize", "loss": "dds", "lr": 0.1, "steps": 200}
    chosen = {
        "identity": {"kind": "identity"},
        **with_fewer_steps({"dds": dds, "sds": {**dds, "loss": "sds", "steps": 40}}, [50, 20, 200]),
    }
    chosen |= {f"t {s}": {"kind": "translator", "ckpt": "a", "strength": s} for s in (1.0, 0.5)}
    assert curves(chosen) == [["dds, 20 steps", "dds, 50 steps", "dds"], ["sds, 20 steps", "sds"], ["t 0.5", "t 1.0"]]


def test_doing_nothing_and_the_codec_are_always_there() -> None:
    usual = {"steps": 1, "lr": 0.1, "guidance": 1.0, "t_range": [50, 950], "ckpt": None, "strengths": [1.0]}
    for only in (["mine"], None):
        cfg = OmegaConf.create({**usual, "methods": only, "method": {"mine": {"loss": "pds"}}})
        assert list(choose(cfg, ALWAYS)) == ["identity", "vae_reconstruction", "mine"]
        assert list(choose(cfg)) == ["mine"]
    assert set(ALWAYS) == set(REFERENCES)


def test_translators_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    assert run_names(["o/cat2lion/translator"]) == {"o/cat2lion/translator": "cat2lion"}
    same = ["x/a/run/translator", "x/b/run/checkpoints/last.ckpt"]
    assert list(run_names(same).values()) == ["a/run", "b/run"]


def test_what_an_editor_costs() -> None:
    def work() -> str:
        time.sleep(0.05)
        return "done"

    result, seconds, before = cost(work, "cpu")
    _, _, more = cost(lambda: np.ones(2**24).sum(), "cpu")  # 128 MiB
    _, _, after = cost(work, "cpu")
    assert result == "done"
    assert 0.05 <= seconds < 1
    if not math.isnan(more):
        assert 100 < more - before < 300
        assert after < more - 50  # the peak is that of this work alone


@pytest.mark.slow
def test_evaluate_critters_and_go_on(tmp_path: Path) -> None:
    command = ("evaluate", "critters.count=3", "methods=[dds]", "lpips.nets=[]", "clip.model=null", "output_dir=out")
    printed = run(*command, "steps=3", "step_counts=[2]", cwd=tmp_path)
    assert "left out: structure distance" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["methods"]) == {"identity", "vae_reconstruction", "dds, 2 steps", "dds"}
    assert metrics["methods"]["identity"]["PSNR"] == {"mean": "inf", "error": None, "count": 3, "nan": 0}
    assert metrics["methods"]["vae_reconstruction"]["gap closed"]["mean"] > 0.9
    assert metrics["methods"]["identity"]["diversity"]["mean"] == pytest.approx(1)
    assert metrics["methods"]["dds"]["peak MiB"]["mean"] > 100
    lines = (tmp_path / "out" / "results.jsonl").read_text()
    first = next((tmp_path / "out" / "pictures" / "dds").iterdir())
    first.unlink()
    (tmp_path / "out" / "report.html").unlink()
    run(*command, "steps=3", "step_counts=[2]", cwd=tmp_path)
    more = (tmp_path / "out" / "results.jsonl").read_text()
    assert more.startswith(lines)
    assert first.exists()
    assert (tmp_path / "out" / "report.html").exists()
    added = [json.loads(line) for line in more[len(lines) :].splitlines()]
    assert {(one["method"], one["image"]) for one in added} == {("dds", first.stem)}  # one edit made again, the others not
    printed = run(*command, "steps=4", cwd=tmp_path, code=2)
    assert "results of another editor dds" in printed


@pytest.mark.slow
def test_evaluate_a_list_of_pictures(tmp_path: Path) -> None:
    for name, height, colour in (("0", 48, "red"), ("1", 64, "red"), ("2", 48, "blue")):
        Image.new("RGB", (64, height), colour).save(tmp_path / f"{name}.png")
    Image.new("L", (64, 48), 0).save(tmp_path / "m.png")
    (tmp_path / "reds").mkdir()
    for name in "ab":
        Image.new("RGB", (40, 40), "red").save(tmp_path / "reds" / f"{name}.png")
    (tmp_path / "e.csv").write_text("image,target,mask,truth\n0.png,a photo of a lion,m.png,2.png\n1.png,a photo of a bear,,\n")
    torch.jit.script(TinyInception()).save(str(tmp_path / "inception.pt"))
    quick = ("lpips.nets=[]", "clip.model=null", "structure.model=null", "steps=2", "methods=[dds,sdedit]")
    run("evaluate", "image=e.csv", *quick, "output_dir=out", "targets=reds", "fid=inception.pt", cwd=tmp_path)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    dds = metrics["methods"]["dds"]
    assert [dds[name]["count"] for name in ("PSNR", "PSNR outside", "PSNR to truth")] == [2, 1, 1]
    assert metrics["methods"]["identity"]["FID"]["mean"] == pytest.approx(0, abs=1e-6)
    assert dds["FID"]["mean"] > 0.01
    assert metrics["left out"] == []
    assert "Use <b>" in (tmp_path / "out" / "report.html").read_text()  # one truth is enough to rank by
    printed = run("evaluate", "image=e.csv", *quick, "output_dir=out2", "ckpt=no", cwd=tmp_path, code=2)
    assert "ckpt=no" in printed


@pytest.mark.slow
def test_the_whole_family_on_the_shape_of_stable_diffusion(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Pictures of two sizes, each with sentences of its own."""
    rng = np.random.default_rng(0)
    for one in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 32 + 8 * (one % 2), 3), np.uint8)).save(tmp_path / f"{one}.png")
    lines = "".join(f"{one}.png,a photo of a cat {one},a photo of a dog {one}\n" for one in range(3))
    (tmp_path / "e.csv").write_text(f"image,source,target\n{lines}")
    own = (f"teacher.path={tiny('v_prediction')}", "guidance=2.0", "lr=0.01", "t_range=[50,900]", "method.sdedit.steps=4")
    quick = ("lpips.nets=[]", "clip.model=null", "structure.model=null", "steps=2", "method.ddim_inversion.steps=4")
    run(
        "evaluate", "image=e.csv", "method=family", "methods=null", *own, *quick, "batch_size=2", "output_dir=out", cwd=tmp_path
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["methods"]
    family = OmegaConf.load(CONF / "method" / "family.yaml")
    assert list(metrics) == list(family)
    assert all(scores["PSNR"]["count"] == 3 for scores in metrics.values())
    edited = {(tmp_path / "out" / "pictures" / name / "0000 0.png").read_bytes() for name in metrics}
    assert len(edited) == len(metrics)  # each in its own way


class TinyInception(torch.nn.Module):
    """What FID's network looks like from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AvgPool2d(100), torch.nn.Flatten())
