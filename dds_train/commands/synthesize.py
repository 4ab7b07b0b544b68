"""Synthesize a data set of source images with the teacher."""

from pathlib import Path

from dds_train.cli.schema import SynthesizeConfig
from dds_train.commands import make_checkpoint
from dds_train.data.prompts import as_templates, fill_all, read_prompts
from dds_train.data.shards import MANIFEST
from dds_train.data.synthesis import Score, recipe_for, synthesize, verify
from dds_train.diffusion.device import find_rank_device
from dds_train.evaluation.metrics.clip import Clip
from dds_train.runs.stamp import own_ranks
from dds_train.translator import all_prompts, make_tasks


def run(config: SynthesizeConfig) -> None:
    ranks = own_ranks()
    device, folder, clip = find_rank_device(config.device), Path(config.output_dir), config.clip
    checkpoint = make_checkpoint(config.teacher, device)
    checkpoint.check_guidance("dds", config.guidance)
    prompt_settings = config.model_dump(include={"tasks", "source", "target", "instruction"})
    tasks = make_tasks(**prompt_settings) if config.target or config.tasks else {}
    templates = config.prompts or as_templates(dict.fromkeys([task.source for task in tasks.values()] or [str(config.source)]))
    prompts = fill_all(*read_prompts(templates, config.words), config.count, config.seed)
    filtered = {"score": f"CLIP {clip.model}", "least": clip.least, "tries": clip.tries} if clip.model else {}
    sampling = {"guidance": config.guidance, "steps": config.steps, "seed": config.seed, "per_shard": config.per_shard}
    recipe = recipe_for(checkpoint, prompts, **sampling, **filtered)
    score: Score | None = Clip(clip.model, device).similarity if clip.model else None
    complete = synthesize(
        checkpoint,
        recipe,
        folder,
        batch_size=config.batch_size,
        extra_prompts=all_prompts(tasks.values(), prompts),  # of an experiment's tasks: then fit needs no text encoder
        score=score,
        ranks=ranks,
    )
    if complete:
        verify(folder)
        print(f"{folder}: {len(recipe.shards)} shards, verified; {folder / MANIFEST}, {folder / 'preview.png'}")
        print(f"train on them: python -m dds_train fit data=shards data.path={folder} source=... target=...", flush=True)
