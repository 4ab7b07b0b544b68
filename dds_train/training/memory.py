"""Memory of a training step, measured on the meta device, whose tensors have sizes and no contents."""

import weakref
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dds_train.diffusion.families import Family
from dds_train.diffusion.quantization import store_as_float8
from dds_train.distillation.prompt import Prompt
from dds_train.translator import make_translator


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the block, while they live; `peak` is their maximum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # what is not known was made before: a view of it takes nothing
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return result

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        if storage._cdata in self._known:  # a view
            return
        self._known.add(storage._cdata)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, cdata: int, size: int) -> None:
        self._known.discard(cdata)
        self.now -= size


class _Attention(torch.autograd.Function):
    """The size of fused attention: inputs and output are kept for backward, the matrix of weights is not."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    output: Tensor = _Attention.apply(query, key, value)
    return output


def step_bytes(
    translator: Mapping[str, Any],
    denoiser: Mapping[str, Any],
    family: Family,
    *,
    size: tuple[int, int],
    prompt: Prompt,
    images: int,
    edits: int,
    evaluations: int,
    translator_dtype: torch.dtype,
    teacher_dtype: torch.dtype,
    checkpointing: bool,
    quantization: str | None = None,
) -> int:
    """Peak bytes of a training step's own tensors, beside all weights: the translator's forward, then the teacher's, then
    backward.

    Args:
        translator: its `config`.
        denoiser: configuration of the teacher's network.
        family: of the teacher.
        size: (h, w) of the latents.
        prompt: an encoded prompt, for its shapes.
        images, edits: sources in a batch, and edits of each.
        evaluations: rows of the teacher's batched call.
        quantization: of the teacher. Layers in float8 keep a copy of their weights for backward; what int8 and nf4 take for one
            layer at a time is left out.
    """
    with torch.device("meta"):
        teacher: Any = family.network.from_config(denoiser).eval().requires_grad_(False)
        teacher = torch.nn.Module.to(teacher, teacher_dtype)
        if quantization == "fp8":
            store_as_float8(teacher, teacher_dtype, [family.last_layer])
        network = make_translator(translator, lambda: teacher, family).to(translator_dtype)
        if checkpointing:
            network.enable_gradient_checkpointing()
        shape = (network.latent_channels, *size)
        z = torch.empty(images * edits, *shape, dtype=translator_dtype)

        def prompts(count: int, dtype: torch.dtype) -> Prompt:
            return (
                Prompt({name: torch.empty_like(one[:1], device="meta") for name, one in prompt.items()})
                .expand(count)
                .to(dtype=dtype)
            )

        @torch.no_grad()
        def score() -> None:
            z_t = torch.empty(evaluations, *shape, dtype=teacher_dtype)
            family.denoise(teacher, z_t, torch.zeros(evaluations), prompts(evaluations, teacher_dtype))

        # On the meta device torch takes the path that materialises attention's matrix; a GPU does not. Patched, because a
        # function mode would not reach what checkpointing computes again during backward.
        with mock.patch.object(F, "scaled_dot_product_attention", _fused), PeakMemory() as memory:
            if quantization == "fp8":  # whose layers write their weights anew at each call: not a part of the step
                with torch.no_grad():
                    network(z, prompts(len(z), translator_dtype), torch.ones(len(z), dtype=translator_dtype))
                    score()
            weights = memory.peak = memory.now
            translated = network(z, prompts(len(z), translator_dtype), torch.ones(len(z), dtype=translator_dtype))
            score()
            translated.sum().backward()
    number: int = memory.peak - weights
    return number
