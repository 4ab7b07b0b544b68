"""Edit images with a trained translator, one pass each."""

from pathlib import Path
from typing import Any

from dds_train.cli.schema import PredictConfig
from dds_train.diffusion.device import find_rank_device
from dds_train.errors import UserError
from dds_train.images.masks import AUTO
from dds_train.images.streaming import begun, read_ahead
from dds_train.methods.masking import Masking
from dds_train.methods.outcome import Outcome, stops
from dds_train.methods.translate import (
    MaskedTranslator,
    check_origins,
    plan_translations,
    read_items,
    results,
    translate_items,
)
from dds_train.runs.record import Record
from dds_train.runs.stamp import own_ranks
from dds_train.translator import Task, TranslatorConfig, read_config, weights_digest
from dds_train.translator.pipeline import Translator

FREE = ("image", "batch_size", "device", "output_dir", "on_error")  # may differ between runs into one folder


def run(config: PredictConfig) -> None:
    with Record(config.output_dir, "predict", own_ranks()) as record:
        trained = read_config(Path(config.ckpt))
        # None if an instruction takes its place.
        task = trained.choose(config.task) if config.task or not config.prompt or len(trained.tasks) == 1 else None
        requests = plan_translations(config.image, config.mask, task, record.folder, same_format=config.format == "same")
        automatic = any(request.mask == AUTO for request in requests)
        if automatic and (task is None or task.needs_captions):
            raise UserError("mask=auto needs a task with a source and a target prompt; give task=NAME, or a mask file")
        own, outcome = record.ranks.share(requests), Outcome(stops(config.on_error, config.image))
        check_origins(own, record)
        masking = Masking(config.exact_background, config.feather, **config.auto_mask.model_dump())
        # What is missing for sure comes first: whether the rest is as it was made takes time to see.
        ordered = sorted(own, key=lambda request: not request.same_format and request.result in record.results)
        items = begun(read_items(ordered, record, masking, config.max_side, config.batch_size, outcome))
        options = {"device": find_rank_device(config.device), "tile": config.tile, "overlap": config.overlap}
        options |= config.teacher.model_dump(include={"dtype", "quantization"})
        translator = Translator.from_pretrained(config.ckpt, **config.teacher.place, **options)  # type: ignore[arg-type]
        record.claim(settings(config, trained, task, translator, automatic), free=FREE, growing=["teacher"])
        config.save(record.folder)
        instruction = config.prompt or (task.instruction if task else "")
        edit = MaskedTranslator(translator, instruction, config.strength, masking, task, config.seed)
        translate_items(edit, read_ahead(items), record, outcome, len(own))
        if (outcomes := record.gather(outcome.values())) is not None:
            of_all = Outcome.of_all(outcomes)
            of_all.report(record.folder, results(requests, record, of_all), len(requests), "image")


def settings(
    config: PredictConfig, trained: TranslatorConfig, task: Task | None, translator: Translator, automatic: bool
) -> dict[str, Any]:
    """What results depend on, besides the images; the contents of masks count for each image."""
    checkpoint, own = translator.checkpoint, config.model_dump()
    teacher = {"dtype": checkpoint.precision, "weights": checkpoint.digest("vae", "text")}
    if automatic or trained.translator["kind"] == "lora":
        teacher["denoiser"] = checkpoint.digest("denoiser", "scheduler")
    return {**own, "task": task and task.to_dict(), "ckpt": weights_digest(Path(config.ckpt)), "teacher": teacher}
