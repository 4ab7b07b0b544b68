"""Cats to lions with the exact truth beside: every editor of this package in one table.

    python scripts/compare_editors.py --ckpt outputs/cat2lion/translator

All editors see the same unseen cats. Seconds are measured in this run, on batches of all pictures, and include the codec.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dds_train.critters.dataset import to_tensor
from dds_train.critters.world import critter
from dds_train.data.images import save_image, strip
from dds_train.editing.optimize import optimize_latent
from dds_train.frozen import Pretrained
from dds_train.metrics.critters import score_species_edit
from dds_train.translator import load_translator

FIRST = 20_000_000  # cats that neither teachers nor translators have seen
Editor = Callable[[Tensor], Tensor]


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    cats = [critter(FIRST + i, species="cat") for i in range(args.count)]
    images = torch.stack([to_tensor(c) for c in cats])
    truth = torch.stack([to_tensor(c.replaced(species="lion")) for c in cats])

    pretrained = Pretrained(args.teacher)
    teacher, codec, text = pretrained.teacher(), pretrained.codec(), pretrained.text_encoder()
    source, target = text.condition("a photo of a cat"), text.condition("a photo of a lion")

    def optimizer(loss: str) -> Editor:
        def edit(batch: Tensor) -> Tensor:
            z = codec.encode(batch)
            settings = {"steps": args.steps, "lr": args.lr, "guidance": args.guidance, "t_range": tuple(args.t_range)}
            for step in optimize_latent(teacher, z, source, target, loss=loss, **settings):
                z = step.z
            return codec.decode(z)

        return edit

    def translator(path: Path) -> Editor:
        network, card = load_translator(path)
        instruction = text.embed(card.instruction)

        @torch.no_grad()
        def edit(batch: Tensor) -> Tensor:
            z = codec.encode(batch)
            return codec.decode(network(z, instruction.expand(len(z), -1, -1), torch.ones(len(z))))

        return edit

    editors: dict[str, Editor] = {
        "do nothing": lambda batch: batch,
        "VAE round trip of the truth": lambda _: codec.decode(codec.encode(truth)),
        f"optimize, SDS, {args.steps} steps": optimizer("sds"),
        f"optimize, DDS, {args.steps} steps": optimizer("dds"),
    }
    for path in args.ckpt:
        editors[f"translator {path.resolve().parent.name}"] = translator(path)

    print("| editor | gap closed | lion | fur kept | backdrop kept | accessories kept | background PSNR | s / image |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = [images, truth]
    for name, edit in editors.items():
        began = time.perf_counter()
        outputs = edit(images)
        seconds = (time.perf_counter() - began) / len(images)
        s = asdict(score_species_edit(outputs, cats, "lion"))
        shares = " | ".join(f"{s[key]:.2f}" for key in ("species", "fur", "backdrop", "accessories"))
        print(f"| {name} | {s['gap_closed']:.3f} | {shares} | {s['background_psnr']:.1f} | {seconds:.3f} |", flush=True)
        rows.append(outputs)
    if args.picture:
        save_image(strip([row[:16] for row in rows]), args.picture)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, nargs="*", default=[], help="translators: exported folders or checkpoints")
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--t-range", type=int, nargs=2, default=(600, 980))
    parser.add_argument("--picture", type=Path, help="rows: inputs, truth, then the editors in the table's order")
    return parser.parse_args()


if __name__ == "__main__":
    main()
