"""A checkpoint's noise, from the configuration of its scheduler, whose solver does not matter."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

# Schedulers of variance-preserving noise; their configurations are interchangeable.
VARIANCE_PRESERVING = {scheduler.__name__ for scheduler in DDIMScheduler().compatibles} | {"DDIMScheduler"}


def make_scheduler(
    config: Mapping[str, Any], tokens: int, mu: Callable[..., float] | None = None
) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """DDIM with the checkpoint's betas, or Euler's method with the shift of its flow.

    Args:
        config: scheduler_config.json.
        tokens: of an image that the denoiser was trained on; some flows are shifted further for larger images.
        mu: that shift's exponent, from the number of tokens; by default as the configuration says.

    Raises:
        ValueError: for a scheduler of another kind of noise.
    """
    name = config.get("_class_name")
    steps = config.get("num_train_timesteps", 1000)
    if name == "FlowMatchEulerDiscreteScheduler" or config.get("prediction_type") == "flow_prediction":
        shift = config.get("flow_shift") or config.get("shift", 1.0)
        if config.get("use_dynamic_shifting"):
            keys = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
            keys |= {"base_shift": "base_shift", "max_shift": "max_shift"}
            known = {argument: config[key] for argument, key in keys.items() if key in config}
            exponent = mu(tokens) if mu else calculate_shift(tokens, **known)
            shift = exponent if config.get("time_shift_type") == "linear" else math.exp(exponent)
        return FlowMatchEulerDiscreteScheduler(steps, shift, shift_terminal=config.get("shift_terminal"))
    if name not in VARIANCE_PRESERVING:
        raise ValueError(f"its scheduler {name} is neither one of variance-preserving noise nor of a rectified flow")
    return DDIMScheduler.from_config(config)
