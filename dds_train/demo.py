"""A web page to try a translator on: upload an image, choose the edit and its strength, download the result."""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from dds_train.errors import UserError
from dds_train.images.files import save_image, to_pil
from dds_train.images.input_image import read_input_image
from dds_train.runs.files import relative_name
from dds_train.translator.pipeline import Translator

OWN_PROMPT = "own prompt"
# The page loads nothing from elsewhere: fonts are the visitor's own.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def copy_examples(inputs: Iterable[tuple[str, Path]], folder: Path) -> list[Path]:
    """Copies of images by name, below `folder`: gradio shows files of its own folder only."""
    copies = []
    for name, path in inputs:
        copies.append(folder / "examples" / f"{name}{path.suffix}")
        copies[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copies[-1])
    return copies


def result_name(image: str, task: str) -> str:
    """The name of a result's file. Tasks have whatever names the translator's author gave them."""
    return relative_name(f"{Path(image).stem}-{task.replace(' ', '-')}.png".replace("/", "-"))


def build_page(translator: Translator, folder: Path, examples: Sequence[Path] = (), max_side: int | None = None) -> gr.Blocks:
    """The page.

    Args:
        folder: receives the results.
        examples: images to try, which must be below `folder` or the working directory.
        max_side: larger images are downscaled to this many pixels on the longer side.
    """
    tasks = translator.config.tasks

    def edit(file: str | None, task: str, prompt: str, strength: float) -> Any:
        """Values of slider, download button and note."""
        if file is None:
            return None, gr.update(value=None, interactive=False), ""
        if task == OWN_PROMPT and not prompt.strip():
            return gr.skip()
        try:
            image = read_input_image(Path(file), max_side)
        except UserError as error:
            refusal = str(error).replace(file, Path(file).name)  # without the path on this machine
            gr.Warning(refusal)
            return None, gr.update(value=None, interactive=False), refusal
        instruction = prompt if task == OWN_PROMPT else tasks[task].instruction
        edited = translator.translate(image.image, instruction, strength)[0]
        result = Path(tempfile.mkdtemp(dir=folder)) / result_name(file, task)
        save_image(edited, result, image.alpha_and_profile)
        (height, width), original = image.size, image.original.shape[-2:]
        note = f"{width} x {height} pixels" + ("" if original == (height, width) else f", from {original[1]} x {original[0]}")
        return (to_pil(image.image[0]), to_pil(edited)), gr.update(value=str(result), interactive=True), note

    with gr.Blocks(title="Image translator", analytics_enabled=False) as page:
        gr.Markdown("# Image translator")
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label="Image", type="filepath", height=150, elem_id="image")
                choices = [*((one.instruction, name) for name, one in tasks.items()), ("your own prompt", OWN_PROMPT)]
                task = gr.Radio(choices, value=next(iter(tasks)), label="Edit", elem_id="task")
                prompt = gr.Textbox(label="Prompt, then Enter", visible=False, elem_id="prompt")
                strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", elem_id="strength")
                download = gr.DownloadButton("Download the result", interactive=False, elem_id="download")
            with gr.Column(scale=2):
                both = gr.ImageSlider(label="Before and after", format="png", interactive=False, height=520, elem_id="both")
                note = gr.Markdown(elem_id="note")
        if examples:
            thumbnails, samples = gr.Image(type="filepath", visible=False), [[str(path)] for path in examples]
            gallery = gr.Dataset(components=[thumbnails], samples=samples, type="index", label="Examples", elem_id="examples")
            gallery.click(lambda index: str(examples[index]), gallery, file, **QUIET)
        task.input(lambda choice: gr.update(visible=choice == OWN_PROMPT), task, prompt, **QUIET)
        events = [file.change, task.input, prompt.submit, strength.release]
        gr.on(events, edit, [file, task, prompt, strength], [both, download, note], api_name="edit")
    return page


def serve(page: gr.Blocks, host: str, port: int | None) -> str:
    """Start serving, without blocking; the address. Raises OSError if the port is taken."""
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        theme=THEME,
        footer_links=[],
        ssr_mode=False,
        max_file_size="200mb",
    )
    return str(url)
