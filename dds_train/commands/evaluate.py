"""Evaluate editing methods on many images."""

from pathlib import Path

from dds_train.cli.schema import EvaluateConfig
from dds_train.commands import make_checkpoint
from dds_train.diffusion.device import find_rank_device
from dds_train.errors import UserError
from dds_train.evaluation.configured import configured_methods
from dds_train.evaluation.evaluate import evaluate
from dds_train.evaluation.items import EvaluationItem, critter_items, image_items
from dds_train.evaluation.metrics.registry import MetricOptions, build_metrics
from dds_train.evaluation.outputs import write_outputs
from dds_train.images.find import find_inputs
from dds_train.methods import MethodContext
from dds_train.runs.record import Record
from dds_train.runs.stamp import own_ranks


def run(config: EvaluateConfig) -> None:
    device, output_dir = find_rank_device(config.device), Path(config.output_dir)
    methods = configured_methods(
        {name: method.model_dump(exclude_unset=True) for name, method in config.method.items()},
        config.methods,
        optimization={key: getattr(config, key) for key in ("steps", "lr", "guidance", "t_range")},
        ckpts=[config.ckpt] if isinstance(config.ckpt, str) else config.ckpt or [],
        strengths=config.strengths,
        task=config.task,
        step_counts=config.step_counts,
    )
    items = find_items(config)
    prompts = [prompt for item in items for prompt in (item.source, item.target)]
    for method in methods.values():
        method.check_edits(list(dict.fromkeys((item.source, item.target) for item in items)))
    references = [] if config.targets is None else [path for _, path in find_inputs(config.targets, output_dir)]
    if config.targets is not None and min(len(references), len(items)) < 2:
        raise UserError(f"targets={config.targets}: FID and KID need at least two images on each side")
    options = MetricOptions(
        device=device,
        lpips_nets=config.lpips.nets,
        lpips_hub_dir=config.lpips.hub_dir,
        clip=config.clip.model,
        structure=config.structure.model,
        references=references,
        inception=config.fid,
        seed=config.seed,
    )
    teacher = make_checkpoint(config.teacher, device)
    settings = {
        "teacher": teacher.digest(),
        "dtype": teacher.precision,
        **{key: getattr(config, key) for key in ("seed", "max_side", "source", "target", "swap")},
        **({"critters": config.critters.model_dump(exclude={"count"})} if config.image is None else {}),
        "methods": {name: method.identity() for name, method in methods.items()},
    }

    def context() -> MethodContext:
        return MethodContext(make_checkpoint(config.teacher, device), config.seed, prompts)

    with Record(output_dir, "evaluate", own_ranks()) as record:
        record.claim(settings, growing=["methods"])
        config.save(output_dir)
        evaluation = evaluate(items, methods, context, build_metrics(options), record, config.batch_size)
        if evaluation is None:
            return
        kind = "critters" if config.image is None else f"images of {config.image}"
        table = write_outputs(output_dir, evaluation, f"{len(items)} {kind}, teacher {config.teacher.path}", config.rows)
    for one in evaluation.unavailable:
        print(f"unavailable: {', '.join(one.metrics)}: {one.remedy}", flush=True)
    print(f"{len(items)} images, {len(methods)} methods: {output_dir / 'report.html'}\n\n{table}", end="", flush=True)


def find_items(config: EvaluateConfig) -> list[EvaluationItem]:
    if config.image is None:
        critters = config.critters
        prompts = (config.source, config.target, config.swap)
        return critter_items(critters.count, critters.source, critters.edit, *prompts, split=critters.split)
    return image_items(config.image, config.source, config.target, config.max_side, config.output_dir, config.swap)
