"""Step-distilled models, whose predictions are no scores: what tells them, and the base model to take."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

# What their authors put into their names; words of their own, not parts of others.
NAME = re.compile(r"(?<![a-z])(turbo|lightning|lcm|tcd|hyper|schnell|sprint|dmd)(?![a-z])", re.IGNORECASE)
SCHEDULERS = {"LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler", "SCMScheduler"}  # that sample nothing else
BASE = {
    "StableDiffusionPipeline": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "StableDiffusionXLPipeline": "stabilityai/stable-diffusion-xl-base-1.0",
    "StableDiffusion3Pipeline": "stabilityai/stable-diffusion-3.5-large or -medium",
    "FluxPipeline": "black-forest-labs/FLUX.1-dev",
    "Flux2KleinPipeline": "black-forest-labs/FLUX.2-klein-base-4B",
    "SanaPipeline": "Efficient-Large-Model/Sana_600M_512px_diffusers",
    "PixArtSigmaPipeline": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "ZImagePipeline": "Tongyi-MAI/Z-Image",
    "QwenImagePipeline": "Qwen/Qwen-Image",
}


def check_steps(pipeline: str, scheduler: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError, with the base model to take, if a checkpoint is step-distilled.

    Args:
        pipeline: class of its pipeline.
        scheduler: scheduler_config.json.
        names: of its repository or folder, and where a copy says that it comes from.
    """
    sampler = str(scheduler.get("_class_name"))
    signs = [match[1] for name in names if (match := NAME.search(name))]
    if sampler in SCHEDULERS:
        signs.append(sampler)
    # Those of Stable Diffusion's turbo models; models for many steps have it if they predict v.
    kind, spacing = (scheduler.get(key) for key in ("prediction_type", "timestep_spacing"))
    if sampler.startswith("Euler") and spacing == "trailing" and kind in (None, "epsilon"):
        signs.append(f"{sampler}, trailing")
    if signs:
        base = BASE.get(pipeline, "its base model")
        raise ValueError(f"it is step-distilled ({signs[0]}), its predictions are no scores; take {base}")
