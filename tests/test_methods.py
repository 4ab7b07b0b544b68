"""Editing methods from Python, and from configuration."""

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from random_translator import export_random

import dds_train.methods
from dds_train.cli.conf import CONF
from dds_train.critters.dataset import to_tensor
from dds_train.critters.world import critter
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.evaluation.configured import REFERENCES, ConfiguredMethod, configured_methods, curves, run_names
from dds_train.methods import METHODS, MethodContext
from dds_train.methods.registry import NEGATIVE, instructions
from dds_train.translator import Task, read_config

SETTINGS: dict[str, dict[str, Any]] = {
    "optimize": {"lr": 0.1, "guidance": 2.0, "t_range": (50, 900), "steps": 2},
    "sdedit": {"steps": 4},
    "ddim_inversion": {"steps": 4},
}


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(((to_tensor(critter(0, species="cat")).permute(1, 2, 0) + 1) * 127.5).byte().numpy()).save("cat.png")
    example = textwrap.dedent(inspect.cleandoc(dds_train.methods.__doc__ or "").split("\n\n", 1)[1])
    exec(example.replace("steps=200", "steps=2"), {})
    with Image.open("lion.png") as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_turns_a_batch_of_images_into_a_batch(kind: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Of any size; and no image depends on its company."""
    context = MethodContext(DiffusionCheckpoint(str(tiny("epsilon"))), seed=1)
    options = SETTINGS.get(kind, {})
    if kind == "translator":
        tasks = {"lion": Task("a cat", "a lion", "lion"), "dog": Task("a cat", "a dog", "dog")}
        options = {"ckpt": str(export_random(tmp_path / "translator", tiny("epsilon"), tasks, std=0.05))}
    images = torch.rand(2, 3, 36, 41, generator=torch.Generator().manual_seed(0)) * 2 - 1
    method = METHODS[kind](context, **options)
    edited = method(images, ["a cat", "a cat"], ["a lion", "a dog"])
    assert edited.shape == images.shape
    assert edited.device.type == "cpu"
    assert edited.abs().max() <= 1
    assert torch.equal(edited, images) == (kind == "identity")
    torch.testing.assert_close(method(images[1:], ["a cat"], ["a dog"]), edited[1:], atol=1e-3, rtol=1e-3)


def test_options_with_wrong_values_are_refused(tiny: Callable[[str], Path]) -> None:
    context = MethodContext(DiffusionCheckpoint(str(tiny("epsilon"))))
    usual = SETTINGS["optimize"]
    for wrong, message in (
        ({"t_range": (900, 50)}, r"give \[FIRST,LAST\]"),
        ({"t_range": (50, 5000)}, "within"),
        ({"loss": "pds", "t_range": (1, 500)}, r"within \[2,1000\]"),
        ({"loss": "foo"}, "foo"),
        ({"options": {"foo": 1}}, "foo"),
    ):
        with pytest.raises(ValueError, match=message):
            METHODS["optimize"](context, **{**usual, **wrong})
        with pytest.raises(UserError, match=rf"^method\.mine: .*{message}"):
            ConfiguredMethod("mine", "optimize", {**usual, **wrong}).build(context)


def test_the_default_negative_prompt_is_that_of_the_configuration() -> None:
    assert NEGATIVE["nfsd"] == OmegaConf.load(CONF / "loss" / "nfsd.yaml").negative


# ---------------------------------------------------------------- from configuration

USUAL = {"steps": 200, "lr": 0.1, "guidance": 1.0, "t_range": [50, 950]}


def test_references_are_always_evaluated() -> None:
    for names in (["mine"], None):
        assert list(configured_methods({"mine": {"loss": "pds"}}, names, USUAL)) == [*REFERENCES, "mine"]
    assert list(configured_methods({"mine": {}}, [], USUAL)) == list(REFERENCES)
    assert list(configured_methods({"identity": {"kind": "identity"}}, ["identity"], USUAL)) == list(REFERENCES)


def test_options_of_optimization_are_those_of_the_command_unless_the_method_has_its_own() -> None:
    methods = configured_methods({"mine": {"lr": 0.5}, "sdedit": {"kind": "sdedit", "strength": 0.7}}, None, USUAL)
    assert methods["mine"].options == {**USUAL, "lr": 0.5}
    assert methods["sdedit"].options == {"strength": 0.7}


@pytest.mark.parametrize(
    ("options", "names", "message"),
    [
        ({}, ["ddx"], "no method ddx; there are identity, vae_reconstruction"),
        ({"x": {"kind": "foo"}}, None, "method.x.kind=foo: no such kind; take identity"),
        ({"x": {"strenth": 1}}, None, "method.x.strenth: a method of kind optimize has lr"),
        ({"x": {"kind": "identity", "steps": 1}}, None, "method.x.steps: a method of kind identity has no options"),
        ({"x": {"loss": "foo"}}, None, "method.x: loss"),
        ({"x": {"options": {"foo": 1}}}, None, "has no option foo"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_loaded(options: Any, names: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        configured_methods(options, names, USUAL)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_translator_without_the_task_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    ckpt = export_random(tmp_path / "run" / "translator", tiny("epsilon"), {"lion": Task("a cat", "a lion", "lion")}, std=0.05)
    method = configured_methods({}, [], USUAL, [str(ckpt)])["translator run"]
    method.check_edits([("a cat", "a lion")])
    with pytest.raises(UserError, match="translator run: no task makes 'a dog' of 'a cat'"):
        method.check_edits([("a cat", "a lion"), ("a cat", "a dog")])


def test_tasks_on_captions_make_the_edits_of_their_words(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    tasks = {
        "lion": Task("{caption}", "{caption}", "to a lion", {"cat": "lion"}),
        "dog": Task("a cat", "a dog", "to a dog"),
    }
    ckpt = export_random(tmp_path / "run" / "translator", tiny("epsilon"), tasks, std=0.05)
    config = read_config(ckpt)
    edits = [("a gray cat", "a gray lion"), ("a cat", "a lion"), ("a pig", "a dog")]
    assert list(instructions(config, edits).values()) == ["to a lion", "to a lion", "to a dog"]
    assert set(instructions(config, edits, "dog").values()) == {"to a dog"}
    with pytest.raises(ValueError, match="no task makes 'a gray bear' of 'a gray cat'; take task=NAME, one of its lion "):
        instructions(config, [("a gray cat", "a gray bear")])
    named = configured_methods({}, [], USUAL, [str(ckpt)], task="cow")["translator run"]
    with pytest.raises(UserError, match="task=cow: the tasks of this translator are lion, dog"):
        named.check_edits(edits)


def test_methods_that_differ_in_strength_or_steps_are_one_curve() -> None:
    options = {"dds": {"loss": "dds"}, "sds": {"loss": "sds", "steps": 40}}
    methods = configured_methods(options, None, USUAL, ["t/translator"], [1.0, 0.5], [50, 20, 200])
    assert curves(methods) == [
        ["dds, 20 steps", "dds, 50 steps", "dds"],
        ["sds, 20 steps", "sds"],
        ["translator t, strength 0.5", "translator t, strength 1"],
    ]


def test_translators_are_told_apart_by_their_paths() -> None:
    assert run_names(["o/cat2lion/translator"]) == {"o/cat2lion/translator": "cat2lion"}
    same = ["x/a/run/translator", "x/b/run/checkpoints/last.ckpt"]
    assert list(run_names(same).values()) == ["a/run", "b/run"]


def test_a_translator_is_identified_by_its_weights(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    tasks = {"lion": Task("a cat", "a lion", "lion")}
    paths = [export_random(tmp_path / name, tiny("epsilon"), tasks, std) for name, std in (("a", 0.1), ("b", 0.1), ("c", 0.2))]
    a, b, c = (ConfiguredMethod("t", "translator", {"ckpt": str(path), "strength": 1.0}).identity() for path in paths)
    assert a == b != c
