"""A known gradient as a loss to call backward on."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Distilled:
    """A loss to call backward on, and the gradient it carries. The value of the loss is meaningless: log `grad_rms`."""

    loss: Tensor  # [], for backward only
    grad: Tensor  # [B,C,h,w], G: the negative of the edit direction

    @property
    def grad_rms(self) -> Tensor:
        """Root mean square of G, []."""
        return self.grad.square().mean().sqrt()


def inject(z: Tensor, grad: Tensor) -> Distilled:
    """A loss whose gradient with respect to each image of z [B,C,h,w] is `grad` divided by B."""
    # Linear, not 0.5 mse(z, z - grad): no cancellation in half precision.
    loss = (z * grad.detach()).sum(dim=(1, 2, 3)).mean()
    return Distilled(loss=loss, grad=grad)
