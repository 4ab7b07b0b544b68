"""Evaluate editing methods on many images."""

from pathlib import Path
from typing import Any

from dds_train import build
from dds_train.cli.schema import EvaluateConfig
from dds_train.diffusion.device import find_device
from dds_train.errors import UserError
from dds_train.evaluation.configured import configured_methods
from dds_train.evaluation.evaluate import evaluate
from dds_train.evaluation.items import EvaluationItem, critter_items, image_items
from dds_train.evaluation.metrics.registry import MetricOptions, build_metrics
from dds_train.evaluation.outputs import write_outputs
from dds_train.images.find import find_inputs
from dds_train.methods import MethodContext
from dds_train.runs.record import Record


def run(cfg: EvaluateConfig) -> None:
    device = find_device(cfg.device)
    plain = cfg.model_dump()
    ckpts = [cfg.ckpt] if isinstance(cfg.ckpt, str) else plain["ckpt"] or []
    optimization = {key: plain[key] for key in ("steps", "lr", "guidance", "t_range")}
    methods = configured_methods(
        plain["method"], plain["methods"], optimization, ckpts, plain["strengths"], plain["step_counts"]
    )
    items = find_items(plain)
    for method in methods.values():
        method.check_targets(list(dict.fromkeys(item.target for item in items)))
    references = [] if cfg.targets is None else [path for _, path in find_inputs(cfg.targets, cfg.output_dir)]
    if cfg.targets is not None and min(len(references), len(items)) < 2:
        raise UserError(f"targets={cfg.targets}: FID and KID need at least two images on each side")
    metrics = build_metrics(
        MetricOptions(
            device=device,
            lpips_nets=plain["lpips"]["nets"],
            lpips_hub_dir=cfg.lpips.hub_dir,
            clip=cfg.clip.model,
            structure=cfg.structure.model,
            references=references,
            inception=cfg.fid,
            seed=cfg.seed,
        )
    )
    output_dir = Path(cfg.output_dir)
    with Record(output_dir, "evaluate") as record:
        record.claim(
            {
                "teacher": build.build_checkpoint(cfg.teacher, device).digest(),
                "dtype": cfg.teacher.dtype,
                **{key: plain[key] for key in ("seed", "max_side", "source", "target")},
                **({"critters": {key: plain["critters"][key] for key in ("source", "edit")}} if cfg.image is None else {}),
                "methods": {name: method.identity() for name, method in methods.items()},
            },
            growing=["methods"],
        )
        build.save_config(cfg, output_dir)
        evaluation = evaluate(
            items,
            methods,
            lambda: MethodContext(build.build_checkpoint(cfg.teacher, device), cfg.seed),
            metrics,
            record,
            cfg.batch_size,
        )
        kind = "critters" if cfg.image is None else f"images of {cfg.image}"
        table = write_outputs(output_dir, evaluation, f"{len(items)} {kind}, teacher {cfg.teacher.path}", cfg.rows)
    for one in evaluation.unavailable:
        print(f"unavailable: {', '.join(one.metrics)}: {one.remedy}", flush=True)
    print(f"{len(items)} images, {len(methods)} methods: {output_dir / 'report.html'}\n\n{table}", end="", flush=True)


def find_items(plain: dict[str, Any]) -> list[EvaluationItem]:
    prompts = (plain["source"], plain["target"])
    if plain["image"] is None:
        critters = plain["critters"]
        return critter_items(critters["count"], critters["source"], critters["edit"], *prompts)
    return image_items(plain["image"], *prompts, plain["max_side"], plain["output_dir"])
