"""A page on which people try a translator: drop a picture, choose the edit, turn its strength, download the result."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dds_train.errors import UserError
from dds_train.images.files import save_image, to_pil
from dds_train.images.input_image import read_input_image
from dds_train.translator.pipeline import Translator

OWN_WORDS = "own words"
# The page loads nothing from elsewhere: fonts are the visitor's own.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build_page(translator: Translator, folder: Path, examples: Sequence[Path] = (), max_side: int | None = None) -> gr.Blocks:
    """The page; `launch` it.

    Args:
        folder: results go there.
        examples: pictures to try, which must lie below `folder` or the current one: gradio shows no others.
        max_side: larger pictures are scaled down to it first.
    """
    tasks = translator.config.tasks

    def edit(file: str | None, task: str, words: str, strength: float) -> Any:
        """What slider, download and note show."""
        if file is None:
            return None, gr.update(value=None, interactive=False), ""
        if task == OWN_WORDS and not words.strip():
            return gr.skip()
        try:
            picture = read_input_image(Path(file), max_side)
        except UserError as error:
            refusal = str(error).replace(file, Path(file).name)  # not where it lies on this machine
            gr.Warning(refusal)
            return None, gr.update(value=None, interactive=False), refusal
        instruction = words if task == OWN_WORDS else tasks[task].instruction
        edited = translator.translate(picture.image, instruction, strength)[0]
        result = Path(tempfile.mkdtemp(dir=folder)) / f"{Path(file).stem}-{task.replace(' ', '-')}.png"
        save_image(edited, result, picture.alpha_and_profile)
        (height, width), original = picture.size, picture.original.shape[-2:]
        note = f"{width} x {height} pixels" + ("" if original == (height, width) else f", from {original[1]} x {original[0]}")
        return (to_pil(picture.image[0]), to_pil(edited)), gr.update(value=str(result), interactive=True), note

    with gr.Blocks(title="Image translator", analytics_enabled=False) as page:
        gr.Markdown("# Image translator")
        with gr.Query():
            with gr.Column(scale=1):
                file = gr.File(label="Drop a picture here", type="filepath", height=150, elem_id="picture")
                choices = [*((one.instruction, name) for name, one in tasks.items()), ("in your own words", OWN_WORDS)]
                task = gr.Radio(choices, value=next(iter(tasks)), label="What to make of it", elem_id="task")
                words = gr.Textbox(label="Your words, then Enter", visible=False, elem_id="words")
                strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", elem_id="strength")
                download = gr.DownloadButton("Download the result", interactive=False, elem_id="download")
            with gr.Column(scale=2):
                both = gr.ImageSlider(label="Before and after", format="png", interactive=False, height=520, elem_id="both")
                note = gr.Markdown(elem_id="note")
        if examples:
            thumbnails = gr.Image(type="filepath", visible=False)
            samples = [[str(path)] for path in examples]
            shown = gr.Dataset(
                components=[thumbnails], samples=samples, type="index", label="Pictures to try", elem_id="examples"
            )
            shown.click(lambda number: str(examples[number]), shown, file, show_progress="hidden", api_visibility="private")
        task.input(
            lambda one: gr.update(visible=one == OWN_WORDS), task, words, show_progress="hidden", api_visibility="private"
        )
        whenever = [file.change, task.input, words.submit, strength.release]
        gr.on(whenever, edit, [file, task, words, strength], [both, download, note], api_name="edit")
    return page
