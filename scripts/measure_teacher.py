"""Prompt accuracy of a critters teacher, measured by a small CNN trained on exact renders.

    python scripts/measure_teacher.py --teacher bundled

Prints the CNN's own accuracy on held-out renders, the teacher's accuracy over samples with full captions, and the PSNR of the
VAE's round trip.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import save_image

from dds_train.critters.captions import full_caption
from dds_train.critters.dataset import CritterDataset
from dds_train.critters.world import BACKDROPS, FURS, SPECIES, Critter, critter
from dds_train.diffusion import Autoencoder, DiffusionCheckpoint, sample_latents

HEADS = {"species": SPECIES, "fur": FURS, "backdrop": BACKDROPS}
SEED = 10_000_000  # far from the critters that teachers are trained on


class Classifier(nn.Module):
    """64 x 64 images -> logits for species, fur and backdrop."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 256), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(values)) for name, values in HEADS.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.features(image)
        return {name: head(features) for name, head in self.heads.items()}


def labels_of(critters: list[Critter]) -> dict[str, Tensor]:
    return {name: torch.tensor([values.index(getattr(c, name)) for c in critters]) for name, values in HEADS.items()}


def accuracy(classifier: Classifier, images: Tensor, labels: dict[str, Tensor]) -> dict[str, float]:
    with torch.no_grad():
        logits = [classifier(part) for part in images.split(256)]
    return {n: (torch.cat([one[n] for one in logits]).argmax(1) == labels[n]).float().mean().item() for n in HEADS}


def stack(data: CritterDataset) -> Tensor:
    return torch.stack([data[i]["image"] for i in range(len(data))])


def train_classifier(count: int, epochs: int) -> Classifier:
    """Trained on blurred and noised renders too, so that images from the VAE are within its distribution."""
    data = CritterDataset(count, SEED)
    images, labels = stack(data), labels_of(data.critters)
    classifier, rng = Classifier(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * count // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        index = torch.randint(count, (128,), generator=rng)
        batch = images[index]
        if torch.rand((), generator=rng) < 0.5:
            batch = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, 1)
        batch = batch + 0.05 * torch.rand((), generator=rng) * torch.randn(batch.shape, generator=rng)
        logits = classifier(batch)
        loss = sum((F.cross_entropy(logits[name], labels[name][index]) for name in HEADS), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


def round_trip(autoencoder: Autoencoder, images: Tensor) -> float:
    """Mean PSNR in dB."""
    errors = [
        ((autoencoder.decode(autoencoder.encode(part)) - part) / 2).square().flatten(1).mean(1) for part in images.split(64)
    ]
    return -10 * torch.cat(errors).log10().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="bundled", help="'bundled' or a folder")
    parser.add_argument("--max-tokens", type=int, help="of a prompt, as teacher.max_tokens")
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--renders", type=int, default=16_000, help="to train the classifier on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--classifier", type=Path, help="file of the trained classifier; reused if it exists")
    parser.add_argument("--samples", type=Path, help="file to save some samples to")
    args = parser.parse_args()

    torch.manual_seed(0)
    if args.classifier and args.classifier.exists():
        classifier = Classifier().eval()
        classifier.load_state_dict(torch.load(args.classifier, weights_only=True))
    else:
        classifier = train_classifier(args.renders, args.epochs)
        if args.classifier:
            torch.save(classifier.state_dict(), args.classifier)
    held_out = CritterDataset(2000, SEED + 1_000_000)
    exact = stack(held_out)
    show("classifier, 2000 held-out renders", accuracy(classifier, exact, labels_of(held_out.critters)))

    checkpoint = DiffusionCheckpoint(args.teacher, max_tokens=args.max_tokens)
    teacher, autoencoder, text = checkpoint.teacher(), checkpoint.autoencoder(), checkpoint.text_encoder()
    print(f"VAE round trip, 500 held-out renders: {round_trip(autoencoder, exact[:500]):.2f} dB")

    critters = [critter(SEED + 2_000_000 + i) for i in range(args.count)]
    started, images = time.time(), []
    for start in range(0, args.count, 100):
        part = critters[start : start + 100]
        z = sample_latents(
            teacher,
            checkpoint.sampler(),
            text.condition([full_caption(c) for c in part]),
            range(start, start + len(part)),
            steps=args.steps,
            guidance=args.guidance,
        )
        images.append(autoencoder.decode(z))
    samples = torch.cat(images)
    seconds = (time.time() - started) / args.count
    show(
        f"teacher, {args.count} samples, guidance {args.guidance:g}, {args.steps} steps",
        accuracy(classifier, samples, labels_of(critters)),
    )
    print(f"{seconds:.3f} s a sample")
    if args.samples:
        save_image((samples[:128] + 1) / 2, args.samples, nrow=16)


def show(title: str, values: dict[str, float]) -> None:
    print(f"{title}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
