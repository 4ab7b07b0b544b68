"""Tiny teachers with random weights, in the shape of Stable Diffusion's folders."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dds_train.diffusion import DiffusionCheckpoint


@pytest.fixture(scope="session", autouse=True)
def usual_signals() -> None:
    """nohup and background jobs of shells ignore these, and so would the programs that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny networks are slower with more, and several test runs at once much slower."""
    torch.set_num_threads(1)


def build_pipeline(prediction_type: str) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    alphabet = sorted(ByteLevel.alphabet())
    pieces = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(a + "</w>" for a in alphabet)]
    tokenizer = CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(pieces),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=32,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    # SD 1.5 ships a PNDM scheduler, SD 2.1 a DDIM one.
    if prediction_type == "epsilon":
        scheduler = PNDMScheduler(**noise, skip_prk_steps=True)
    else:
        scheduler = DDIMScheduler(**noise, prediction_type=prediction_type, clip_sample=False)
    return StableDiffusionPipeline(vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """prediction type -> the folder of a saved pipeline with latents of 8 x 8 and a VAE of factor 4."""
    folders: dict[str, Path] = {}

    def get(prediction_type: str = "epsilon") -> Path:
        if prediction_type not in folders:
            folders[prediction_type] = tmp_path_factory.mktemp("tiny") / prediction_type
            build_pipeline(prediction_type).save_pretrained(folders[prediction_type])
        return folders[prediction_type]

    return get


@pytest.fixture
def checkpoint(tiny: Callable[[str], Path]) -> DiffusionCheckpoint:
    """The tiny teacher that predicts noise."""
    return DiffusionCheckpoint(str(tiny("epsilon")))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Images a and b of one size, c of another, and a mask m of a and b."""
    for name, size in (("a", (20, 10)), ("b", (20, 10)), ("c", (8, 8))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    Image.new("L", (20, 10), 255).save(tmp_path / "m.png")
    return tmp_path


@pytest.fixture
def model_dir(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a tiny teacher, to change."""
    return shutil.copytree(tiny("epsilon"), tmp_path / "teacher")
