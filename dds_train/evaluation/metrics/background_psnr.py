"""How well the background of critters is kept."""

from dds_train.critters.scores import background_pixels, pooled_psnr
from dds_train.evaluation.metrics.edit_accuracy import critter_score, is_critter
from dds_train.evaluation.metrics.metric import HIGHER, Metric, ResultSet

NAME = "background PSNR"


def over_all_images(results: ResultSet) -> float:
    """As `critters.scores.score_edit` has it for several images: over all background pixels of all of them."""
    pixels = [background_pixels(item.critter, item.changes, item.size[0]) if item.critter else 0 for item in results.items]
    return pooled_psnr(results.values[NAME], pixels)


BACKGROUND_PSNR = Metric(
    NAME,
    HIGHER,
    "PSNR against the ground truth over the pixels that no species covers, pooled over all images; ∞ if all are equal",
    unit="dB",
    per_image=lambda batch: critter_score(batch, "background_psnr"),
    per_set=over_all_images,
    applies=is_critter,
    exact=True,
    decimals=1,
)
