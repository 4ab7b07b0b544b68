"""Tiny pipelines as single files in the layout of their authors: the inverse of what diffusers' loaders do."""

import re

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from torch import Tensor, nn

Weights = dict[str, Tensor]
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def unet(network: nn.Module) -> Weights:
    """Of Stable Diffusion 1.x and XL."""
    weights, layers = network.state_dict(), network.config["layers_per_block"]
    table = {**DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"], **DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"]}
    result = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if name in table:
            new = table[name]
        elif parts[0] == "mid_block":
            place = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[".".join(parts[1:3])]
            new = f"middle_block.{place}." + ".".join(parts[3:])
            new = renamed(new, RESNET) if parts[1] == "resnets" else new
        else:
            block, kind, layer, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
            if parts[0] == "down_blocks":
                number = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else layer)
                slot = {"resnets": "0", "attentions": "1", "downsamplers": "0.op"}[kind]
                new = f"input_blocks.{number}.{slot}.{rest.removeprefix('conv.') if kind == 'downsamplers' else rest}"
            else:
                number = block * (layers + 1) + (layers if kind == "upsamplers" else layer)
                attended = f"up_blocks.{block}.attentions.0.norm.weight" in weights
                slot = {"resnets": "0", "attentions": "1", "upsamplers": "2" if attended else "1"}[kind]
                new = f"output_blocks.{number}.{slot}.{rest}"
            new = renamed(new, RESNET) if kind == "resnets" else new
        result[f"model.diffusion_model.{new}"] = tensor
    return result


SD3 = {
    "pos_embed.proj": "x_embedder.proj", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear", "norm1.linear": "x_block.adaLN_modulation.1", "attn.to_out.0": "x_block.attn.proj",
    "norm1_context.linear": "context_block.adaLN_modulation.1", "attn.to_add_out": "context_block.attn.proj",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2", "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}  # fmt: skip
QKV = {
    "attn.to_q": ("x_block", "attn.to_k", "attn.to_v"),
    "attn.add_q_proj": ("context_block", "attn.add_k_proj", "attn.add_v_proj"),
}


def mmdit(network: nn.Module) -> Weights:
    """The transformer of Stable Diffusion 3."""
    own, last = network.state_dict(), f"transformer_blocks.{network.config['num_layers'] - 1}.norm1_context"
    result = {"pos_embed": own["pos_embed.pos_embed"]}
    for name, tensor in own.items():
        layer, end = name.rsplit(".", 1)
        block = re.match(r"transformer_blocks\.\d+\.", layer)
        prefix = block[0] if block else ""
        short = layer.removeprefix(prefix)
        if name == "pos_embed.pos_embed" or re.search(r"(to|add)_[kv](_proj)?$", short):
            continue
        if short in QKV:
            side, *others = QKV[short]
            tensor, new = torch.cat([tensor, *(own[f"{prefix}{one}.{end}"] for one in others)]), f"{side}.attn.qkv"
        else:
            new = SD3.get(short, short)
        if layer in ("norm_out.linear", f"{last}.linear"):  # shift and scale in the other order
            tensor = torch.cat(tensor.chunk(2)[::-1])
        result[f"{prefix.replace('transformer_blocks', 'joint_blocks')}{new}.{end}"] = tensor
    return {f"model.diffusion_model.{name}": tensor for name, tensor in result.items()}


def vae(network: nn.Module, prefix: str = "first_stage_model.") -> Weights:
    table, levels = DIFFUSERS_TO_LDM_MAPPING["vae"], len(network.config["block_out_channels"])
    result = {}
    for name, tensor in network.state_dict().items():
        new = table.get(name, name)
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = renamed(new, {"conv_shortcut": "nin_shortcut"})
        if "mid_block.attentions.0." in new:
            new = renamed(new.replace("mid_block.attentions.0.", "mid.attn_1."), ATTENTION)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor  # a convolution of one pixel
        result[prefix + new] = tensor
    return result


def clip(network: nn.Module, prefix: str) -> Weights:
    names = ((name.removeprefix("text_model."), tensor) for name, tensor in network.state_dict().items())
    return {f"{prefix}transformer.text_model.{name}": tensor for name, tensor in names}


def open_clip(network: nn.Module, prefix: str) -> Weights:
    """CLIP with a projection, as OpenCLIP writes it."""
    own, layers = network.state_dict(), DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"]
    result = {}
    for ours, theirs in layers.items():
        if ours in own:
            result[prefix + theirs] = own[ours].T.contiguous() if theirs == "text_projection" else own[ours]
    for name, tensor in own.items():
        if "encoder.layers" not in name or re.search(r"\.[kv]_proj\.", name):
            continue
        new = name
        if ".q_proj." in name:
            tensor = torch.cat([own[name.replace("q_proj", one)] for one in ("q_proj", "k_proj", "v_proj")])
            new = re.sub(r"\.q_proj\.(weight|bias)", r".in_proj_\1", name)
        for ours, theirs in DIFFUSERS_TO_LDM_MAPPING["openclip"]["transformer"].items():
            new = new.replace(ours, theirs)
        result[f"{prefix}transformer.{new}"] = tensor
    return result


def stable_diffusion(pipeline: object) -> Weights:
    parts = pipeline.components  # type: ignore[attr-defined]
    return {**unet(parts["unet"]), **vae(parts["vae"]), **clip(parts["text_encoder"], "cond_stage_model.")}


def sdxl(pipeline: object) -> Weights:
    parts = pipeline.components  # type: ignore[attr-defined]
    texts = (
        clip(parts["text_encoder"], "conditioner.embedders.0."),
        open_clip(parts["text_encoder_2"], "conditioner.embedders.1.model."),
    )
    return {**unet(parts["unet"]), **vae(parts["vae"]), **texts[0], **texts[1]}
