"""How well a critters teacher draws what it is told, read by a small CNN that learnt from exact renders.

    python scripts/measure_teacher.py --teacher bundled

Prints the CNN's own accuracy on held-out renders, the teacher's accuracy over samples with full captions, and the codec's
round trip in dB.
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
FIRST = 10_000_000  # far from the critters that teachers are trained on


class Reader(nn.Module):
    """64 x 64 pictures -> logits for species, fur and backdrop."""

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


def labels(critters: list[Critter]) -> dict[str, Tensor]:
    return {name: torch.tensor([values.index(getattr(c, name)) for c in critters]) for name, values in HEADS.items()}


def accuracy(reader: Reader, images: Tensor, wanted: dict[str, Tensor]) -> dict[str, float]:
    with torch.no_grad():
        read = [reader(part) for part in images.split(256)]
    return {n: (torch.cat([r[n] for r in read]).argmax(1) == wanted[n]).float().mean().item() for n in HEADS}


def stack(data: CritterDataset) -> Tensor:
    return torch.stack([data[i]["image"] for i in range(len(data))])


def train_reader(count: int, epochs: int) -> Reader:
    """Slightly blurred and noised renders among the exact ones: a codec's output must not be foreign to it."""
    data = CritterDataset(count, FIRST)
    images, wanted = stack(data), labels(data.critters)
    reader, rng = Reader(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * count // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        index = torch.randint(count, (128,), generator=rng)
        batch = images[index]
        if torch.rand((), generator=rng) < 0.5:
            batch = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, 1)
        batch = batch + 0.05 * torch.rand((), generator=rng) * torch.randn(batch.shape, generator=rng)
        logits = reader(batch)
        loss = sum((F.cross_entropy(logits[name], wanted[name][index]) for name in HEADS), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return reader.eval()


def round_trip(autoencoder: Autoencoder, images: Tensor) -> float:
    """Mean PSNR in dB."""
    errors = [
        ((autoencoder.decode(autoencoder.encode(part)) - part) / 2).square().flatten(1).mean(1) for part in images.split(64)
    ]
    return -10 * torch.cat(errors).log10().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="bundled", help="'bundled' or a folder")
    parser.add_argument("--count", type=int, default=800)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--renders", type=int, default=16_000, help="that the reader learns from")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--reader", type=Path, help="file to keep the reader in, and to take it from if it is there")
    parser.add_argument("--picture", type=Path, help="where to save some samples")
    args = parser.parse_args()

    torch.manual_seed(0)
    if args.reader and args.reader.exists():
        reader = Reader().eval()
        reader.load_state_dict(torch.load(args.reader, weights_only=True))
    else:
        reader = train_reader(args.renders, args.epochs)
        if args.reader:
            torch.save(reader.state_dict(), args.reader)
    held_out = CritterDataset(2000, FIRST + 1_000_000)
    exact = stack(held_out)
    show("reader, 2000 held-out renders", accuracy(reader, exact, labels(held_out.critters)))

    checkpoint = DiffusionCheckpoint(args.teacher)
    teacher, autoencoder, text = checkpoint.teacher(), checkpoint.autoencoder(), checkpoint.text_encoder()
    print(f"codec round trip, 500 held-out renders: {round_trip(autoencoder, exact[:500]):.2f} dB")

    wanted = [critter(FIRST + 2_000_000 + i) for i in range(args.count)]
    started, images = time.time(), []
    for start in range(0, args.count, 100):
        part = wanted[start : start + 100]
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
        accuracy(reader, samples, labels(wanted)),
    )
    print(f"{seconds:.3f} s a sample")
    if args.picture:
        save_image((samples[:128] + 1) / 2, args.picture, nrow=16)


def show(title: str, values: dict[str, float]) -> None:
    print(f"{title}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
