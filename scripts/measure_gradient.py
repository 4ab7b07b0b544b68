"""Where DDS's gradient points, by timestep, on critters, whose true edits are known.

    python scripts/measure_gradient.py

For latents on the way from the input to the ground truth it prints, as a share of the whole edit, what one step to the
teacher's estimate of the clean latent would add: at 0 the pull that starts an edit; at 1, where it should be zero, how far it
leads back from the ground truth. After the slash, what it changes besides. Guidance 1, prompts that are the critters' captions.

Then what the teacher itself makes of the ground truth: noised to a timestep and denoised again (SDEdit), how much of the gap is
still closed. What an image is at higher noise, the teacher cannot bring back.
"""

import argparse

import torch
from torch import Tensor

from dds_train.critters.captions import full_caption
from dds_train.critters.dataset import to_tensor
from dds_train.critters.scores import score_edit
from dds_train.critters.world import VALIDATION_SEED, counterfactuals
from dds_train.diffusion import DiffusionCheckpoint
from dds_train.distillation import dds_loss
from dds_train.distillation.rng import draw
from dds_train.methods.baselines import sdedit_latent

SHARES = (0.0, 0.5, 1.0)
WIDTH = 100  # timesteps of a row


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="bundled", help="bundled, bundled_flow, or a folder")
    parser.add_argument("--species", default="lion")
    parser.add_argument("--count", type=int, default=16, help="number of critters")
    parser.add_argument("--draws", type=int, default=10, help="timesteps and noises averaged, for each critter")
    args = parser.parse_args()

    cats, truths = counterfactuals(VALIDATION_SEED, args.count, {"species": "cat"}, {"species": args.species})
    checkpoint = DiffusionCheckpoint(args.teacher)
    text, autoencoder, teacher = checkpoint.text_encoder(), checkpoint.autoencoder(), checkpoint.teacher()
    source, target = (text.condition([full_caption(one) for one in critters]) for critters in (cats, truths))
    z_source, z_truth = (autoencoder.encode(torch.stack([to_tensor(one) for one in critters])) for critters in (cats, truths))
    edit = z_truth - z_source

    print("| timesteps | " + " | ".join(f"at {share:g}" for share in SHARES) + " |")
    print("| --- " * (1 + len(SHARES)) + "|")
    for first in range(0, len(teacher.schedule), WIDTH):
        steps = [torch.zeros_like(edit) for _ in SHARES]
        for number in range(args.draws):
            keys = [(number, "measure", image) for image in range(args.count)]
            t, eps = draw(edit.shape[1:], (first, first + WIDTH), "cpu", keys)
            alpha, sigma = teacher.schedule.at(t)
            for step, share in zip(steps, SHARES, strict=True):
                gradient = dds_loss(teacher, z_source, z_source + share * edit, source, target, t, eps, 1.0).grad
                step -= sigma / alpha.clamp(min=1e-3) * gradient / args.draws
        cells = " | ".join(along_and_besides(step, edit) for step in steps)
        print(f"| {first} to {first + WIDTH - 1} | {cells} |", flush=True)

    print("\n| ground truths noised to timestep | gap closed | background PSNR |\n| --- | --- | --- |")
    for percent in range(10, 100, 10):
        _, eps = draw(edit.shape[1:], (0, 1), "cpu", [(0, "resample", image) for image in range(args.count)])
        z = sdedit_latent(teacher, checkpoint.sampler(), z_truth, target, eps, strength=percent / 100, guidance=1.0)
        scores = score_edit(autoencoder.decode(z), cats, {"species": args.species})
        timestep = percent * len(teacher.schedule) // 100
        print(f"| {timestep} | {scores.gap_closed:.3f} | {scores.background_psnr:.1f} |", flush=True)


def along_and_besides(step: Tensor, edit: Tensor) -> str:
    """The share of `edit` [B,C,h,w] that `step` makes, and the length of the rest relative to the edit's; means over B."""
    step, edit = step.flatten(1), edit.flatten(1)
    share = (step * edit).sum(1) / edit.square().sum(1)
    rest = (step - share[:, None] * edit).norm(dim=1) / edit.norm(dim=1)
    return f"{share.mean():.2f} / {rest.mean():.2f}"


if __name__ == "__main__":
    main()
