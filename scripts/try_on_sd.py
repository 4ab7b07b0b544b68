"""Compare training on one prompt with training on captions, on Stable Diffusion and your own photographs.

    python scripts/try_on_sd.py --images photos --source cat --target lion

Trains two translators and evaluates them on one page. Needs a GPU of 16 GB, the teacher's weights, and the networks of
evaluate's metrics (CLIP, DINO, LPIPS). Not yet run on either; images and training steps are meant for under an hour in all.
`photos` are some fifty photographs of the source. What follows `--` goes to both trainings, such as
`-- teacher=sdxl batch_size=2`. The same command again goes on where it stopped.
"""

import argparse
import subprocess
import sys
from pathlib import Path

PLACES = ["on a sofa", "in a garden", "in the snow", "on a wooden table", "in a meadow", "in a kitchen", "on a street"]
SETTINGS = ["teacher=sd15", "translator=lora", "lr=1e-4", "trainer.precision=bf16-mixed", "gradient_checkpointing=true"]
SETTINGS += ["batch_size=4", "trainer.max_steps=2000", "data.count=500", "data.guidance=7.5", "data.batch_size=8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="a folder of photographs")
    parser.add_argument("--source", required=True, help="the word for what they show")
    parser.add_argument("--target", required=True, help="the word for what it becomes")
    parser.add_argument("--output", type=Path, default=Path("outputs/try_on_sd"))
    parser.add_argument("settings", nargs="*", help="further settings of fit")
    args = parser.parse_args()
    source, target = (f"a photo of a {word}" for word in (args.source, args.target))
    images = [f"data.prompts=['{source} {{place}}','a close-up photo of a {args.source} {{place}}']"]
    images += [f"data.words.place=[{','.join(PLACES)}]", *SETTINGS, *args.settings]
    recipes = {
        "one_prompt": [f"source={source}", f"target={target}"],
        "captions": ["source={caption}", "target={caption}", f"tasks.{args.target}.swap.{args.source}={args.target}"],
    }
    for name, prompts in recipes.items():
        dds_train("fit", *prompts, *images, f"output_dir={args.output / name}")
    translators = ",".join(str(args.output / name / "translator") for name in recipes)
    teacher = [one for one in [*SETTINGS, *args.settings] if one.startswith("teacher=")][-1:]
    teacher += [one for one in args.settings if one.startswith("teacher.")]
    edit = [f"image={args.images}", f"source={source}", f"target={target}", "max_side=512"]
    dds_train("evaluate", *edit, *teacher, "methods=[]", f"ckpt=[{translators}]", f"output_dir={args.output / 'evaluation'}")
    print(f"the page: {args.output / 'evaluation' / 'report.html'}")


def dds_train(*arguments: str) -> None:
    command = [sys.executable, "-m", "dds_train", *arguments]
    if code := subprocess.run(command).returncode:
        sys.exit(code)


if __name__ == "__main__":
    main()
