"""Try a trained translator in the browser."""

import importlib.util
import os
import signal
import tempfile
from pathlib import Path

from dds_train.cli.schema import DemoConfig
from dds_train.errors import UserError, first_line
from dds_train.images.find import find_inputs
from dds_train.translator.pipeline import Translator


def run(config: DemoConfig) -> None:
    if not importlib.util.find_spec("gradio"):
        raise UserError("demo needs gradio: pip install gradio")
    options = {"device": config.device, "tile": config.tile, "overlap": config.overlap}
    options |= config.teacher.model_dump(include={"dtype", "quantization"})
    translator = Translator.from_pretrained(config.ckpt, **config.teacher.place, **options)  # type: ignore[arg-type]
    # Uploads and results are deleted with the page.
    with tempfile.TemporaryDirectory(prefix="dds_train_demo_") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        # Gradio asks its own server whether it is there, which no proxy knows.
        direct = {
            name: ",".join(filter(None, [os.environ.get(name), "localhost", config.host])) for name in ("no_proxy", "NO_PROXY")
        }
        os.environ |= direct
        from dds_train.demo import build_page, copy_examples, serve

        inputs = find_inputs(config.examples, folder) if config.examples else []
        page = build_page(translator, Path(folder), copy_examples(inputs, Path(folder)), config.max_side)
        try:
            url = serve(page, config.host, config.port)
        except OSError as error:
            raise UserError(f"host={config.host} port={config.port}: {first_line(error)}") from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"{url}  (Ctrl-C ends it)", flush=True)
        page.block_thread()
