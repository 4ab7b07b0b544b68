"""Edits of cats with the exact truth beside: every editor of this package in one table.

    python scripts/compare_editors.py --ckpt outputs/cat2lion/translator
    python scripts/compare_editors.py --to lion dog bear rabbit --ckpt outputs/cat2many/translator --strengths 0.25 0.5 0.75 1

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
    pretrained = Pretrained(args.teacher)
    rows = [images]
    print("| edit | editor | gap closed | species | fur | backdrop | accessories | background PSNR | s / image |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for species in args.to:
        truth = torch.stack([to_tensor(c.replaced(species=species)) for c in cats])
        rows.append(truth)
        for name, edit in editors(args, pretrained, species, truth).items():
            began = time.perf_counter()
            outputs = edit(images)
            seconds = (time.perf_counter() - began) / len(images)
            s = asdict(score_species_edit(outputs, cats, species))
            shares = " | ".join(f"{s[key]:.2f}" for key in ("species", "fur", "backdrop", "accessories"))
            numbers = f"{s['gap_closed']:.3f} | {shares} | {s['background_psnr']:.1f} | {seconds:.3f}"
            print(f"| {species} | {name} | {numbers} |", flush=True)
            rows.append(outputs)
    if args.picture:
        save_image(strip([row[:16] for row in rows]), args.picture)


def editors(args: argparse.Namespace, pretrained: Pretrained, species: str, truth: Tensor) -> dict[str, Editor]:
    teacher, codec, text = pretrained.teacher(), pretrained.codec(), pretrained.text_encoder()
    source, target = text.condition("a photo of a cat"), text.condition(f"a photo of a {species}")

    def optimizer(loss: str) -> Editor:
        def edit(batch: Tensor) -> Tensor:
            z = codec.encode(batch)
            settings = {"steps": args.steps, "lr": args.lr, "guidance": args.guidance, "t_range": tuple(args.t_range)}
            for step in optimize_latent(teacher, z, source, target, loss=loss, **settings):
                z = step.z
            return codec.decode(z)

        return edit

    def translator(path: Path, strength: float) -> Editor | None:
        network, card = load_translator(path)
        tasks = [task for task in card.tasks.values() if task.target == f"a photo of a {species}"]
        if not tasks:
            return None
        instruction = text.embed(tasks[0].instruction)

        @torch.no_grad()
        def edit(batch: Tensor) -> Tensor:
            z = codec.encode(batch)
            return codec.decode(network(z, instruction.expand(len(z), -1, -1), torch.full((len(z),), strength)))

        return edit

    found: dict[str, Editor] = {}
    if not args.translators_only:
        found = {
            "do nothing": lambda batch: batch,
            "VAE round trip of the truth": lambda _: codec.decode(codec.encode(truth)),
            f"optimize, SDS, {args.steps} steps": optimizer("sds"),
            f"optimize, DDS, {args.steps} steps": optimizer("dds"),
        }
    for path in args.ckpt:
        for strength in args.strengths:
            edit = translator(path, strength)
            at = "" if args.strengths == [1.0] else f", strength {strength:g}"
            if edit:
                found[f"translator {path.resolve().parent.name}{at}"] = edit
    return found


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, nargs="*", default=[], help="translators: exported folders or checkpoints")
    parser.add_argument("--to", nargs="+", default=["lion"], help="species")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0], help="of the translators")
    parser.add_argument("--translators-only", action="store_true", help="leave out baselines and descent")
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--t-range", type=int, nargs=2, default=(400, 980))
    parser.add_argument(
        "--picture", type=Path, help="rows: inputs; then for each edit the truth and the editors in the table's order"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
