"""Textual inversion (arXiv 2208.01618): tokens of others, added to tokenizers and text encoders when they are loaded."""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dds_train.errors import UserError, first_line

# Names of vectors for one text encoder of several -> the ends of its and its tokenizer's names.
ENCODERS = {"clip_l": "", "clip_g": "_2", "t5": "_2"}


def add_embeddings(pipeline: Any, files: Sequence[tuple[str | None, Path]]) -> None:
    """Add a token, or as many as it has vectors, for each file; prompts with the token then mean all of them.

    Args:
        pipeline: diffusers', with its text parts.
        files: token, or None for the one that the file names (its own name, if it names none); and the file.

    Raises:
        UserError: if one does not fit.
    """
    for token, path in files:
        try:
            for end, named, vectors in _vectors(path):
                encoder, tokenizer = (getattr(pipeline, name + end, None) for name in ("text_encoder", "tokenizer"))
                width = encoder.get_input_embeddings().embedding_dim if encoder else None
                if vectors.shape[-1] != width:
                    raise ValueError(f"vectors of {vectors.shape[-1]}, where those of text_encoder{end} have {width}")
                with torch.random.fork_rng(devices=[]):  # the new rows are drawn before they are set
                    pipeline.load_textual_inversion(
                        vectors, token=token or named or path.stem, text_encoder=encoder, tokenizer=tokenizer
                    )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
            reason = first_line(error)
            raise UserError(f"teacher.embeddings={path}: {reason}") from error


def _vectors(path: Path) -> Iterator[tuple[str, str | None, Tensor]]:
    """End of the text encoder's name, token if the file names it, vectors [N,D]: in diffusers', A1111's or kohya's format."""
    safe = path.suffix == ".safetensors"
    found = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    if "string_to_param" in found:
        yield "", str(found["name"]), found["string_to_param"]["*"]
    elif set(found) <= set(ENCODERS):
        for name, vectors in found.items():
            yield ENCODERS[name], None, vectors
    elif len(found) == 1:
        ((name, vectors),) = found.items()
        yield "", None if name == "emb_params" else name, vectors
    else:
        raise ValueError(f"no textual inversion: it has {len(found)} tensors, such as {min(found)}")
