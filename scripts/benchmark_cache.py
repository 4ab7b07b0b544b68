"""Speed of a second edit of the same images with a cached source branch.

    python scripts/benchmark_cache.py
    python scripts/benchmark_cache.py --teacher FOLDER --device cuda --batch 1

The three cases are measured in turns in one run; prints medians and ratios, and whether the results are equal bit for bit.
"""

import argparse
import statistics
import time

import torch

from dds_train.diffusion import DiffusionCheckpoint
from dds_train.distillation.cache import SourceCache
from dds_train.distillation.noise import ScoreModel
from dds_train.methods.optimize import optimize_latent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    checkpoint = DiffusionCheckpoint(
        args.teacher, args.device, torch.float16 if args.device.startswith("cuda") else torch.float32
    )
    teacher, text = checkpoint.teacher(), checkpoint.text_encoder()
    source, target = text.condition("a photo of a cat"), text.condition("a photo of a lion")
    seconds: dict[str, list[float]] = {"without": [], "first": [], "second": []}
    for number in range(args.rounds):
        shape = (args.batch, *teacher.latent_shape)
        z = torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(args.device)
        cached = SourceCache(teacher, {})
        runs: dict[str, ScoreModel] = {"without": teacher, "first": cached, "second": cached}
        results = {}
        for name, model in runs.items():
            began = time.perf_counter()
            *_, last = optimize_latent(model, z, source, target, steps=args.steps)
            results[name] = last.z.cpu()  # waits for the device
            seconds[name].append(time.perf_counter() - began)
        assert torch.equal(results["first"], results["second"]), "the cached source branch changed the result"
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:8} {value:.3f} s, {medians['without'] / value:.2f} times as fast as without a cache")
    print(f"second against first: {medians['first'] / medians['second']:.2f}; results equal bit for bit")


if __name__ == "__main__":
    main()
