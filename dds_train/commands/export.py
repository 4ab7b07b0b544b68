"""A trained translator for the world outside: a folder to keep, to publish, or to run without this package."""

import csv
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from dds_train import build
from dds_train.cli.schema import ExportConfig
from dds_train.errors import UserError
from dds_train.evaluation.tables import table_of_translators
from dds_train.images.files import save_image
from dds_train.images.find import find_inputs
from dds_train.images.grids import before_after_grid
from dds_train.images.input_image import read_input_image
from dds_train.translator import export_translator, load_translator, read_config
from dds_train.translator.pipeline import Translator

HOW = {
    "safetensors": "    python -m dds_train predict ckpt=THIS_FOLDER image=cat.png",
    "diffusers": """    from diffusers import DiffusionPipeline
    from PIL import Image

    translator = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=f"{FOLDER}/pipeline.py", trust_remote_code=True)
    translator(Image.open("cat.png"), task="TASK", strength=1.0).save("result.png")""",
    "onnx": "    python run.py cat.png result.png --task TASK --strength 1.0    # needs onnxruntime, numpy and pillow",
}


def run(cfg: ExportConfig) -> None:
    check_packages(cfg.format)
    pictures = find_inputs(cfg.examples, cfg.output_dir) if cfg.examples else []
    card = read_config(Path(cfg.ckpt))
    # On the CPU and in full precision: what is written must not depend on this machine.
    parts = build.build_checkpoint(cfg.teacher, "cpu")
    parts = replace(parts, path=cfg.teacher.path or card.teacher, dtype=torch.float32)
    translator = Translator(load_translator(Path(cfg.ckpt), parts)[0], card, parts)
    folder = Path(cfg.output_dir)
    scores = measured(cfg.metrics)
    print(f"exporting {', '.join(card.tasks)} as {cfg.format}", flush=True)
    said = write(cfg.format, folder, translator)
    shown = []
    for _, path in pictures[:8]:
        image = read_input_image(path, cfg.max_side).image
        shown += [(image[0], translator.translate(image, task.instruction)[0]) for task in card.tasks.values()]
    if shown:
        save_image(before_after_grid(shown), folder / "examples.png")
    (folder / "README.md").write_text(
        model_card(cfg, translator, bool(shown), [said and f"{said}.", training_notes(Path(cfg.ckpt)), scores])
    )
    print(f"{said}\n{folder}" if said else folder, flush=True)
    if cfg.push:
        push(folder, cfg.push)


def check_packages(name: str) -> None:
    missing = [module for module in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(module)]
    if name == "onnx" and missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")


def write(form: str, folder: Path, translator: Translator) -> str:
    """The folder's files; what was checked, in a sentence."""
    parts = (folder, translator.network, translator.config)
    if form == "safetensors":
        export_translator(*parts)
        return ""
    if form == "diffusers":
        from dds_train.export.diffusers_folder import export_diffusers

        export_diffusers(*parts, translator.checkpoint)
        return ""
    from dds_train.export.onnx_folder import export_onnx

    checked = export_onnx(*parts, translator.checkpoint)
    shapes = " and ".join("x".join(map(str, shape)) for shape in checked.shapes)
    return f"onnxruntime differs from PyTorch by at most {checked.difference:.5f} of 255 levels, on pictures of {shapes}"


def model_card(cfg: ExportConfig, translator: Translator, examples: bool, notes: Sequence[str]) -> str:
    """README.md, with the metadata that a hub reads."""
    card = translator.config
    rows = "\n".join(f"| {name} | {t.source} | {t.target} | {t.instruction} |" for name, t in card.tasks.items())
    millions = sum(p.numel() for p in translator.network.plain_unet().parameters()) / 1e6
    picture = "\n![Inputs above, results below](examples.png)\n" if examples else ""
    more = "".join(f"\n{note}\n" for note in notes if note)
    return f"""---
library_name: {"diffusers" if cfg.format == "diffusers" else "dds_train"}
pipeline_tag: image-to-image
tags: [image-to-image, score-distillation, delta-denoising-score]
---

# Image translator: {", ".join(card.tasks)}

Edits a picture in one pass ({millions:.1f} M parameters, on the latents of `{card.teacher}`). Trained by dds_train with score
distillation (Delta Denoising Score, arXiv 2304.07090): without pictures of the target and without pairs.

| task | inputs show | it makes of them | instruction |
| --- | --- | --- | --- |
{rows}

{HOW[cfg.format].replace("TASK", next(iter(card.tasks)))}
{picture}{more}"""


def training_notes(ckpt: Path) -> str:
    """What the training run says of itself, if its files are still where fit wrote them: data, length, last scores."""
    output_dir = ckpt.resolve().parent if ckpt.is_dir() else ckpt.resolve().parents[1]
    notes = []
    if (output_dir / "config.yaml").is_file():
        cfg = yaml.safe_load((output_dir / "config.yaml").read_text())
        if "data" in cfg and "trainer" in cfg:
            data = {key: value for key, value in cfg["data"].items() if not key.startswith("_")}
            what = f"`{str(cfg['data'].get('_target_')).rpartition('.')[2]}` with `{json.dumps(data)}`"
            notes.append(f"Trained for {cfg['trainer']['max_steps']} steps of {cfg['batch_size']} images, on {what}.")
    if (output_dir / "metrics.csv").is_file():
        with (output_dir / "metrics.csv").open() as file:
            last = {
                key: value for row in csv.DictReader(file) for key, value in row.items() if key.startswith("val/") and value
            }
        if last:
            scores = "\n".join(f"| {key.removeprefix('val/')} | {float(value):.4g} |" for key, value in last.items())
            notes.append(f"Last validation, on images kept out of training:\n\n| score | value |\n| --- | --- |\n{scores}")
    return "\n\n".join(notes)


def measured(path: str | None) -> str:
    """A table from the metrics.json of evaluate: its translators, and what they are to be compared with.

    Raises:
        UserError: if it is none.
    """
    if path is None:
        return ""
    try:
        return f"Measured with `dds_train evaluate`:\n\n{table_of_translators(Path(path).read_text())}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"metrics={path}: not a metrics.json of evaluate ({type(error).__name__})") from error


def push(folder: Path, repo: str) -> None:
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repo, exist_ok=True)
        print(HfApi().upload_folder(repo_id=repo, folder_path=folder), flush=True)
    except Exception as error:  # whatever the hub's client raises when it cannot deliver
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"push={repo}: the hub did not take {folder} ({reason}); log in with: hf auth login") from error
