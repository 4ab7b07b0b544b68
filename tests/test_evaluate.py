"""Scores over many pictures: what is counted, what a stopped run keeps, and what the page says."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shell import run

from dds_train.commands.evaluate import Table
from dds_train.critters.dataset import to_tensor
from dds_train.critters.world import critter
from dds_train.data.pie_bench import is_pie_bench, read_pie_bench
from dds_train.errors import UserError
from dds_train.metrics.diversity import diversity
from dds_train.metrics.report import Shown, ranked, write_report
from dds_train.metrics.scores import Case, build_scores, critter_scores, means, pixel_scores


def test_nans_are_counted_and_left_out() -> None:
    rows = [{"a": 1.0, "b": math.nan}, {"a": math.nan, "b": math.nan}, {"a": 3.0, "c": math.inf}]
    found = means(rows)
    assert found["a"] == {"mean": 2.0, "count": 2, "nan": 1}
    assert math.isnan(found["b"]["mean"])
    assert (found["b"]["count"], found["b"]["nan"]) == (0, 2)
    assert found["c"] == {"mean": math.inf, "count": 1, "nan": 0}


def test_scores_of_one_critter() -> None:
    source = critter(7, species="cat")
    truth = source.replaced(species="lion")
    image, wanted = to_tensor(source)[None], to_tensor(truth)[None]
    case = Case("a", image, "a cat", "a lion", critter=source, change={"species": "lion"})
    nothing, perfect = critter_scores(case, image), critter_scores(case, wanted)
    assert (nothing["right"], perfect["right"], perfect["gap closed"]) == (0, 1, 1)
    assert nothing["gap closed"] == pytest.approx(0)
    assert "PSNR outside" not in pixel_scores(case, wanted)
    mask = ((wanted - image).abs().sum(1, keepdim=True) > 0).float()
    masked = Case("a", image, "a cat", "a lion", mask=mask)
    assert pixel_scores(masked, wanted)["PSNR outside"] == math.inf
    assert pixel_scores(masked, wanted)["PSNR"] < 40
    assert critter_scores(masked, wanted) == {}


def test_diversity_is_a_ratio_of_spreads() -> None:
    inputs = torch.tensor([-1.0, 0, 1]).view(3, 1, 1, 1).expand(3, 2, 4, 4)
    assert diversity(inputs, 0.25 * inputs + 5).item() == pytest.approx(0.25)
    assert diversity(inputs, inputs[:1].expand(3, -1, -1, -1)) == 0


def test_what_cannot_be_loaded_is_left_out_with_a_line(tmp_path: Path) -> None:
    scores, left_out = build_scores([], str(tmp_path / "none"), str(tmp_path / "none"), "cpu")
    assert len(scores) == 2
    assert [line.split(":")[0].split(" ")[0] for line in left_out] == ["CLIP", "structure"]
    assert all("give its folder" in line for line in left_out)


def test_a_table_goes_on_where_it_stopped(tmp_path: Path) -> None:
    table = Table(tmp_path / "t", {"steps": 3})
    for name in ("a", "b"):
        path = table.picture("dds", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    table.add("dds", "a", {"PSNR": math.inf, "SSIM": math.nan, "s / image": 0.1})
    table.add("dds", "b", {"PSNR": 1 / 3})  # killed here
    with table.path.open("a") as file:
        file.write("dds,b,s / im")
    again = Table(tmp_path / "t", {"steps": 3})
    assert again.has("dds", "a")
    assert not again.has("dds", "b")
    assert not again.has("sds", "a")
    (row,) = again.rows("dds", ["a"])
    assert row["PSNR"] == math.inf
    assert math.isnan(row["SSIM"])
    assert again.lines["dds", "b"]["PSNR"] == 1 / 3
    again.add("dds", "b", {"PSNR": 0.5, "s / image": 0.1})
    assert Table(tmp_path / "t", {"steps": 3}).rows("dds", ["b"]) == [{"PSNR": 0.5, "s / image": 0.1}]
    with pytest.raises(UserError, match="other settings"):
        Table(tmp_path / "t", {"steps": 4})


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
    everything = Case("a", torch.zeros(1, 3, 16, 16), "", "", mask=torch.ones(1, 1, 16, 16))
    assert math.isnan(pixel_scores(everything, everything.image)["PSNR outside"])
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


def test_the_page_says_which_editor_to_use(tmp_path: Path) -> None:
    def score(gap: float, kept: float) -> dict[str, dict[str, float]]:
        return {name: {"mean": v, "count": 3, "nan": 0} for name, v in (("gap closed", gap), ("PSNR", kept))}

    summary = {"nothing": score(0, math.inf), "codec": score(0.98, 20), "sds": score(0.4, 18), "<dds>": score(0.7, 19)}
    assert ranked(summary, "gap closed") == ["<dds>", "sds"]
    gaps = {"first": 0.5, "second": 0.9, "third": math.nan}
    rows = [
        Shown(name, torch.zeros(1, 3, 8, 9), torch.ones(1, 3, 8, 9), {editor: {"gap closed": gap} for editor in summary})
        for name, gap in gaps.items()
    ]
    Image.new("RGB", (8, 9)).save(tmp_path / "any.png")
    write_report(tmp_path, summary, rows, lambda *_: tmp_path / "any.png", ["LPIPS: no weights"], "a cat → a lion")
    text = (tmp_path / "report.html").read_text()
    assert "Use <b>&lt;dds&gt;</b>: the highest gap closed (0.700)" in text
    assert "LPIPS: no weights" in text
    assert text.index("<td>second") < text.index("<td>first") < text.index("<td>third")  # best first
    assert "<svg" in text
    assert re.search(r"class=best>0\.700", text)
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.sources) == 3 * (2 + 4)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert "http" not in re.sub(r'src="[^"]*"', "", text)  # nothing from elsewhere


@pytest.mark.slow
def test_evaluate_critters_and_go_on(tmp_path: Path) -> None:
    command = ("evaluate", "critters=3", "steps=3", "only=[dds]", "lpips=[]", "clip.model=null", "output_dir=out")
    printed = run(*command, cwd=tmp_path)
    assert "left out: structure distance" in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["editors"]) == {"nothing", "codec", "dds"}
    assert metrics["editors"]["nothing"]["PSNR"] == {"mean": None, "count": 3, "nan": 0}  # infinite
    assert metrics["editors"]["codec"]["gap closed"]["mean"] > 0.9
    assert metrics["editors"]["nothing"]["diversity"]["mean"] == pytest.approx(1)
    lines = (tmp_path / "out" / "per_image.csv").read_text()
    first = next((tmp_path / "out" / "pictures" / "dds").iterdir())
    first.unlink()
    run(*command, cwd=tmp_path)
    more = (tmp_path / "out" / "per_image.csv").read_text()
    assert more.startswith(lines)
    scores = lines.count("\n") // 9  # of one edit
    assert more.count("\n") - lines.count("\n") in (scores, scores + 1)  # one edit made again, the others not
    assert first.exists()
    printed = run(*command, "steps=4", cwd=tmp_path, code=2)
    assert "other settings" in printed


@pytest.mark.slow
def test_evaluate_a_list_of_pictures(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (64, 48 + 16 * number), "red").save(tmp_path / f"{number}.png")
    Image.new("L", (64, 48), 0).save(tmp_path / "m.png")
    (tmp_path / "e.csv").write_text("image,target,mask\n0.png,a photo of a lion,m.png\n1.png,a photo of a bear,\n")
    quick = ("lpips=[]", "clip.model=null", "structure.model=null", "steps=2", "only=[dds,sdedit]")
    run("evaluate", "image=e.csv", *quick, "output_dir=out", cwd=tmp_path)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["editors"]["dds"]["PSNR"]["count"] == 2
    assert metrics["editors"]["dds"]["PSNR outside"]["count"] == 1
    assert metrics["left out"] == []
    assert "give a CLIP model to rank editors" in (tmp_path / "out" / "report.html").read_text()
