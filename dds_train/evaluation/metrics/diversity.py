"""Whether different inputs still make different outputs."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dds_train.evaluation.metrics.metric import NEITHER, Metric, ResultSet


def diversity(inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> Tensor:
    """Spread of the outputs over spread of the inputs, [].
    Near 0, all outputs are alike: the collapse that a translator without a warm-up of guidance falls into."""
    return spread(outputs) / spread(inputs)


def spread(images: Iterable[Tensor]) -> Tensor:
    """The rms distance of images [C,H,W] from their mean, []. One after the other (Welford's algorithm), so that there may be
    more of them than fit into memory."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for image in images:
        count += 1
        before = image - mean
        mean = mean + before / count
        squares = squares + before * (image - mean)
    return (squares / max(count, 1)).mean().sqrt()


def of_results(results: ResultSet) -> float:
    """NaN for images of several sizes, or fewer than two."""
    if len(results.items) < 2 or len({item.size for item in results.items}) > 1:
        return float("nan")
    return diversity((item.load().image[0] for item in results.items), results.outputs()).item()


DIVERSITY = Metric(
    "diversity", NEITHER, "spread of the outputs over spread of the inputs; near 0, all outputs are alike", per_set=of_results
)
