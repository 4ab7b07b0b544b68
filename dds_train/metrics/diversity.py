"""Whether different inputs still make different outputs."""

from torch import Tensor


def diversity(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Spread of the outputs over spread of the inputs, both [B,C,H,W] and both as the rms distance from their mean over B: [].
    Near 0, all outputs are alike: the collapse that a translator without a warm-up of guidance falls into."""
    return _spread(outputs) / _spread(inputs)


def _spread(x: Tensor) -> Tensor:
    return (x - x.mean(0)).square().mean().sqrt()
