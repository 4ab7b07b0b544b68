"""Let the teacher draw a data set of source images."""

from pathlib import Path

from dds_train import build
from dds_train.cli.schema import SynthesizeConfig
from dds_train.data.prompts import fill_all, read_prompts
from dds_train.data.shards import MANIFEST
from dds_train.data.synthesis import Score, recipe_for, synthesize, verify
from dds_train.evaluation.metrics.clip import Clip
from dds_train.runs.ranks import rank_and_world
from dds_train.translator import all_prompts


def run(cfg: SynthesizeConfig) -> None:
    rank, world = rank_and_world()
    device = build.build_rank_device(cfg.device)
    checkpoint = build.build_checkpoint(cfg.teacher, device)
    # What the tasks of an experiment will say, too: then fit needs no text encoder.
    tasks = build.build_tasks(cfg).values() if cfg.source or cfg.tasks else ()
    templates = cfg.prompts or list(dict.fromkeys(task.source for task in tasks))
    prompts = fill_all(*read_prompts(templates, cfg.words), cfg.count, cfg.seed)
    filtered = {"score": f"CLIP {cfg.clip.model}", "least": cfg.clip.least, "tries": cfg.clip.tries} if cfg.clip.model else {}
    recipe = recipe_for(
        checkpoint, prompts, guidance=cfg.guidance, steps=cfg.steps, seed=cfg.seed, per_shard=cfg.per_shard, **filtered
    )
    score: Score | None = Clip(cfg.clip.model, device).similarity if cfg.clip.model else None
    # What the tasks of an experiment will say, too: then fit needs no text encoder.
    said = all_prompts(tasks, prompts)

    folder = Path(cfg.output_dir)
    complete = synthesize(
        checkpoint, recipe, folder, batch_size=cfg.batch_size, extra_prompts=said, score=score, rank=rank, world_size=world
    )
    if complete and rank == 0:
        verify(folder)
        print(f"{folder}: {len(recipe.shards)} shards, all as drawn; {folder / MANIFEST}, {folder / 'preview.png'}")
        print(f"train on them: python -m dds_train fit data=shards data.path={folder} source=... target=...", flush=True)
    elif not complete:
        print(f"process {rank} of {world} is done; the last one writes {folder / MANIFEST}", flush=True)
