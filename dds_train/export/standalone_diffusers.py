"""An image translator as a diffusers pipeline. This file needs torch, diffusers and transformers, and nothing else.

from diffusers import DiffusionPipeline
from PIL import Image

translator = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=f"{FOLDER}/pipeline.py", trust_remote_code=True)
translator(Image.open("cat.png")).save("lion.png")
"""

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import TextualInversionLoaderMixin
from PIL import Image, ImageOps
from transformers import CLIPTextModel, CLIPTokenizer


def read_rgb(image: Image.Image) -> np.ndarray:
    """As it is meant to be seen: upright, 16 bits scaled to 8, transparent parts white. [H,W,3], 0 to 255."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


class TranslatorPipeline(DiffusionPipeline, TextualInversionLoaderMixin):  # type: ignore[misc]
    """Edits an image in one pass: ``z + strength * unet(z, 0, instruction)`` between an encoder and a decoder.

    Args:
        tasks: name -> the instruction that the translator was trained with.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        tasks: dict[str, str] | None = None,  # with a default, or diffusers would look for a folder of that name
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet)
        self.register_to_config(tasks=tasks or {})

    @torch.no_grad()
    def __call__(
        self, image: Image.Image, task: str | None = None, prompt: str | None = None, strength: float = 1.0
    ) -> Image.Image:
        """`task` is one of those it was trained for (not needed if it is one), `prompt` an instruction in your own words."""
        tasks = self.config["tasks"]
        if prompt is None and (task or (len(tasks) == 1 and next(iter(tasks)))) not in tasks:
            raise ValueError(f"task={task}: this translator knows {', '.join(tasks)}")
        instruction = prompt or tasks[task or next(iter(tasks))]
        instruction = self.maybe_convert_prompt(instruction, self.tokenizer)  # textual inversions of several vectors
        tokens = self.tokenizer(instruction, padding="max_length", truncation=True, return_tensors="pt")
        text = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state

        rgb = read_rgb(image)
        multiple = 2 ** (len(self.vae.config["block_out_channels"]) + len(self.unet.config["block_out_channels"]) - 2)
        height, width = rgb.shape[:2]
        pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1
        pixels = torch.nn.functional.pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="replicate")

        scale, shift = self.vae.config["scaling_factor"], self.vae.config["shift_factor"] or 0.0
        encoded = self.vae.encode(pixels.to(self.device, self.vae.dtype))
        z = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()
        z = (z - shift) * scale
        z = z + strength * self.unet(z.to(self.unet.dtype), 0, encoder_hidden_states=text).sample.to(z.dtype)
        edited = self.vae.decode(z / scale + shift).sample[0, :, :height, :width].float().clamp(-1, 1)
        return Image.fromarray(((edited.cpu() + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
