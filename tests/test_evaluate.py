"""Editing and measuring many images: what is done, what is recorded, and what a stopped run does again."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from shell import PROMPTS, run
from torch import Tensor

from dds_train.cli.conf import CONF
from dds_train.critters.captions import full_caption
from dds_train.critters.dataset import to_tensor
from dds_train.critters.render import render
from dds_train.critters.world import critter
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.evaluation.configured import ConfiguredMethod
from dds_train.evaluation.evaluate import Evaluation, Results, evaluate
from dds_train.evaluation.items import EvaluationItem, critter_items, image_items
from dds_train.evaluation.metrics.metric import HIGHER, LOWER, Batch, Metric, Network
from dds_train.evaluation.metrics.registry import MetricOptions, build_metrics
from dds_train.evaluation.outputs import sheet, write_outputs
from dds_train.evaluation.pie_bench import read_pie_bench
from dds_train.methods import METHODS, Method, MethodContext
from dds_train.runs.record import Record

# ---------------------------------------------------------------- items


def test_critters_have_an_exact_ground_truth() -> None:
    items = critter_items(3, {"species": "cat"}, {"species": "lion"}, "a cat", "a lion")
    for number, item in enumerate(items):
        source = critter(20_000_000 + number, species="cat")
        images = item.load()
        assert torch.equal(images.image[0], to_tensor(source))
        assert images.truth is not None
        assert torch.equal(images.truth[0], to_tensor(source.replaced(species="lion")))
        assert (item.critter, item.changes, item.size) == (source, {"species": "lion"}, (64, 64))
    assert len({json.dumps(item.identity) for item in items}) == 3


def test_prompts_of_critters_take_their_captions() -> None:
    edit: Any = ({"species": "cat", "hat": True}, {"species": "lion"})
    for swap, word in (({}, "lion"), ({"cat": "tiger"}, "tiger")):
        (item,) = critter_items(1, *edit, "{caption}", "{caption}", swap)
        assert item.critter is not None
        assert item.source == full_caption(item.critter)
        assert item.target == item.source.replace(" cat ", f" {word} ")
    with pytest.raises(UserError, match=r"has none of the words of swap \(dog\)"):
        critter_items(1, *edit, "{caption}", "{caption}", {"dog": "lion"})


def test_settings_are_chosen_on_the_critters_that_validation_uses() -> None:
    (item,) = critter_items(1, {"species": "cat"}, {"species": "lion"}, "a cat", "a lion", split="validation")
    assert item.critter == critter(30_000_000, species="cat")


@pytest.mark.parametrize(
    ("source", "edit", "message"),
    [
        ({"species": "cat"}, {"species": "cat"}, "some source critters already have species=cat; restrict them"),
        ({}, {"glasses": True}, "some source critters already have glasses=True"),
        ({"species": "cat"}, {"species": "cow"}, "species must be one of"),
        ({"species": "cat"}, {"tail": 1}, "tail"),
        ({"species": "cat"}, {}, "no attribute to change"),
    ],
)
def test_edits_without_an_exact_ground_truth_are_refused(source: Any, edit: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        critter_items(32, source, edit, "", "")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_images_of_a_list_have_prompts_masks_and_ground_truth_of_their_own(tmp_path: Path) -> None:
    for name, size in (("0", (64, 48)), ("1", (32, 32)), ("2", (64, 48))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    Image.new("L", (64, 48), 255).save(tmp_path / "m.png")
    (tmp_path / "e.csv").write_text("image,source,target,mask,truth\n0.png,a cat,a lion,m.png,2.png\n1.png,,,,\n")
    first, second = image_items(str(tmp_path / "e.csv"), "a dog", "a bear", None, tmp_path / "out")
    assert (first.source, first.target, second.source, second.target) == ("a cat", "a lion", "a dog", "a bear")
    assert (first.has_mask, first.has_truth, second.has_mask, second.has_truth) == (True, True, False, False)
    images = first.load()
    assert images.mask is not None
    assert images.truth is not None
    assert images.mask.shape == (1, 1, 48, 64)
    scaled, _ = image_items(str(tmp_path / "e.csv"), "a dog", "a bear", 32, tmp_path / "out")
    assert scaled.size == (24, 32)
    assert scaled.identity != first.identity
    Image.new("RGB", (8, 8), "red").save(tmp_path / "2.png")
    with pytest.raises(UserError, match=r"is 8 x 8, and .* is 64 x 48"):
        image_items(str(tmp_path / "e.csv"), "", "", None, tmp_path / "out")


def test_pie_bench_is_read_as_its_authors_do(tmp_path: Path) -> None:
    (tmp_path / "annotation_images" / "0_random").mkdir(parents=True)
    Image.new("RGB", (512, 512), "red").save(tmp_path / "annotation_images" / "0_random" / "1.jpg")
    row = {"image_path": "0_random/1.jpg", "original_prompt": "a [cat] on a mat", "editing_prompt": "a [dog] on a mat"}
    runs = [512 * 100 + 50, 20, 512 * 101 + 50, 30, 512 * 512 - 3, 99]
    (tmp_path / "mapping_file.json").write_text(json.dumps({"000000000001": {**row, "mask": runs}}))
    (item,) = image_items(str(tmp_path), "", "", None, tmp_path / "out")
    assert (item.source, item.target, item.has_mask) == ("a cat on a mat", "a dog on a mat", True)
    expected = np.zeros(512 * 512)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        for j in range(min(length, 512 * 512 - start)):
            expected[start + j] = 1
    expected = expected.reshape(512, 512)
    expected[0, :] = expected[-1, :] = expected[:, 0] = expected[:, -1] = 1
    mask = item.load().mask
    assert mask is not None
    assert np.array_equal(mask[0, 0].numpy(), expected)
    with pytest.raises(UserError, match="512 x 512"):
        image_items(str(tmp_path), "", "", 256, tmp_path / "out")
    (tmp_path / "mapping_file.json").write_text(json.dumps({"1": {**row, "image_path": "none.jpg", "mask": []}}))
    with pytest.raises(UserError, match="no such file"):
        read_pie_bench(tmp_path)
    (tmp_path / "mapping_file.json").write_text(json.dumps({"1": {}}))
    with pytest.raises(UserError, match="not PIE-Bench's mapping file"):
        read_pie_bench(tmp_path)


def test_names_of_pie_bench_stay_inside_its_folder_and_ours(tmp_path: Path) -> None:
    (tmp_path / "annotation_images").mkdir()
    Image.new("RGB", (512, 512)).save(tmp_path / "annotation_images" / "1.jpg")
    row = {"image_path": "1.jpg", "original_prompt": "a cat", "editing_prompt": "a dog", "mask": []}
    keys = ["../../x", "x", "/etc/x", "z" * 300]
    (tmp_path / "mapping_file.json").write_text(json.dumps(dict.fromkeys(keys, row)))
    results = Results(Record(tmp_path / "out", "evaluate"))
    entries = read_pie_bench(tmp_path)
    items = [EvaluationItem(entry.name, "", "", (1, 1), lambda: pytest.fail("not read")) for entry in entries]
    paths = [results.path("../method", item).resolve() for item in items]
    assert len(set(paths)) == 4
    assert all((tmp_path / "out" / "images").resolve() in path.parents for path in paths)
    assert all(len(path.name) <= 250 for path in paths)
    for outside in ("../mapping_file.json", "/etc/hostname", "a/../../mapping_file.json"):
        (tmp_path / "mapping_file.json").write_text(json.dumps({"1": {**row, "image_path": outside}}))
        with pytest.raises(UserError, match="leaves the folder"):
            read_pie_bench(tmp_path)


# ---------------------------------------------------------------- edit and measure


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Targets of all edits of method "lighter", which adds 0.1, and whose output for target "nan" is NaN."""
    targets_seen: list[str] = []

    def lighter(context: MethodContext) -> Method:
        def edit(images: Tensor, sources: Sequence[str], targets: Sequence[str]) -> Tensor:
            targets_seen.extend(targets)
            lost = torch.tensor([target == "nan" for target in targets]).view(-1, 1, 1, 1)
            return torch.where(lost, math.nan, (images + 0.1).clamp(-1, 1))

        return edit

    monkeypatch.setitem(METHODS, "lighter", lighter)
    return targets_seen


