"""A LoRA translator: adapters on the teacher's own denoiser, and a head of its own."""

import copy
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from dds_train.diffusion.families import Family
from dds_train.distillation.prompt import Prompt


class LoRATranslator(nn.Module):
    """Low-rank adapters (arXiv 2106.09685) on the teacher's own denoiser, whose last layer is replaced by a zero-initialised
    head.

    Adapters and head are on only while the translator runs. At any other time the network predicts as the teacher, bit for
    bit, so that one copy of its weights serves both, and a checkpoint holds adapters and head alone. The image enters as a
    latent without noise, at timestep 0.

    Args:
        denoiser: the teacher's denoiser, frozen; it gets the adapters (in place) and stays where it is, in its own precision.
        rank: of the adapters.
        targets: names of the layers that get one, or how they end, or patterns of whole names ("blocks.*.ff"); the family's by
            default, which is attention. Stronger: "conv1", "conv2" too.
    """

    def __init__(self, denoiser: Any, family: Family, rank: int = 8, targets: Sequence[str] | None = None) -> None:
        super().__init__()
        targets = list(targets or family.lora_targets)
        if not all(isinstance(one, str) for one in targets):
            raise ValueError(f"translator.targets={targets}: must be names of layers")
        if rank < 1:
            raise ValueError(f"translator.rank={rank}: must be at least 1")
        if any(isinstance(layer, BaseTunerLayer) for layer in denoiser.modules()):
            raise ValueError("this denoiser has adapters already; load another copy")
        last_layer, dtype = denoiser.get_submodule(family.last_layer), denoiser.dtype
        known = [name for name, _ in denoiser.named_modules()]
        layers = [layer for target in targets for layer in (fnmatch.filter(known, target) if "*" in target else [target])]
        try:
            inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), denoiser)
        except ValueError as error:
            raise ValueError(f"translator.targets={targets}: the teacher's denoiser has no such layers") from error
        self.config: dict[str, Any] = {"kind": "lora", "rank": rank, "targets": targets}
        shape = family.shape(denoiser.config)
        self.latent_channels, self.text_dim, self.stride = shape.channels, shape.text_dim, shape.stride
        self._shared = _Shared(denoiser, family, dtype)
        self._shared.switch(on=False)
        adapters = {name: p for name, p in denoiser.named_parameters() if ".lora_" in name}
        for parameter in adapters.values():
            parameter.data = parameter.data.float()  # trained in full precision, whatever the teacher's
        # The same parameters, registered here: the denoiser itself stays out of state dicts, optimisers and averages.
        self.adapters = nn.ParameterDict({name.replace(".", "/"): p for name, p in adapters.items()})
        self.head = copy.deepcopy(last_layer).float().requires_grad_().train()
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, z: Tensor, prompt: Prompt, strength: Tensor) -> Tensor:
        """z [B,C,h,w] scaled latents, B prompts, strength [B] -> [B,C,h,w]."""
        change = self._shared.predict(z, prompt, self.head)
        return z + strength.view(-1, 1, 1, 1) * change.to(z.dtype)

    def plain_unet(self) -> Any:
        """A copy with the adapters merged into its weights and the head as its last layer, in full precision: the change at
        full strength is ``unet(z, 0, text)``."""
        denoiser: Any = copy.deepcopy(self._shared.denoiser).float()
        for name, layer in list(denoiser.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                denoiser.set_submodule(name, layer.get_base_layer())
        denoiser.set_submodule(self._shared.family.last_layer, copy.deepcopy(self.head))
        return denoiser

    @torch.no_grad()
    def plain_lora(self) -> dict[str, Tensor]:
        """The adapters and one more, of exact rank, that makes the last layer the head; by PEFT's names, for a scale of 1.
        With them the teacher's denoiser predicts the change at full strength at timestep 0, as `plain_unet` does."""
        name: str = self._shared.family.last_layer
        last: Any = self._shared.denoiser.get_submodule(name)
        change = self.head.weight - last.weight.float()
        identity = torch.eye(len(change), device=change.device).view(len(change), len(change), *[1] * (change.ndim - 2))
        weights = {key.replace("/", ".").replace(".default.", "."): p.detach() for key, p in self.adapters.items()}
        weights |= {f"{name}.lora_A.weight": change, f"{name}.lora_B.weight": identity}
        if self.head.bias is not None:  # PEFT's adapters have one all or none
            outputs = {key.replace(".weight", ".bias"): w.new_zeros(len(w)) for key, w in weights.items() if ".lora_B." in key}
            weights |= {**outputs, f"{name}.lora_B.bias": self.head.bias - last.bias.float()}
        return weights

    def enable_gradient_checkpointing(self) -> None:
        self._shared.enable_gradient_checkpointing()


class _Shared:
    """The denoiser with its adapters. Deliberately not an `nn.Module`, and copies share it: see `diffusion.frozen.Frozen`."""

    def __init__(self, denoiser: Any, family: Family, dtype: torch.dtype) -> None:
        self.denoiser, self.family, self.dtype = denoiser, family, dtype
        self.layers = [layer for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer)]

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

    def predict(self, z: Tensor, prompt: Prompt, head: nn.Module) -> Tensor:
        """The denoiser's output at timestep 0, with adapters and with `head` in place of its last layer, [B,C,h,w]."""

        def replace(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Any:
            return head(inputs[0].to(next(head.parameters()).dtype))

        handle = self.denoiser.get_submodule(self.family.last_layer).register_forward_hook(replace)
        t = torch.zeros(len(z), dtype=torch.long, device=z.device)
        try:
            with self.adapters(on=True):
                return self.family.denoise(self.denoiser, z.to(self.dtype), t, prompt.to(dtype=self.dtype))
        finally:
            handle.remove()

    def enable_gradient_checkpointing(self) -> None:
        def recomputed(block: Callable[..., Any], *args: Any) -> Any:
            # The second pass comes during backward: with the adapters as they are now, translator's or teacher's.
            on = self.on

            def run(*inputs: Any) -> Any:
                with self.adapters(on):
                    return block(*inputs)

            return checkpoint(run, *args, use_reentrant=False)

        self.denoiser.enable_gradient_checkpointing(recomputed)
