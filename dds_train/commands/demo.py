"""Try a trained translator in the browser."""

import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path

from dds_train.cli.schema import DemoConfig
from dds_train.commands.predict import build_translator
from dds_train.errors import UserError
from dds_train.images.find import find_inputs
from dds_train.translator import read_config


def run(cfg: DemoConfig) -> None:
    if not importlib.util.find_spec("gradio"):
        raise UserError("demo needs gradio: pip install gradio")
    translator = build_translator(cfg, read_config(Path(cfg.ckpt)))
    # Uploads and results are gone when the page is.
    with tempfile.TemporaryDirectory(prefix="dds_train_demo_") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from dds_train.demo import THEME, build_page

        examples = []
        for name, path in find_inputs(cfg.examples, folder) if cfg.examples else ():
            examples.append(Path(folder) / "examples" / f"{name}{path.suffix}")  # gradio shows what lies in its own folder
            examples[-1].parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, examples[-1])
        page = build_page(translator, Path(folder), examples, cfg.max_side)
        try:
            _, url, _ = page.launch(
                server_name=cfg.host,
                server_port=cfg.port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                theme=THEME,
                footer_links=[],
                ssr_mode=False,
                max_file_size="200mb",
            )
        except OSError as error:
            raise UserError(f"host={cfg.host} port={cfg.port}: {str(error).splitlines()[0]}") from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        print(f"{url}  (Ctrl-C ends it)", flush=True)
        page.block_thread()
