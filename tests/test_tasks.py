"""Several edits in one network: words, turns, and what is shared."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from configuration import configure
from torch import Tensor
from training_runs import build, fit, trainer

from dds_train.critters.dataset import to_tensor
from dds_train.critters.scores import score_edit
from dds_train.critters.world import critter
from dds_train.diffusion import DiffusionCheckpoint, PromptTable, TextEncoder
from dds_train.distillation import Prompt
from dds_train.errors import UserError
from dds_train.training.memory import PeakMemory
from dds_train.training.tasks import TaskBank, check_captions, embed_tasks
from dds_train.training.validation import CritterValidation
from dds_train.translator import Task, TranslatorConfig, all_prompts, make_tasks

THREE = {name: Task("a cat", f"a {name}", f"to a {name}") for name in ("lion", "dog", "bear")}


@pytest.fixture
def text(tiny: Callable[[str], Path]) -> Any:
    return DiffusionCheckpoint(str(tiny("epsilon"))).text_encoder()


def test_words_are_swapped_all_at_once_and_longer_ones_first() -> None:
    task = Task("{caption}", "{caption}!", "x", {"cat": "cat with a hat", "big cat": r"lion\1", "hat": "cap"})
    assert task.filled("a cat, a big cat, a hat, a category") == (
        "a cat, a big cat, a hat, a category",
        r"a cat with a hat, a lion\1, a cap, a category!",
    )


def test_captions_without_a_word_to_swap_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {"lion": Task("{caption}", "{caption}", "x", {"cat": "lion"}), "dog": Task("a cat", "a dog", "y")}
    check_captions(tasks, ["a cat", "two cats"])
    assert "1 of 2 captions have no word of tasks.lion.swap (cat)" in capsys.readouterr().out
    check_captions(tasks, ["a cat", "my cat"])
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"2 of 2 captions have no word of tasks.lion.swap \(cat\), such as 'two cats'"):
        check_captions(tasks, ["two cats", "a dog"])


def bank(text: Any, tasks: dict[str, Task], captions: tuple[str, ...] = ()) -> TaskBank:
    return TaskBank.embed(tasks, PromptTable.of(text, all_prompts(tasks.values(), captions)), captions)


@pytest.mark.parametrize("each", [1, 2, 3])
def test_tasks_are_balanced_and_distinct_per_image(text: Any, each: int) -> None:
    tasks = bank(text, THREE)
    picked = tasks.pick(range(300), each).view(-1, each)
    assert Counter(picked.flatten().tolist()) == {0: 100 * each, 1: 100 * each, 2: 100 * each}
    assert all(len(set(row)) == each for row in picked.tolist())
    # A batch's tasks depend on the positions in it alone.
    assert torch.equal(tasks.pick([7, 8], each), picked[7:9].flatten())


def test_prompts_of_teacher_and_translator(text: Any) -> None:
    tasks = bank(text, {**THREE, "bear": Task("a dog", "a bear", "bear!")})
    source, target = tasks.conditions(torch.tensor([2, 0]), None)
    for got, wanted in (
        (source.text, ["a dog", "a cat"]),
        (target.text, ["a bear", "a lion"]),
        (source.null, ["", ""]),
        (tasks.instruction[torch.tensor([2, 0])], ["bear!", "to a lion"]),
    ):
        assert torch.equal(got["text"], torch.cat([text.embed(prompt)["text"] for prompt in wanted]))
    assert not tasks.one_source
    assert bank(text, THREE).one_source


def test_captions_of_the_images(text: Any) -> None:
    swap = Task("{caption}", "{caption}, smiling", "to lions", swap={"cat": "lion"})
    assert swap.filled("a cat like any cat, not a catfish") == (
        "a cat like any cat, not a catfish",
        "a lion like any lion, not a catfish, smiling",
    )
    captions = ("a gray cat", "a cat", "a gray cat")
    tasks = bank(text, {"swap": swap, "plain": Task("a cat", "a dog", "x")}, captions)
    source, target = tasks.conditions(torch.tensor([0, 0, 1]), torch.tensor([2, 1, 0]))
    expected = torch.cat([text.embed(p)["text"] for p in ("a gray cat", "a cat", "a cat")])
    assert torch.equal(source.text["text"], expected)
    wanted = ("a gray lion, smiling", "a lion, smiling", "a dog")
    assert torch.equal(target.text["text"], torch.cat([text.embed(p)["text"] for p in wanted]))
    assert all_prompts([swap], captions).count("a gray cat") == 1
    with pytest.raises(ValueError, match="instruction"):
        Task("{caption}", "x", "{caption}")


def test_each_embedding_is_kept_once_and_off_the_device() -> None:
    """1,000 captions, on a device that counts: the table is all there is in memory, and none of it is on the device."""
    captions = [f"a cat, number {number}" for number in range(1000)]
    tasks = {name: Task("{caption}", "{caption}", f"to a {name}", swap={"cat": name}) for name in ("lion", "dog")}
    prompts = all_prompts(tasks.values(), captions)
    table = PromptTable({text: Prompt({"text": torch.zeros(1, 7, 16)}) for text in ["", "ugly", *prompts]})
    tasks_on_device = TaskBank.embed(tasks, table, captions, "ugly").to(torch.device("meta"))
    one = 7 * 16 * 4
    memory = storages(tasks_on_device)
    assert sum(size for device, size in memory.values() if device == "cpu") == len(table.rows) * one
    # Two instructions, the empty prompt and the negative one.
    assert sum(size for device, size in memory.values() if device == "meta") == 4 * one
    task, caption = torch.tensor([0, 1, 0]), torch.tensor([999, 0, 5])
    with PeakMemory() as peak:
        source, target = tasks_on_device.conditions(task, caption)
    assert peak.peak <= 4 * 3 * one  # of the three images: source and target, on the way and on the device
    assert len(source.text) == len(target.null) == len(target.negative or ()) == 3
    assert {tensor.device.type for condition in (source, target) for _, tensor in condition.text.items()} == {"meta"}


def storages(holder: Any) -> dict[int, tuple[str, int]]:
    """All tensors' memory that an object leads to, each storage once: (device, bytes)."""
    found: dict[int, tuple[str, int]] = {}
    waiting = [holder]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            storage = one.untyped_storage()
            found[storage._cdata] = (one.device.type, storage.nbytes())
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        elif hasattr(one, "__dict__"):
            waiting += vars(one).values()
    return found


