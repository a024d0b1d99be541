"""The layers of Keras' EfficientNetV2-M in Keras' order, each with its place in timm's model.

The published method says which layers it trains by counting Keras layers from the end. Knows
nothing of parameters, of training, or of Keras itself, which is not needed.

Source: ``keras.applications.EfficientNetV2M(include_top=False, pooling="avg").layers``, read from
Keras 3.15.1 (740 layers without the pooling); ``tests/test_keras_layers.py`` holds the digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

CONVOLUTIONS: Final = ("Conv2D", "DepthwiseConv2D")
BATCH_NORM: Final = "BatchNormalization"


@dataclass(frozen=True, kw_only=True)
class KerasLayer:
    """One entry of ``model.layers``.

    Attributes:
        name: as Keras calls it, ``block6n_dwconv2``.
        kind: its class, ``DepthwiseConv2D``.
        timm_name: the module of timm's ``tf_efficientnetv2_m`` with the same weights,
            ``blocks.5.13.conv_dw``; empty for a layer without weights.
    """

    name: str
    kind: str
    timm_name: str = ""


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """Blocks of one make.

    Attributes:
        num_blocks: how many; the first changes the width or the stride, unless ``first_adds``.
        fused: one full convolution in place of a pointwise and a depthwise one.
        expands: whether a block widens first.
        first_adds: whether the first block, too, adds its input to its result.
    """

    num_blocks: int
    fused: bool
    expands: bool = True
    first_adds: bool = False


_STAGES: Final = (
    _Stage(num_blocks=3, fused=True, expands=False, first_adds=True),
    _Stage(num_blocks=5, fused=True),
    _Stage(num_blocks=5, fused=True),
    _Stage(num_blocks=7, fused=False),
    _Stage(num_blocks=14, fused=False),
    _Stage(num_blocks=18, fused=False),
    _Stage(num_blocks=5, fused=False),
)
"""Source: Tan & Le 2021, EfficientNetV2, arXiv:2104.00298, and ``efficientnetv2_m`` of its code."""


def keras_layers() -> tuple[KerasLayer, ...]:
    """Return the 741 layers, from the input on."""
    return (
        KerasLayer(name="input_layer", kind="InputLayer"),
        KerasLayer(name="rescaling", kind="Rescaling"),
        *_convolved("stem_", "conv_stem", "bn1"),
        KerasLayer(name="stem_activation", kind="Activation"),
        *(layer for number, stage in enumerate(_STAGES) for layer in _of_stage(number, stage)),
        *_convolved("top_", "conv_head", "bn2"),
        KerasLayer(name="top_activation", kind="Activation"),
        KerasLayer(name="avg_pool", kind="GlobalAveragePooling2D"),
    )


def _of_stage(number: int, stage: _Stage) -> Iterator[KerasLayer]:
    for block in range(stage.num_blocks):
        name = f"block{number + 1}{chr(ord('a') + block)}_"
        place = f"blocks.{number}.{block}."
        if not stage.fused:
            yield from _separable(name, place)
        elif stage.expands:
            yield from _convolved(f"{name}expand_", f"{place}conv_exp", f"{place}bn1")
            yield KerasLayer(name=f"{name}expand_activation", kind="Activation")
            yield from _convolved(f"{name}project_", f"{place}conv_pwl", f"{place}bn2")
        else:
            yield from _convolved(f"{name}project_", f"{place}conv", f"{place}bn1")
            yield KerasLayer(name=f"{name}project_activation", kind="Activation")
        if block > 0 or stage.first_adds:
            if (number, block) != (0, 0):  # dropped with probability 0, so Keras makes no layer
                yield KerasLayer(name=f"{name}drop", kind="Dropout")
            yield KerasLayer(name=f"{name}add", kind="Add")


def _separable(name: str, place: str) -> Iterator[KerasLayer]:
    """A block of a pointwise, a depthwise, and a pointwise convolution, with squeeze-excite."""
    yield from _convolved(f"{name}expand_", f"{place}conv_pw", f"{place}bn1")
    yield KerasLayer(name=f"{name}expand_activation", kind="Activation")
    yield KerasLayer(name=f"{name}dwconv2", kind="DepthwiseConv2D", timm_name=f"{place}conv_dw")
    yield KerasLayer(name=f"{name}bn", kind=BATCH_NORM, timm_name=f"{place}bn2")
    yield KerasLayer(name=f"{name}activation", kind="Activation")
    yield KerasLayer(name=f"{name}se_squeeze", kind="GlobalAveragePooling2D")
    yield KerasLayer(name=f"{name}se_reshape", kind="Reshape")
    for part in ("reduce", "expand"):
        yield KerasLayer(name=f"{name}se_{part}", kind="Conv2D", timm_name=f"{place}se.conv_{part}")
    yield KerasLayer(name=f"{name}se_excite", kind="Multiply")
    yield from _convolved(f"{name}project_", f"{place}conv_pwl", f"{place}bn3")


def _convolved(name: str, conv: str, norm: str) -> Iterator[KerasLayer]:
    """A convolution and the batch norm of its result."""
    yield KerasLayer(name=f"{name}conv", kind="Conv2D", timm_name=conv)
    yield KerasLayer(name=f"{name}bn", kind=BATCH_NORM, timm_name=norm)
