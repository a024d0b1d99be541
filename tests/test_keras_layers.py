"""The list of Keras' layers is Keras', and each stands for the tensors of timm that it should."""

from __future__ import annotations

from hashlib import sha256

import torch

from bloodcells.models import create_model
from bloodcells.training.keras_layers import CONVOLUTIONS, keras_layers

KERAS_DIGEST = "f57a9c2ac9fb8e9b5c6b3aff1e5e4ec59c6861f9820e0ffddf9c75cc523e04a9"
"""Of 741 lines of name, class and number of weights, made with Keras 3.15.1:

    pip install keras jax
    KERAS_BACKEND=jax python -c '
    import hashlib, keras
    model = keras.applications.EfficientNetV2M(
        include_top=False, weights=None, pooling="avg", input_shape=(96, 96, 3))
    lines = [f"{l.name}\\t{type(l).__name__}\\t{l.count_params()}" for l in model.layers]
    print(len(lines), hashlib.sha256("\\n".join(lines).encode()).hexdigest())'

There, too, the 157 batch norms gave what timm's gave, within 1e-3 of the largest value (three that
were looked at within 1e-6), after weights were copied by this list; that needs Keras, so it is not
repeated here.
"""


def test_the_list_is_keras_and_the_places_have_as_many_weights() -> None:
    with torch.device("meta"):
        state = create_model("efficientnetv2_m").backbone.state_dict()
    lines = [
        f"{layer.name}\t{layer.kind}\t"
        + str(
            sum(
                tensor.numel()
                for name, tensor in state.items()
                if name.rpartition(".")[0] == layer.timm_name and "num_batches" not in name
            )
        )
        for layer in keras_layers()
    ]
    assert len(lines) == 741
    assert sha256("\n".join(lines).encode()).hexdigest() == KERAS_DIGEST


def test_every_tensor_but_the_dense_layers_has_one_place() -> None:
    with torch.device("meta"):
        state = create_model("efficientnetv2_m").backbone.state_dict()
    places = [layer.timm_name for layer in keras_layers() if layer.timm_name]
    assert len(places) == len(set(places))
    assert {n.rpartition(".")[0] for n in state} - set(places) == {"classifier"}


def test_whether_the_pooling_is_counted_moves_no_convolution() -> None:
    """Keras lists 740 layers without it; the source says 741 and not which."""
    layers = keras_layers()
    for count in (150, 400):
        with_pooling, without = layers[-count:], layers[:-1][-count:]
        assert [layer for layer in with_pooling if layer.kind in CONVOLUTIONS] == [
            layer for layer in without if layer.kind in CONVOLUTIONS
        ]
