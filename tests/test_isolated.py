"""An image that kills its decoder is found, and the others are decoded as always."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bloodcells.errors import ImageError
from bloodcells.imaging import Preprocess, decode
from bloodcells.isolated import IsolatedDecoder
from bloodcells.site_making import decodable
from bloodcells.synthetic import draw_cell, encode_jpeg

KILLER = b"this image kills its decoder"
HANGER = b"this image never comes back"

SITECUSTOMIZE = """
import importlib.abc, importlib.machinery, os, sys, time

class Saboteur(importlib.abc.MetaPathFinder):
    '''Plants a fault in the decoder of every process that finds this file, as a bad codec would.'''

    def find_spec(self, name, path=None, target=None):
        if name != "bloodcells.imaging":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            sound = module.decode
            def decode(data, preprocess):
                if isinstance(data, bytes) and data.startswith(b"this image kills"):
                    os.abort()
                if isinstance(data, bytes) and data.startswith(b"this image never"):
                    time.sleep(600)
                return sound(data, preprocess)
            sound_batch = module.decode_batch
            def decode_batch(images, preprocess, **more):
                for data in images:
                    decode(data, preprocess)
                return sound_batch(images, preprocess, **more)
            sound_small = module.decode_small
            def decode_small(data, size):
                if isinstance(data, bytes) and data.startswith(b"this image kills"):
                    os.abort()
                return sound_small(data, size)
            module.decode, module.decode_batch = decode, decode_batch
            module.decode_small = decode_small
        spec.loader.exec_module = exec_module
        return spec

import importlib.util
sys.meta_path.insert(0, Saboteur())
"""


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every Python process started from here on have a decoder with a fatal fault."""
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def test_it_decodes_as_the_plain_decoder_does() -> None:
    data, preprocess = encode_jpeg(draw_cell("monocyte", 1)), Preprocess(size=96, crop=0.8)
    with IsolatedDecoder() as decoder:
        found = decoder.decode(data, preprocess)
        with pytest.raises(ImageError, match="undecodable"):
            decoder.decode(b"no image", preprocess)
    assert np.array_equal(found.pixels, decode(data, preprocess).pixels)


@pytest.mark.usefixtures("sabotage")
def test_the_killer_is_named_and_the_rest_goes_on() -> None:
    good, preprocess = encode_jpeg(draw_cell("platelet", 2)), Preprocess()
    with IsolatedDecoder() as decoder:
        decoder.decode(good, preprocess)
        with pytest.raises(ImageError) as caught:
            decoder.decode(KILLER, preprocess)
        decoder.decode(good, preprocess)
    assert caught.value.reason == "decoder_crashed"
    assert "exit status -6" in caught.value.detail


@pytest.mark.usefixtures("sabotage")
def test_an_image_that_hangs_is_ended() -> None:
    with IsolatedDecoder(timeout_s=3) as decoder, pytest.raises(ImageError, match="3 s"):
        decoder.decode(HANGER, Preprocess())


@pytest.mark.usefixtures("sabotage")
def test_a_sample_is_without_what_cannot_be_decoded() -> None:
    good = [encode_jpeg(draw_cell("platelet", seed)) for seed in (3, 4)]
    assert decodable([good[0], KILLER, b"no image", good[1]], isolated=True) == good
    assert decodable([good[0], b"no image", good[1]], isolated=False) == good
