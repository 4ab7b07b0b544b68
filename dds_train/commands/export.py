"""Export a trained translator: a folder to keep, to publish, or to run without this package."""

from pathlib import Path

from dds_train.cli.schema import ExportConfig
from dds_train.export import check_family, check_packages, export_folder
from dds_train.export.model_card import evaluation_note, model_card, training_notes
from dds_train.export.upload import upload
from dds_train.images.files import save_image
from dds_train.images.find import find_inputs
from dds_train.images.grids import before_after_grid
from dds_train.images.input_image import read_input_image
from dds_train.runs.record import RECORD, Record
from dds_train.translator import weights_digest
from dds_train.translator.pipeline import Translator

EXAMPLES = 8  # images in the model card


FREE = ("examples", "max_side", "metrics", "push", "output_dir")  # may differ between runs into one folder


def run(config: ExportConfig) -> None:
    check_packages(config.format)
    with Record(config.output_dir, "export") as record:
        folder, ckpt = record.folder, Path(config.ckpt)
        images = find_inputs(config.examples, folder)[:EXAMPLES] if config.examples else []
        evaluation = [evaluation_note(config.metrics)] if config.metrics else []
        # On the CPU and in float32, so that the files do not depend on this machine.
        translator = Translator.from_pretrained(ckpt, device="cpu", dtype="float32", **config.teacher.place)
        kind, max_tokens = translator.config.translator["kind"], translator.config.max_tokens
        check_family(config.format, translator.checkpoint.family, max_tokens, kind)
        tasks = translator.config.tasks
        weights = {"ckpt": weights_digest(ckpt), "teacher": translator.checkpoint.digest("vae", "text")}
        record.claim({**config.model_dump(), **weights}, free=FREE)
        print(f"exporting {', '.join(tasks)} as {config.format}", flush=True)
        record.strike(config.format)
        verification = export_folder(config.format, folder, translator)
        pairs = []
        for _, path in images:
            image = read_input_image(path, config.max_side).image
            pairs += [(image[0], translator.translate(image, task.instruction)[0]) for task in tasks.values()]
        if pairs:
            save_image(before_after_grid(pairs), folder / "examples.png")
        notes = [f"{verification}." if verification else "", *training_notes(ckpt), *evaluation]
        parameters = sum(p.numel() for p in translator.network.plain_unet().parameters())
        card = model_card(translator.config, config.format, parameters, bool(pairs), notes)
        (folder / "README.md").write_text(card, encoding="utf-8")
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
        record.add(config.format, weights["ckpt"], [name for name in files if name != RECORD])
    print(f"{verification}\n{folder}" if verification else folder, flush=True)
    if config.push:
        print(upload(folder, config.push), flush=True)