def items_of(folder: Path, targets: Sequence[str]) -> list[EvaluationItem]:
    lines = ["image,target"]
    for number, target in enumerate(targets):
        Image.fromarray(render(critter(number), 64)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{target}")
    (folder / "edits.csv").write_text("\n".join(lines))
    return image_items(str(folder / "edits.csv"), "a", "b", None, folder / "out")


def evaluation_of(folder: Path, items: list[EvaluationItem], metrics: list[Metric] | None = None) -> Evaluation:
    methods = {name: ConfiguredMethod(name, name, {}) for name in ("identity", "lighter")}
    with Record(folder / "out", "evaluate") as record:
        record.claim({})
        known = build_metrics(MetricOptions()) if metrics is None else metrics
        evaluation = evaluate(items, methods, lambda: MethodContext(DiffusionCheckpoint("bundled")), known, record)
    assert evaluation is not None
    return evaluation


def test_a_second_run_makes_what_is_missing(tmp_path: Path, calls: list[str]) -> None:
    items = items_of(tmp_path, ["one", "two", "three"])
    first = evaluation_of(tmp_path, items)
    assert calls == ["one", "two", "three"]
    assert first.summary["identity"]["PSNR"].mean == math.inf
    assert first.summary["lighter"]["PSNR"].count == 3
    paths = [first.results.path("lighter", item) for item in items]
    times = [path.stat().st_mtime_ns for path in paths]
    paths[0].unlink()
    paths[1].write_bytes(b"another image")
    again = evaluation_of(tmp_path, items)
    assert calls[3:] == ["one", "two"]
    assert [path.stat().st_mtime_ns == before for path, before in zip(paths, times, strict=True)] == [False, False, True]
    assert again.summary["lighter"]["PSNR"] == first.summary["lighter"]["PSNR"]
    evaluation_of(tmp_path, items_of(tmp_path, ["one", "two", "other"]))
    assert calls[5:] == ["other"]  # its prompt is another


def test_a_result_that_is_being_made_does_not_count(tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while editing anew: what lies there is of the earlier edit."""
    evaluation_of(tmp_path, items_of(tmp_path, ["one", "two"]))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "lighter", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluation_of(tmp_path, items_of(tmp_path, ["other", "two"]))
    evaluation_of(tmp_path, items_of(tmp_path, ["one", "two"]))
    assert calls == ["one", "two", "one"]


def test_results_that_diverged_are_failures_without_an_image(tmp_path: Path, calls: list[str]) -> None:
    items = items_of(tmp_path, ["one", "nan", "three"])
    evaluation = evaluation_of(tmp_path, items)
    lighter = evaluation.summary["lighter"]
    assert (lighter["diverged"].mean, lighter["diverged"].count) == (pytest.approx(1 / 3), 3)
    assert (lighter["PSNR"].count, lighter["PSNR"].nan) == (2, 1)
    assert lighter["s / image"].nan == 0
    assert (lighter["diversity"].count, lighter["diversity"].nan) == (2, 1)
    assert not evaluation.results.path("lighter", items[1]).exists()
    assert write_outputs(tmp_path / "out", evaluation, "", rows=3).count("\n") == 4
    assert "1 of 3" in (tmp_path / "out" / "report.html").read_text()
    evaluation_of(tmp_path, items)
    assert len(calls) == 3  # it is known to diverge


def test_metrics_with_a_network_come_later_without_editing_again(tmp_path: Path, calls: list[str]) -> None:
    weights = tmp_path / "weights"

    def load() -> float:
        if not weights.exists():
            raise UserError("download the weights")
        return 0.5

    def metric(path: str) -> Metric:
        network = Network("level", path, load)
        return Metric(
            "level", HIGHER, "", per_image=lambda batch: batch.outputs.mean((1, 2, 3)) * network.model, network=network
        )

    items = items_of(tmp_path, ["one", "nan"])
    metrics = build_metrics(MetricOptions())
    first = evaluation_of(tmp_path, items, [*metrics, metric("a")])
    assert [(one.metrics, one.remedy) for one in first.unavailable] == [(["level"], "download the weights")]
    assert "level" not in first.summary["lighter"]
    weights.touch()
    second = evaluation_of(tmp_path, items, [*metrics, metric("a")])
    assert second.unavailable == []
    expected = second.results.output("lighter", items[0]).mean().item() / 2
    assert (second.summary["lighter"]["level"].mean, second.summary["lighter"]["level"].nan) == (pytest.approx(expected), 1)
    assert len(calls) == 2
    with pytest.raises(UserError, match=r"networks\.level=a \(now b\)"):
        evaluation_of(tmp_path, items, [*metrics, metric("b")])


def test_metrics_that_apply_to_no_item_are_not_missed(tmp_path: Path, calls: list[str]) -> None:
    network = Network("masked", "a", lambda: pytest.fail("is not needed"))
    metric = Metric(
        "masked", HIGHER, "", per_image=lambda batch: network.model, applies=lambda item: item.has_mask, network=network
    )
    evaluation = evaluation_of(tmp_path, items_of(tmp_path, ["one"]), [*build_metrics(MetricOptions()), metric])
    assert evaluation.unavailable == []


def test_files_of_an_evaluation(tmp_path: Path, calls: list[str]) -> None:
    items = items_of(tmp_path, ["=one", "two", "three"])
    evaluation = evaluation_of(tmp_path, items)
    table = write_outputs(tmp_path / "out", evaluation, "three images", rows=2)
    assert (tmp_path / "out" / "table.md").read_text() == table
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(content["methods"]) == ["identity", "lighter"]
    with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["method"]) for row in rows[:2]] == [("0000 0", "identity"), ("0000 0", "lighter")]
    mean = np.mean([float(row["PSNR"]) for row in rows if row["method"] == "lighter"])
    assert content["methods"]["lighter"]["PSNR"]["mean"] == pytest.approx(mean)
    tall, short = sheet(evaluation, 3), sheet(evaluation, 1)
    assert tall.shape[1] - short.shape[1] == 2 * 98  # two more rows of 96 pixels
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        assert image.size == (tall.shape[2], tall.shape[1] - 98)
    assert "three images" in (tmp_path / "out" / "report.html").read_text()


def test_a_new_metric_is_in_all_outputs(tmp_path: Path, calls: list[str]) -> None:
    def mean(batch: Batch) -> Tensor:
        return batch.outputs.mean((1, 2, 3))

    level = Metric("level", HIGHER, "mean of all pixels", "grays", per_image=mean, decimals=4)
    spread = Metric("spread", LOWER, "of the levels", per_set=lambda results: float(np.std(results.values["level"])))
    evaluation = evaluation_of(tmp_path, items_of(tmp_path, ["one", "two"]), [*build_metrics(MetricOptions()), level, spread])
    write_outputs(tmp_path / "out", evaluation, "", rows=1)
    outputs = [evaluation.results.output("lighter", item).mean().item() for item in evaluation.items]
    with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
        values = [float(row["level"]) for row in csv.DictReader(file) if row["method"] == "lighter"]
    assert values == pytest.approx(outputs, abs=2e-3)  # files have 8 bits
    header, *_, row = (tmp_path / "out" / "table.md").read_text().splitlines()
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert cells["level"] == f"{np.mean(values):.4f}"
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["metrics"]["level"] == {"direction": 1, "unit": "grays", "meaning": "mean of all pixels"}
    assert content["methods"]["lighter"]["spread"]["mean"] == pytest.approx(np.std(values))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "level ↑" in page
    assert "spread ↓" in page
    assert "<dt>level (grays)</dt><dd>mean of all pixels</dd>" in page


# ---------------------------------------------------------------- command lines

QUICK = ("lpips.nets=[]", "clip.model=null", "structure.model=null")


@pytest.mark.slow
def test_evaluate_critters_and_go_on(tmp_path: Path) -> None:
    mine = ("method.mine.loss=pds", "method.mine.lr=0.5", "method.mine.options.stride=3", "methods=[dds,mine]", "batch_size=2")
    command = ("evaluate", "critters.count=3", *mine, "lpips.nets=[]", "clip.model=null", "output_dir=out")
    printed = run(*command, "steps=3", "step_counts=[2]", cwd=tmp_path)
    out = tmp_path / "out"
    assert "unavailable: structure" in printed
    assert (out / "table.md").read_text() in printed
    metrics = json.loads((out / "metrics.json").read_text())["methods"]
    assert list(metrics) == ["identity", "vae_reconstruction", "dds, 2 steps", "dds", "mine, 2 steps", "mine"]
    assert metrics["identity"]["PSNR"] == {"mean": "inf", "error": None, "count": 3, "nan": 0}
    assert metrics["vae_reconstruction"]["gap closed"]["mean"] > 0.9
    assert metrics["identity"]["diversity"]["mean"] == pytest.approx(1)
    assert metrics["dds"]["peak MiB"]["mean"] > 100
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 8 * 90
    first = next((out / "images" / "dds").iterdir())
    kept = next((out / "images" / "identity").iterdir()).stat().st_mtime_ns
    first.unlink()
    (out / "report.html").unlink()
    run(*command, "steps=3", "step_counts=[2]", cwd=tmp_path)
    assert first.exists()
    assert (out / "report.html").exists()
    assert next((out / "images" / "identity").iterdir()).stat().st_mtime_ns == kept
    for other in ("steps=4", "seed=1", "critters.edit.species=dog", "max_side=32", "target=a photo of a dog"):
        printed = run(*command, *({"steps=3", "step_counts=[2]"} if other != "steps=4" else ()), other, cwd=tmp_path, code=2)
        assert "with other settings" in printed
        assert other.partition("=")[0] in printed


@pytest.mark.slow
def test_evaluate_an_edit_of_accessories(tmp_path: Path) -> None:
    glasses = ("critters.source.glasses=false", "critters.edit.glasses=true", "critters.edit.species=null")
    run("evaluate", "critters.count=3", *glasses, "methods=[]", *QUICK, "output_dir=out", cwd=tmp_path)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["methods"]
    assert metrics["identity"]["edit accuracy"]["mean"] == 0
    assert metrics["identity"]["species"]["mean"] == 1
    assert metrics["vae_reconstruction"]["edit accuracy"]["mean"] > 0.5
    assert "No methods to recommend" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_evaluate_a_list_of_images(tmp_path: Path) -> None:
    for name, height, colour in (("0", 48, "red"), ("1", 64, "red"), ("2", 48, "blue")):
        Image.new("RGB", (64, height), colour).save(tmp_path / f"{name}.png")
    Image.new("L", (64, 48), 0).save(tmp_path / "m.png")
    (tmp_path / "reds").mkdir()
    for name in "ab":
        Image.new("RGB", (40, 40), "red").save(tmp_path / "reds" / f"{name}.png")
    (tmp_path / "e.csv").write_text("image,target,mask,truth\n0.png,a photo of a lion,m.png,2.png\n1.png,a photo of a bear,,\n")
    torch.jit.script(TinyInception()).save(str(tmp_path / "inception.pt"))
    command = ("evaluate", "image=e.csv", *QUICK, "steps=2", "methods=[dds,sdedit]")
    run(*command, "output_dir=out", "targets=reds", "fid=inception.pt", cwd=tmp_path)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    dds = metrics["methods"]["dds"]
    assert [dds[name]["count"] for name in ("PSNR", "PSNR outside", "PSNR to ground truth")] == [2, 1, 1]
    assert metrics["methods"]["identity"]["FID"]["mean"] == pytest.approx(0, abs=1e-6)
    assert dds["FID"]["mean"] > 0.01
    assert metrics["unavailable"] == []
    assert "FID" in (tmp_path / "out" / "table.md").read_text()
    printed = run(*command, "output_dir=out2", "ckpt=no", cwd=tmp_path, code=2)
    assert "ckpt=no" in printed


@pytest.mark.slow
def test_the_whole_family_on_the_shape_of_stable_diffusion(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Images of two sizes, each with prompts of its own."""
    rng = np.random.default_rng(0)
    for one in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 32 + 8 * (one % 2), 3), np.uint8)).save(tmp_path / f"{one}.png")
    lines = "".join(f"{one}.png,a photo of a cat {one},a photo of a dog {one}\n" for one in range(3))
    (tmp_path / "e.csv").write_text(f"image,source,target\n{lines}")
    own = (f"teacher.path={tiny('v_prediction')}", "guidance=2.0", "lr=0.01", "t_range=[50,900]", "method.sdedit.steps=4")
    command = ("evaluate", *QUICK, "steps=2", "method.ddim_inversion.steps=4", "method=family", "methods=null", *own)
    run(*command, "image=e.csv", "batch_size=2", "output_dir=out", cwd=tmp_path)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["methods"]
    family = OmegaConf.load(CONF / "method" / "family.yaml")
    assert list(metrics) == list(family)
    assert all(scores["PSNR"]["count"] == 3 for scores in metrics.values())
    edited = {(tmp_path / "out" / "images" / name / "0000 0.png").read_bytes() for name in metrics}
    assert len(edited) == len(metrics)  # each in its own way
    run(*command[:4], *PROMPTS, "image=[0.png,2.png]", "method=family", "methods=[dds]", *own, "output_dir=two", cwd=tmp_path)
    assert "| identity | inf |" in (tmp_path / "two" / "table.md").read_text()


class TinyInception(torch.nn.Module):
    """The interface of FID's network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AvgPool2d(100), torch.nn.Flatten())
