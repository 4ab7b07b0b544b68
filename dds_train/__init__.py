"""dds_train: image translators trained from a sentence with the Delta Denoising Score."""

from typing import Any

__version__ = "0.1.0"  # as in pyproject.toml
__all__ = ["Translator", "__version__"]


def __getattr__(name: str) -> Any:
    # On demand: the command line must not load torch before it has looked at its arguments.
    if name == "Translator":
        from dds_train.translator.pipeline import Translator

        return Translator
    raise AttributeError(name)