def test_captions_are_embedded_once_and_stay_on_the_disk(
    tiny: Callable[[str], Path], text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDS_CACHE", str(tmp_path))
    captions = ["a gray cat", "a cat", "a gray cat"]
    tasks = {"lion": Task("{caption}", "{caption}", "to a lion", {"cat": "lion"}), "plain": Task("a cat", "a dog", "x")}
    source: Any = SimpleNamespace(captions=captions)
    expected = bank(text, tasks, tuple(captions))
    asked: list[Any] = []
    embed = TextEncoder.embed
    monkeypatch.setattr(TextEncoder, "embed", lambda self, prompt: (asked.append(prompt), embed(self, prompt))[1])
    for start in range(2):
        checkpoint = DiffusionCheckpoint(str(tiny("epsilon")))
        made = embed_tasks(tasks, source, checkpoint, "ugly")
        assert sorted(asked) == sorted({"", "ugly", *all_prompts(tasks.values(), captions)})
        assert "text_encoder" not in checkpoint._loaded, start
        # Of 4 instructions, empty and negative prompts alone: what a run holds does not grow with its captions.
        assert sum(size for _, size in storages(made).values()) == 4 * expected.null["text"].nbytes
        pairs = zip(*(b.conditions(torch.tensor([0, 1, 0]), torch.tensor([0, 1, 2])) for b in (made, expected)), strict=True)
        for ours, theirs in pairs:
            assert torch.equal(ours.text["text"], theirs.text["text"])
            assert torch.equal(ours.null["text"], theirs.null["text"])
        assert torch.equal(made.instruction["text"], expected.instruction["text"])
    embed_tasks(tasks, source, DiffusionCheckpoint(str(tiny("epsilon")), max_tokens=150))
    assert asked.count("a gray cat") == 2  # of another length: other embeddings


def test_tasks_from_the_configuration() -> None:
    def made(*overrides: str) -> dict[str, Task]:
        config = configure("fit", "source=a cat", "target=a lion", *overrides)
        return make_tasks(**config.model_dump(include={"tasks", "source", "target", "instruction"}))

    assert made() == {"edit": Task("a cat", "a lion", "a lion")}
    assert made("instruction=roar") == {"edit": Task("a cat", "a lion", "roar")}
    two = made("tasks.dog.target=a dog", "tasks.cow.source=a calf", "tasks.cow.target=a cow", "tasks.cow.instruction=moo")
    assert two == {"dog": Task("a cat", "a dog", "a dog"), "cow": Task("a calf", "a cow", "moo")}
    own = made("source={caption}", "target={caption}", "tasks.lion.swap.cat=lion")
    assert own == {"lion": Task("{caption}", "{caption}", "lion", {"cat": "lion"})}


@pytest.mark.parametrize("data", ["synthetic", "shards", "folder", "critters"])
def test_an_experiment_works_with_every_data_source(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cat2many says how to draw its images; with images from elsewhere that is beside the point."""
    from dds_train.cli.instantiate import make
    from dds_train.data.source import make_source
    from dds_train.data.synthesis import recipe_for, synthesize

    monkeypatch.setenv("DDS_CACHE", str(tmp_path))
    checkpoint = DiffusionCheckpoint("bundled")
    recipe = recipe_for(checkpoint, ["a cat"] * 2, guidance=1.0, steps=1, seed=0, per_shard=2)
    synthesize(checkpoint, recipe, tmp_path / "shards", batch_size=2)
    path = {"shards": tmp_path / "shards", "folder": Path(__file__).parents[1] / "data" / "examples"}.get(data)
    config = configure("fit", "+experiment=cat2many", f"data={data}", *([f"data.path={path}"] if path else []))
    constructor = make(config.data)
    source: Any = make_source(constructor.func, constructor.keywords, checkpoint, ["a cat"])
    found = source.recipe.prompts if data == "synthetic" else source.dataset()
    assert len(found) == {"synthetic": 1024, "shards": 2, "folder": 8, "critters": 1024}[data]


@pytest.mark.parametrize("one_source", [True, False])
def test_batched_tasks_equal_single_tasks(tiny: Callable[[str], Path], one_source: bool) -> None:
    tasks = THREE if one_source else {**THREE, "bear": Task("a dog", "a bear", "bear!")}
    module = build(tiny("epsilon"), tasks, tasks_per_image=3)
    module._trainer = trainer(tiny("epsilon").parent / "none", 10)
    z = torch.randn(2, 4, 8, 8)
    z_target = torch.randn(6, 4, 8, 8)
    batch = {"z": z, "position": [4, 9]}
    task = module.tasks.pick([4, 9], 3)
    batched_call = module.distill(z, z_target, task, batch, 2.0).grad
    for row in range(6):
        image = row // 3
        alone = {"z": z[image : image + 1], "position": [batch["position"][image]]}
        grad = module.distill(alone["z"], z_target[row : row + 1], task[row : row + 1], alone, 2.0).grad  # type: ignore[arg-type]
        torch.testing.assert_close(grad[0], batched_call[row], atol=1e-5, rtol=1e-4)


def test_training_with_several_tasks_per_image(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    module = build(tiny("epsilon"), THREE, tasks_per_image=2)
    fit(module, trainer(tmp_path, 4))
    z, text = torch.randn(1, 4, 8, 8), module.tasks.instruction
    with torch.no_grad():
        outputs = [module.translator(z, text[k : k + 1], torch.ones(1)) for k in range(3)]
    assert not torch.equal(outputs[0], outputs[1])


def test_choosing_a_task() -> None:
    card = TranslatorConfig(THREE, "bundled", {})
    assert card.choose("dog") == THREE["dog"]
    for name in (None, "cow"):
        with pytest.raises(UserError, match="lion, dog, bear"):
            card.choose(name)
    assert replace(card, tasks={"dog": THREE["dog"]}).choose(None) == THREE["dog"]


# ---------------------------------------------------------------- exact scores


def test_scores_of_an_edit_of_accessories() -> None:
    sources = [critter(seed, species="cat", glasses=False, hat=seed % 2 == 0) for seed in range(6)]
    truth = torch.stack([to_tensor(s.replaced(glasses=True)) for s in sources])
    perfect = score_edit(truth, sources, {"glasses": True})
    assert perfect.gap_closed == 1
    assert (perfect.species, perfect.fur, perfect.backdrop, perfect.accessories) == (1, 1, 1, 1)
    nothing = score_edit(torch.stack([to_tensor(s) for s in sources]), sources, {"glasses": True})
    assert (pytest.approx(nothing.gap_closed), nothing.accessories, nothing.species) == (0, 0, 1)
    assert nothing.edit_accuracy == 0
    hats_off = score_edit(
        torch.stack([to_tensor(s.replaced(glasses=True, hat=False)) for s in sources]), sources, {"glasses": True}
    )
    assert hats_off.accessories == 0.5


def test_validation_without_a_gap_to_the_ground_truth_is_refused() -> None:
    tasks, autoencoder = {"lion": replace(THREE["lion"], truth={"glasses": True})}, Mock()
    with pytest.raises(UserError, match="validation: some source critters already have glasses=True; restrict them"):
        CritterValidation(tasks, autoencoder, 32, {"species": "cat"})


@pytest.mark.parametrize("truth", [{"species": "lion"}, {"glasses": True}], ids=str)
def test_validation_scores_the_averaged_weights(truth: dict[str, Any], tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A translator that does nothing closes nothing; logged for the checkpoints to watch."""
    tasks = {"lion": replace(THREE["lion"], truth=truth), "dog": THREE["dog"]}
    autoencoder = DiffusionCheckpoint(str(tiny("epsilon"))).autoencoder()
    autoencoder.encode = lambda image: image[..., ::8, ::8].repeat(1, 2, 1, 1)[:, :4]  # type: ignore[method-assign]
    edited: list[Tensor] = []

    def decode(z: Tensor) -> Tensor:
        edited.append(z)
        return torch.stack([to_tensor(one) for one in validation.critters])

    autoencoder.decode = decode  # type: ignore[method-assign,assignment]
    validation = CritterValidation(tasks, autoencoder, 3, {"species": "cat", "glasses": False})
    running = trainer(tmp_path, 4, more=[validation])
    module = build(tiny("epsilon"), tasks)
    fit(module, running)
    metrics = running.callback_metrics
    assert metrics["val/gap_closed"] == 0
    assert metrics["val/edit_accuracy"] == 0
    assert metrics["val/grad_rms"] > 0
    assert len(edited) == 2  # one task has a truth, validated twice
    assert not torch.equal(edited[0], edited[1])
    # The last validation came after the last step, so what it saw is the average, with which training ends.
    z = autoencoder.encode(torch.stack([to_tensor(one) for one in validation.critters]))
    with torch.no_grad():
        assert torch.equal(edited[1], module.translate(z, torch.zeros(3, dtype=torch.long)))
