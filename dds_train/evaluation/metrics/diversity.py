"""Whether different inputs still make different outputs."""

from collections.abc import Iterable

import torch
from torch import Tensor


def diversity(inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> Tensor:
    """Spread of the outputs over spread of the inputs, [].
    Near 0, all outputs are alike: the collapse that a translator without a warm-up of guidance falls into."""
    return spread(outputs) / spread(inputs)


def spread(pictures: Iterable[Tensor]) -> Tensor:
    """The rms distance of pictures [C,H,W] from their mean, []. One after the other (Welford's algorithm), so that there may be
    more of them than fit into memory."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for picture in pictures:
        count += 1
        before = picture - mean
        mean = mean + before / count
        squares = squares + before * (picture - mean)
    return (squares / max(count, 1)).mean().sqrt()
