"""Convolution, bias and activation in one call, for inference on a CPU.

PyTorch's eager mode runs a convolution, then its activation over the result, reorders the weights
at each call, and copies the input to pad it as TensorFlow does. oneDNN can do all of it in one pass
with weights reordered once; torch's own compiler uses the same operators, but compiles first.
``tf_efficientnet_lite0`` in batches of 32 took 0.8 to 0.9 times as long on one core (torch 2.14).
"""

from __future__ import annotations

import copy
from typing import Final

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional

from bloodcells.models import Classifier

POST_OPERATIONS: Final[dict[type[nn.Module], tuple[str, list[float]]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
}
"""Activations that oneDNN applies to a convolution's result, by their names there."""


class FusedConvolution(nn.Module):
    """A convolution with its bias and activation, for inputs of one size.

    Args:
        conv: the convolution.
        input_shape: ``(N, C, H, W)`` of what it will see.
        activation: applied to the result; ``None`` for none.
    """

    def __init__(
        self, conv: nn.Conv2d, input_shape: list[int], activation: nn.Module | None
    ) -> None:
        super().__init__()
        weight, padding = conv.weight.detach(), _plain_pair(conv.padding)
        if isinstance(conv, Conv2dSame):
            weight, padding = _padded_alike(conv, input_shape)
        self.stride, self.padding = list(conv.stride), padding
        self.dilation, self.groups = list(conv.dilation), conv.groups
        self.bias = conv.bias
        self.activation, self.limits = ("none", []) if activation is None else _named(activation)
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, self.padding, self.stride, self.dilation, self.groups, input_shape
        )

    def forward(self, planes: Tensor) -> Tensor:
        """Convolve ``float32 (N, C, H, W)``."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            planes,
            self.weight,
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            self.activation,
            self.limits,
            "",
        )
        return result


def fuse_convolutions(model: Classifier, pixels_shape: tuple[int, int, int, int]) -> Classifier:
    """Return a copy of a CPU model that gives the same logits faster, for batches of one shape.

    Args:
        model: as :func:`bloodcells.models.for_inference` returns it.
        pixels_shape: ``(N, S, S, 3)`` of every batch to come.

    Returns:
        The copy, or ``model`` itself where this build of torch lacks the operators or where the
        layers are not used in the order they are listed, so that fusing would change the logits.
    """
    probe = torch.randint(
        0, 256, pixels_shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    fused = copy.deepcopy(model)
    with torch.inference_mode():
        try:
            shapes = _input_shapes(fused, probe)
            for parent in list(fused.modules()):
                _fuse_children(parent, shapes)
            same = torch.allclose(model(probe), fused(probe), rtol=1e-4, atol=1e-4)
        except (AttributeError, NotImplementedError, RuntimeError):  # private operators, or absent
            return model
    return fused if same else model


def _input_shapes(model: nn.Module, pixels: Tensor) -> dict[nn.Module, list[int]]:
    """Return the shape that each convolution sees in a forward pass."""
    shapes: dict[nn.Module, list[int]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        shapes[module] = list(inputs[0].shape)

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model(pixels)
    for hook in hooks:
        hook.remove()
    return shapes


def _fuse_children(parent: nn.Module, shapes: dict[nn.Module, list[int]]) -> None:
    """Fuse each convolution of ``parent`` with the activation listed right after it, if any."""
    children = [
        (name, child)
        for name, child in parent.named_children()
        if not isinstance(child, nn.Identity)
    ]
    followers = [*children[1:], ("", None)]
    for (name, conv), (next_name, follower) in zip(children, followers, strict=False):
        if isinstance(conv, nn.Conv2d) and conv in shapes:
            activation = follower if type(follower) in POST_OPERATIONS else None
            setattr(parent, name, FusedConvolution(conv, shapes[conv], activation))
            if activation is not None:
                setattr(parent, next_name, nn.Identity())


def _named(activation: nn.Module) -> tuple[str, list[float]]:
    return POST_OPERATIONS[type(activation)]


def _plain_pair(padding: str | tuple[int, ...]) -> list[int]:
    if isinstance(padding, str):
        raise NotImplementedError(f"padding {padding!r}")
    return list(padding)


def _padded_alike(conv: nn.Conv2d, input_shape: list[int]) -> tuple[Tensor, list[int]]:
    """Return weights and an even padding that do what TensorFlow's uneven padding does.

    TensorFlow pads one more at the end where the total is odd. A kernel that begins with a zero is
    one longer and takes that much more at the start, where it adds nothing.
    """
    totals = [
        max((-(-length // stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
        for length, stride, kernel, dilation in zip(
            input_shape[2:], conv.stride, conv.kernel_size, conv.dilation, strict=True
        )
    ]
    if any(total % 2 and step > 1 for total, step in zip(totals, conv.dilation, strict=True)):
        raise NotImplementedError("uneven padding of a dilated convolution")
    top, left = (total % 2 for total in totals)
    weight = functional.pad(conv.weight.detach(), (left, 0, top, 0))
    return weight, [(total + 1) // 2 for total in totals]
