"""Where a translator and its teacher are found, and that another teacher is not taken for it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_translator import export_random
from safetensors.torch import load_file, save_file

from dds_train import hub
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.errors import UserError
from dds_train.evaluation.configured import run_names
from dds_train.translator import Task, find_translator, read_config, read_weights, remembered, weights_digest
from dds_train.translator.pipeline import Translator

TASKS = {"lion": Task("a cat", "a lion", "a lion")}


@pytest.fixture
def run(tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, runs/lion, trained in tmp_path/home with teacher.path=models/sd."""
    home = tmp_path / "home"
    shutil.copytree(tiny("epsilon"), home / "models" / "sd")
    monkeypatch.chdir(home)
    monkeypatch.setattr(hub, "cached_snapshot", lambda repository: None)
    folder = export_random(home / "runs" / "lion" / "translator", Path("models/sd"), TASKS, 0.02)
    write(folder, **remembered(DiffusionCheckpoint("models/sd")))
    return folder.parent


def write(translator: Path, **changes: object) -> None:
    path = translator / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def teacher_of(translator: Path) -> str:
    return read_config(translator).find_teacher(translator).path


def as_checkpoint(run: Path) -> Path:
    (run / "checkpoints").mkdir()
    weights = {f"translator.{name}": tensor for name, tensor in read_weights(run / "translator").items()}
    config = read_config(run / "translator").to_dict()
    torch.save({"translator_config": config, "state_dict": weights, "global_step": 3}, run / "checkpoints" / "last.ckpt")
    return run / "checkpoints" / "last.ckpt"


# ---------------------------------------------------------------- the translator


def test_a_run_a_translator_and_their_files_are_one(run: Path) -> None:
    translator, ckpt = run / "translator", as_checkpoint(run)
    for path in (run, translator, translator / "translator.safetensors", translator / "config.json"):
        assert find_translator(path) == translator
        assert read_config(path) == read_config(ckpt)
        assert weights_digest(path) == weights_digest(translator)
        assert list(run_names([str(path)])) == [str(path)]
        assert run_names([str(path)])[str(path)] == "lion"
    image = torch.rand(3, 16, 16) * 2 - 1
    before = Translator.from_pretrained(translator)(image)
    assert torch.equal(Translator.from_pretrained(str(translator / "translator.safetensors"))(image), before)  # type: ignore[arg-type]
    shutil.rmtree(translator)
    for path in (run, run / "checkpoints", ckpt):
        assert find_translator(path) == ckpt
        assert torch.equal(Translator.from_pretrained(path)(image), before)  # type: ignore[arg-type]


def test_weights_without_their_configuration_are_refused(run: Path, tmp_path: Path) -> None:
    (run / "translator" / "config.json").unlink()
    shutil.copy(run / "translator" / "translator.safetensors", tmp_path / "lion.safetensors")
    for path in (run / "translator" / "translator.safetensors", tmp_path / "lion.safetensors"):
        for read in (read_config, read_weights, weights_digest):
            with pytest.raises(UserError, match="weights alone; give the translator's folder"):
                read(path)


# ---------------------------------------------------------------- its teacher


def test_a_teacher_is_remembered_by_its_absolute_path(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.cwd()
    for path in ("models/sd", "./models/sd", "models/sd/", "models/../models/sd", str(home / "models" / "sd")):
        assert Path(remembered(DiffusionCheckpoint(path))["teacher"]).resolve() == home / "models" / "sd"
    monkeypatch.chdir(tmp_path)
    assert teacher_of(run / "translator") == str(home / "models" / "sd")
    assert remembered(DiffusionCheckpoint("bundled"))["teacher"] == "bundled"


@pytest.mark.parametrize(
    ("where", "moved"),
    [("home", "away"), ("away", "away"), (".", "away"), (".", "sd"), ("away/runs", "away")],
)
def test_a_teacher_that_moved_is_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, moved: str
) -> None:
    """With the translator, or beside the current folder."""
    home = Path.cwd()
    for folder in (tmp_path / "away" / "runs", tmp_path / where):
        folder.mkdir(parents=True, exist_ok=True)
    translator = Path(shutil.copytree(run / "translator", tmp_path / "away" / "runs" / "lion"))
    if moved == "sd":
        shutil.move(home / "models" / "sd", tmp_path / "sd")
    else:
        shutil.move(home / "models", tmp_path / "away" / "models")
    shutil.copytree(tmp_path / ("sd" if moved == "sd" else "away/models/sd"), home / "models" / "sd")
    path = next((home / "models" / "sd" / "vae").glob("*.safetensors"))  # another one where it was
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    monkeypatch.chdir(tmp_path / where)
    assert teacher_of(translator) == str(tmp_path / ("sd" if moved == "sd" else "away/models/sd"))


def test_a_teacher_with_other_weights_is_not_taken(run: Path) -> None:
    path = next(Path("models/sd/vae").glob("*.safetensors"))
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    assert teacher_of(run / "translator")  # a copy in half precision
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(UserError) as error:
        Translator.from_pretrained(run / "translator")
    sd = Path.cwd() / "models" / "sd"
    assert f"looked for {sd}, in {Path.cwd()} and above {run / 'translator'} too: {sd} (has other weights: vae)" in str(
        error.value
    )
    assert "teacher.path=..." in str(error.value)
    Translator.from_pretrained(run / "translator", teacher="models/sd")  # who says so knows it


def test_only_translators_on_the_denoiser_ask_for_its_weights(run: Path) -> None:
    path = next(Path("models/sd/unet").glob("*.safetensors"))
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    config = read_config(run / "translator")
    assert config.find_teacher(run)
    with pytest.raises(UserError, match="has other weights: denoiser"):
        dataclasses.replace(config, translator={"kind": "lora"}).find_teacher(run)


def test_a_hub_caches_folder_is_remembered_and_found(run: Path) -> None:
    cache = Path.cwd() / "models--owner--name"
    shutil.copytree("models/sd", cache / "snapshots" / "abc")
    write(run / "translator", **remembered(DiffusionCheckpoint("models--owner--name")))
    assert teacher_of(run / "translator") == str(cache)


@pytest.mark.parametrize("teacher", ["models/sd", "owner/name"])
def test_hub_ids_are_asked_for_last_and_paths_never(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    asked: list[str] = []

    def fetch(repository: str, what: str, choose: object) -> Path:
        asked.append(repository)
        return tmp_path / "home" / "kept"

    monkeypatch.setattr(hub, "fetch", fetch)
    translator = Path(shutil.move(run / "translator", tmp_path / "t"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home" / "models" / "sd").rename(tmp_path / "home" / "kept")
    for path in ("./models/sd", str(tmp_path / "home" / "models" / "sd"), "~/models/sd", "a/b/c", ""):
        write(translator, teacher=path)
        with pytest.raises(UserError, match="its teacher is not found; looked for"):
            teacher_of(translator)
    assert not asked
    write(translator, teacher=teacher)
    assert teacher_of(translator) == teacher
    assert asked
    write(translator, teacher="/home/me/.cache/huggingface/hub/models--owner--name/snapshots/abc")
    assert teacher_of(translator) == "owner/name"
