"""Edit images with a trained translator, one pass each."""

from pathlib import Path
from typing import Any

from dds_train.cli.schema import PredictConfig
from dds_train.errors import UserError
from dds_train.images.grids import save_before_after
from dds_train.images.input_image import check_readable
from dds_train.images.masks import AUTO
from dds_train.methods.masking import Masking
from dds_train.methods.translate import MaskedTranslator, TranslationRequest, plan_translations, translate_files
from dds_train.runs.record import Record
from dds_train.translator import Task, TranslatorConfig, read_config, weights_digest
from dds_train.translator.pipeline import Translator

FREE = ("image", "batch_size", "device", "output_dir")  # may differ between runs into one folder


def run(config: PredictConfig) -> None:
    folder = Path(config.output_dir)
    with Record(folder, "predict") as record:
        trained = read_config(Path(config.ckpt))
        # None if an instruction takes its place.
        task = trained.choose(config.task) if config.task or not config.prompt or len(trained.tasks) == 1 else None
        requests = plan_translations(config.image, config.mask, task, folder, same_format=config.format == "same")
        automatic = any(request.mask == AUTO for request in requests)
        if automatic and (task is None or task.needs_captions):
            raise UserError("mask=auto needs a task with a source and a target prompt; give task=NAME, or a mask file")
        sizes = check_readable((request.image for request in requests), config.max_side)
        options = {"device": config.device, "tile": config.tile, "overlap": config.overlap}
        options |= config.teacher.model_dump(include={"dtype", "quantization"})
        translator = Translator.from_pretrained(config.ckpt, **config.teacher.place, **options)  # type: ignore[arg-type]
        keys = {request: request.digest() for request in requests}
        todo = [request for request in requests if not record.is_done(request.result, keys[request])]
        record.check_origins({request.result: request.image for request in todo})
        record.claim(settings(config, trained, task, translator, automatic), free=FREE, growing=["teacher"])
        config.save(folder)
        if len(todo) < len(requests):
            print(f"{len(requests) - len(todo)} of {len(requests)} images are in {folder} already", flush=True)
        record.strike(*(request.result for request in todo))
        masking = Masking(config.exact_background, config.feather, **config.auto_mask.model_dump())
        instruction = config.prompt or (task.instruction if task else "")
        edit = MaskedTranslator(translator, instruction, config.strength, masking, task, config.seed)

        def done(request: TranslationRequest) -> None:
            record.add(request.result, keys[request], values=record.origin(request.image))

        failed = translate_files(edit, todo, sizes, folder, config.batch_size, config.max_side, done)
        pairs = [(request.image, folder / request.result) for request in requests if request not in failed]
        save_before_after(pairs, folder / "before_after.png")
        print(f"{len(pairs)} images in {folder}; before and after: {folder / 'before_after.png'}", flush=True)
        if failed:
            names = ", ".join(str(request.image) for request in failed)
            raise UserError(f"{len(failed)} of {len(requests)} images failed, the translator's output is NaN or Inf: {names}")


def settings(
    config: PredictConfig, trained: TranslatorConfig, task: Task | None, translator: Translator, automatic: bool
) -> dict[str, Any]:
    """What results depend on, besides the images; the contents of masks count for each image."""
    checkpoint, own = translator.checkpoint, config.model_dump()
    teacher = {"dtype": checkpoint.precision, "weights": checkpoint.digest("vae", "text")}
    if automatic or trained.translator["kind"] == "lora":
        teacher["denoiser"] = checkpoint.digest("denoiser", "scheduler")
    return {**own, "task": task and task.to_dict(), "ckpt": weights_digest(Path(config.ckpt)), "teacher": teacher}
