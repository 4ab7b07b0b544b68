"""Teacher and translator on one UNet: the translator is adapters on the teacher's weights, and a head of its own."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class LoRATranslator(nn.Module):
    """Low-rank adapters (arXiv 2106.09685) on the teacher's own UNet, read out by a head that starts at zero.

    The adapters are on only while the translator runs. At any other time the UNet answers as the teacher, bit for bit, so
    one copy of its weights serves both, and a checkpoint holds adapters and head alone. The image enters as a latent
    without noise, at step 0.

    Args:
        unet: the teacher's, frozen; it gets the adapters (in place) and stays where it is, in its own precision.
        rank: of the adapters.
        targets: names of the layers that get one; attention's by default. More width: add "conv1", "conv2".
    """

    def __init__(self, unet: UNet2DConditionModel, rank: int = 8, targets: Sequence[str] = ATTENTION) -> None:
        super().__init__()
        if any(isinstance(layer, BaseTunerLayer) for layer in unet.modules()):
            raise ValueError("this UNet has adapters already; load it anew for another translator")
        if rank < 1:
            raise ValueError(f"translator.rank={rank}: must be at least 1")
        try:
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)), unet)
        except ValueError as error:
            raise ValueError(f"translator.targets={list(targets)}: the teacher's UNet has no such layers") from error
        self.config: dict[str, Any] = {"kind": "lora", "rank": rank, "targets": list(targets)}
        self.latent_channels, self.text_dim = unet.config.in_channels, unet.config.cross_attention_dim
        self.stride = 2 ** (len(unet.config.block_out_channels) - 1)
        self._shared = _Shared(unet)
        self._shared.switch(on=False)
        adapters = {name: p for name, p in unet.named_parameters() if ".lora_" in name}
        for parameter in adapters.values():
            parameter.data = parameter.data.float()  # trained in full precision, whatever the teacher's
        # The same parameters, registered here: the UNet itself stays out of state dicts, optimisers and averages.
        self.adapters = nn.ParameterDict({name.replace(".", "/"): p for name, p in adapters.items()})
        features = unet.conv_out
        self.head = nn.Conv2d(features.in_channels, unet.config.in_channels, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, text: Tensor, strength: Tensor) -> Tensor:
        """z [B,C,h,w] scaled latents, text [B,L,D], strength [B] -> [B,C,h,w]."""
        features = self._shared.features(z, text).to(self.head.weight.dtype)
        return z + strength.view(-1, 1, 1, 1) * self.head(features).to(z.dtype)

    def plain_unet(self) -> UNet2DConditionModel:
        """A copy with the adapters merged into its weights and the head as its last layer, in full precision: the change at
        full strength is ``unet(z, 0, text)``."""
        unet: Any = copy.deepcopy(self._shared.unet).float()
        for name, layer in list(unet.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent, _, own = name.rpartition(".")
                setattr(unet.get_submodule(parent), own, layer.get_base_layer())
        unet.conv_out = copy.deepcopy(self.head)
        return unet

    def enable_gradient_checkpointing(self) -> None:
        self._shared.enable_gradient_checkpointing()


class _Shared:
    """The UNet with its adapters. Deliberately not an `nn.Module`, and copies share it: see `frozen.base.Frozen`."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet: Any = unet
        self.layers = [layer for layer in unet.modules() if isinstance(layer, BaseTunerLayer)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def switch(self, on: bool) -> None:
        self.on = on
        # Not peft's own switch: it also turns requires_grad off, and then backward, later, drops the gradients.
        for layer in self.layers:
            layer._disable_adapters = not on

    @contextmanager
    def adapters(self, on: bool) -> Iterator[None]:
        before = self.on
        self.switch(on)
        try:
            yield
        finally:
            self.switch(before)

    def features(self, z: Tensor, text: Tensor) -> Tensor:
        """What the UNet's last layer gets to see, [B,width,h,w]; its own output is not used."""
        seen: list[Tensor] = []
        handle = self.unet.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        step = torch.zeros(len(z), dtype=torch.long, device=z.device)
        try:
            with self.adapters(on=True):
                self.unet(z.to(self.unet.dtype), step, encoder_hidden_states=text.to(self.unet.dtype))
        finally:
            handle.remove()
        return seen[0]

    def enable_gradient_checkpointing(self) -> None:
        def recomputed(block: Callable[..., Any], *args: Any) -> Any:
            # The second pass comes during backward: with the adapters as they are now, translator's or teacher's.
            on = self.on

            def run(*inputs: Any) -> Any:
                with self.adapters(on):
                    return block(*inputs)

            return checkpoint(run, *args, use_reentrant=False)

        self.unet.enable_gradient_checkpointing(recomputed)
