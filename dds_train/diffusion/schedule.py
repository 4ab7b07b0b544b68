"""A checkpoint's noise, from the configuration of its scheduler, whose solver does not matter."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from dds_train.distillation.noise import VP_PREDICTIONS

# Samplers of one kind of noise, whose configurations DDIM reads: not EDM's preconditioning.
VARIANCE_PRESERVING = set(DDIMScheduler._compatibles) - {"EDMEulerScheduler"}
FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"}


def make_scheduler(
    config: Mapping[str, Any],
    names: Collection[str],
    tokens: int | None,
    mu: Callable[[int], float] | None = None,
    static_shift: float | None = None,
) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """DDIM with the checkpoint's betas, or Euler's method with the shift of its flow.

    Args:
        config: scheduler_config.json.
        names: classes of schedulers that the checkpoint names.
        tokens: of an image that the denoiser of a flow was trained on: some flows are shifted further for larger images. None
            for variance-preserving noise.
        mu: that shift's exponent, from the number of tokens; by default as the configuration says.
        static_shift: of a flow, in place of all that.

    Raises:
        ValueError: for a scheduler of another kind of noise.
    """
    prediction, steps = config.get("prediction_type", "epsilon"), config.get("num_train_timesteps", 1000)
    if tokens is None:
        wrong = set(names) - VARIANCE_PRESERVING or prediction not in VP_PREDICTIONS or config.get("use_flow_sigmas")
        known = f"{', '.join(sorted(VARIANCE_PRESERVING))}, without flow matching"
    else:
        wrong = set(names) - FLOW and prediction != "flow_prediction"
        known = f"{' or '.join(sorted(FLOW))}, or prediction type flow_prediction"
    if wrong:
        raise ValueError(f"its scheduler is {' or '.join(sorted(names))} for prediction type {prediction}; it needs {known}")
    if tokens is None:
        return DDIMScheduler.from_config(config)
    shift = static_shift or config.get("flow_shift") or config.get("shift", 1.0)
    if config.get("use_dynamic_shifting") and static_shift is None:
        keys = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
        keys |= {"base_shift": "base_shift", "max_shift": "max_shift"}
        own = {argument: config[key] for argument, key in keys.items() if key in config}
        exponent = mu(tokens) if mu else calculate_shift(tokens, **own)
        shift = exponent if config.get("time_shift_type") == "linear" else math.exp(exponent)
    return FlowMatchEulerDiscreteScheduler(steps, shift, shift_terminal=config.get("shift_terminal"))
