"""The model card of an exported translator: README.md, with the metadata that a hub reads."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from dds_train.errors import UserError
from dds_train.evaluation.tables import table_of_translators
from dds_train.translator import TranslatorConfig, find_translator

USAGE = {
    "safetensors": "    python -m dds_train predict ckpt=THIS_FOLDER image=cat.png",
    "diffusers": """    from diffusers import DiffusionPipeline
    from PIL import Image

    translator = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=f"{FOLDER}/pipeline.py", trust_remote_code=True)
    translator(Image.open("cat.png"), task="TASK", strength=1.0).save("result.png")""",
    "lora": """    pipeline = DiffusionPipeline.from_pretrained(TEACHER)
    pipeline.load_lora_weights(FOLDER)    # in float32: a small change is lost in the rounding of half precision

The prediction of its denoiser at noise level 0, for the scaled latents z of an image without noise, under the instruction
"INSTRUCTION" and without guidance, is the change: the edited latents are z plus it. (At timestep 0; the transformer of Z-Image
counts time backwards and predicts the negative: at 1, and z minus it.) `comfyui.safetensors` has the same by ComfyUI's names;
there, a step of Euler's method from sigma 0 to 1 adds the change of a flow.""",
    "onnx": "    python run.py cat.png result.png --task TASK --strength 1.0    # needs onnxruntime, numpy and pillow",
}


def model_card(config: TranslatorConfig, format: str, parameters: int, has_examples: bool, notes: Sequence[str] = ()) -> str:
    """A model card.

    Args:
        parameters: of the network.
        has_examples: examples.png is beside it.
        notes: paragraphs in Markdown, at the end; empty ones are left out.
    """
    first = next(iter(config.tasks))
    rows = "\n".join(f"| {name} | {t.source} | {t.target} | {t.instruction} |" for name, t in config.tasks.items())
    parts = [
        f"""---
library_name: {"diffusers" if format in ("diffusers", "lora") else "dds_train"}
pipeline_tag: image-to-image
tags: [image-to-image, score-distillation, delta-denoising-score]
---

# Image translator: {", ".join(config.tasks)}

Edits an image in one forward pass ({parameters / 1e6:.1f} M parameters, on the latents of `{config.teacher}`). Trained by
dds_train {config.version} with score distillation (Delta Denoising Score, arXiv 2304.07090): without target images and without
pairs.""",
        f"| task | source prompt | target prompt | instruction |\n| --- | --- | --- | --- |\n{rows}",
        USAGE[format].replace("TASK", first).replace("INSTRUCTION", config.tasks[first].instruction),
        "![Inputs above, results below](examples.png)" if has_examples else "",
        *notes,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def training_notes(ckpt: Path) -> list[str]:
    """Data, length and last validation of the run that wrote `ckpt`, from its folder's files if they are still there.

    Raises:
        UserError: if they are damaged.
    """
    ckpt = find_translator(ckpt).resolve()
    folder = ckpt.parent if ckpt.is_dir() else ckpt.parents[1]
    notes = []
    for name, note in {"config.yaml": _note_on_settings, "metrics.csv": _note_on_validation}.items():
        if (folder / name).is_file():
            try:
                notes += note((folder / name).read_text(encoding="utf-8"))
            except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(f"{folder / name}: damaged; delete it, and the model card goes without it") from error
    return notes


def _note_on_settings(text: str) -> list[str]:
    config = yaml.safe_load(text)
    if not {"data", "trainer", "batch_size"} <= set(config):  # of another command
        return []
    options = {key: value for key, value in config["data"].items() if not key.startswith("_")}
    source = str(config["data"].get("_target_")).rpartition(".")[2]
    steps = f"{config['trainer']['max_steps']} training steps of {config['batch_size']} images"
    return [f"{steps}, on `{source}` with `{json.dumps(options, ensure_ascii=False)}`."]


def _note_on_validation(text: str) -> list[str]:
    values = [item for row in csv.DictReader(text.splitlines()) for item in row.items()]
    last = {key.removeprefix("val/"): float(value) for key, value in values if key.startswith("val/") and value}
    table = "\n".join(f"| {name} | {value:.4g} |" for name, value in last.items())
    return [f"Last validation, on held-out images:\n\n| metric | value |\n| --- | --- |\n{table}"] if last else []


def evaluation_note(metrics: str) -> str:
    """A table from the metrics.json of `evaluate`.

    Raises:
        UserError: if it is no such file.
    """
    try:
        table = table_of_translators(Path(metrics).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"metrics={metrics}: not a metrics.json of evaluate ({type(error).__name__})") from error
    return f"Evaluation with `dds_train evaluate`:\n\n{table}".rstrip()
