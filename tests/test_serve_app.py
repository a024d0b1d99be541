"""The endpoint as its clients meet it: a real server, real sockets, and people who mean no good."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from bloodcells.bundle import ModelBundle, shipped_bundle_uri
from bloodcells.cells import CLASSES
from bloodcells.imaging import content_hash
from bloodcells.loading import load_shard
from bloodcells.records import Shard
from bloodcells.scoring import Scorer, score_loaded
from bloodcells.stores import open_store, plan_source
from bloodcells.synthetic import BALANCED, draw_slide
from tests.serving import Served, served

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served"), "--replicas", "1") as running:
        yield running


@pytest.fixture(scope="module")
def client(endpoint: Served) -> Iterator[httpx.Client]:
    with endpoint.client() as client:
        yield client


@pytest.fixture(scope="module")
def cells() -> list[bytes]:
    return [cell.data for cell in draw_slide(BALANCED, 40, seed=3)]


def classified(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    images: list[dict[str, Any]] = response.json()["images"]
    return images


def error(response: httpx.Response) -> tuple[int, str]:
    told = response.json()["error"]
    assert set(told) == {"code", "message", "request_id"}
    assert told["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text and "/bloodcells" not in told["message"]
    return response.status_code, told["code"]


def test_it_scores_as_bulk_scoring_does(
    client: httpx.Client, cells: list[bytes], tmp_path: Path
) -> None:
    for number, data in enumerate(cells):
        (tmp_path / f"cell-{number:02d}.jpg").write_bytes(data)
    (source,) = open_store(str(tmp_path)).sources()
    (shard,) = [
        item
        for item in plan_source(source, shard_size=100, slide_pattern=None)
        if isinstance(item, Shard)
    ]
    bundle = ModelBundle.load(shipped_bundle_uri())
    bulk = score_loaded(load_shard(shard, bundle.preprocess), Scorer(bundle)).to_pylist()

    files = [("image", (f"cell-{n:02d}.jpg", data)) for n, data in enumerate(cells)]
    together = client.post("/v1/classify", files=files)
    alone = client.post("/v1/classify", content=cells[7], headers={"Content-Type": "image/jpeg"})
    assert together.json()["bundle_digest"] == bundle.digest
    for answer, row, data in zip(classified(together), bulk, cells, strict=True):
        assert answer["name"] == row["image_uri"].rpartition("/")[2]
        assert answer["content_hash"] == row["content_hash"] == content_hash(data)
        given = np.array([answer["probabilities"][name] for name in CLASSES])
        expected = np.array([row[f"prob_{name}"] for name in CLASSES])
        np.testing.assert_allclose(given, expected, atol=1e-5, rtol=0)
        if abs(np.diff(np.sort(expected)[-2:])[0]) > 1e-4:
            assert answer["predicted_class"] == row["predicted_class"]
        for name in ("out_of_domain", "needs_review", "width_px", "height_px"):
            assert answer[name] == row[name]
    (single,) = classified(alone)
    assert single["content_hash"] == bulk[7]["content_hash"] and single["name"] is None


def test_each_image_has_its_own_error(client: httpx.Client, cells: list[bytes]) -> None:
    files = [("a", ("1.jpg", cells[0])), ("a", ("<img src=x>", b"text")), ("a", ("3", b""))]
    first, second, third = classified(client.post("/v1/classify", files=files))
    assert first["predicted_class"] in CLASSES
    assert second == {"name": "<img src=x>", "error": second["error"]}
    assert second["error"]["code"] == third["error"]["code"] == "undecodable"


def test_an_overlay_is_a_picture(client: httpx.Client, cells: list[bytes]) -> None:
    (image,) = classified(client.post("/v1/classify?explain=true", content=cells[0]))
    head, _, data = image["overlay"].partition(",")
    assert head == "data:image/png;base64"
    drawn = Image.open(io.BytesIO(base64.b64decode(data)))
    assert drawn.size == (128, 128) and len(set(drawn.get_flattened_data())) > 100


def test_a_request_that_cannot_work_says_so(client: httpx.Client, cells: list[bytes]) -> None:
    def post(**given: Any) -> tuple[int, str]:
        return error(client.post("/v1/classify", **given))

    assert post(content=b"") == (422, "no_images")
    assert post(content=b"no image") == (422, "undecodable")
    assert post(content=cells[0][:2000]) == (422, "undecodable")
    assert post(json={"image": "x"}) == (415, "unsupported_media_type")
    assert post(content=b"x", headers={"Content-Type": "text/html"})[0] == 415
    assert post(files=[("a", ("x", b"y"))], params={"site": "elsewhere"}) == (404, "unknown_site")
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a.jpg"\r\n\r\n'
    for body in (b"", b"junk", part, part + cells[0], part + cells[0] + b"\r\n--b\r\n"):
        assert post(content=body, headers=multipart) == (400, "bad_multipart"), body[:40]
    no_boundary = {"Content-Type": "multipart/form-data"}
    assert post(content=part, headers=no_boundary) == (400, "bad_multipart")
    field = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n'
    assert post(content=field, headers=multipart) == (422, "no_images")


def test_too_much_is_too_much(client: httpx.Client, cells: list[bytes]) -> None:
    tiny = [("a", (f"{n}.jpg", b"x")) for n in range(10_000)]
    assert error(client.post("/v1/classify", files=tiny)) == (413, "too_many_images")
    some = [("a", (f"{n}.jpg", cells[0])) for n in range(17)]
    explained = client.post("/v1/classify", files=some, params={"explain": "true"})
    assert error(explained) == (413, "too_many_images")
    large = b"\xff\xd8" + bytes(21 * 2**20)
    assert error(client.post("/v1/classify", content=large)) == (413, "image_too_large")
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    assert error(client.post("/v1/classify", content=bomb.getvalue())) == (413, "image_too_large")


def test_a_gigabyte_is_turned_away_at_once(endpoint: Served, cells: list[bytes]) -> None:
    before = [process.memory_info().rss for process in endpoint.children("ray::ServeReplica")]
    for stated in (True, False):
        began = time.monotonic()
        status = send_endlessly(endpoint, size=2**30, stated=stated)
        assert status in (413, None), status  # None: it hung up before everything was sent
        assert time.monotonic() - began < 20
    after = [process.memory_info().rss for process in endpoint.children("ray::ServeReplica")]
    assert max(after) - max(before) < 400 * 2**20
    with endpoint.client() as client:
        classified(client.post("/v1/classify", content=cells[0]))


def send_endlessly(endpoint: Served, *, size: int, stated: bool) -> int | None:
    """Send a body of ``size`` bytes until an answer comes; returns its status."""
    length = f"Content-Length: {size}" if stated else "Transfer-Encoding: chunked"
    piece = bytes(2**20)
    framed = piece if stated else b"100000\r\n" + piece + b"\r\n"
    with connection(endpoint) as sock:
        sock.sendall(head(endpoint, length))
        sock.settimeout(0.01)
        for _ in range(size // len(piece)):
            try:
                answer = sock.recv(4096)
                return int(answer.split()[1]) if answer else None
            except TimeoutError:
                pass
            except OSError:
                return None
            try:
                sock.settimeout(10)
                sock.sendall(framed)
                sock.settimeout(0.01)
            except OSError:
                return None
    raise AssertionError("it took a gigabyte and said nothing")


def test_slow_clients_hold_up_nobody(endpoint: Served, cells: list[bytes]) -> None:
    """Two hundred that dribble headers, as many that dribble bodies, and one that does not."""
    dribbling = [connection(endpoint) for _ in range(400)]
    try:
        for number, sock in enumerate(dribbling):
            if number % 2:
                sock.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nX-Slow")
            else:
                sock.sendall(head(endpoint, "Content-Length: 20000") + b"\xff\xd8")
        with endpoint.client() as client:
            for data in cells[:10]:
                began = time.monotonic()
                classified(client.post("/v1/classify", content=data))
                assert time.monotonic() - began < 5
        with pytest.raises(TimeoutError):
            dribbling[0].settimeout(0.5)
            dribbling[0].recv(1)
        dribbling[0].settimeout(60)  # the body's 30 s
        assert b" 408 " in dribbling[0].recv(4096).split(b"\r\n")[0]
    finally:
        for sock in dribbling:
            sock.close()


def connection(endpoint: Served) -> socket.socket:
    where = urlsplit(endpoint.url)
    assert where.hostname and where.port
    return socket.create_connection((where.hostname, where.port), timeout=10)


def head(endpoint: Served, length: str) -> bytes:
    return (
        f"POST /v1/classify HTTP/1.1\r\nHost: {urlsplit(endpoint.url).netloc}\r\n"
        f"Authorization: Bearer {endpoint.token}\r\nContent-Type: image/jpeg\r\n{length}\r\n\r\n"
    ).encode()


def test_the_doors_are_shut(endpoint: Served, cells: list[bytes]) -> None:
    with httpx.Client(base_url=endpoint.url, trust_env=False) as nobody:
        for method, path in (("POST", "/v1/classify"), ("GET", "/v1/model"), ("GET", "/metrics")):
            assert error(nobody.request(method, path)) == (401, "unauthorised")
        for path in ("/healthz", "/readyz", "/openapi.json"):
            assert nobody.get(path).status_code == 200
        assert error(nobody.post("/v1/session", json={"token": "wrong"}))[0] == 401
        assert error(nobody.get("/../../etc/passwd"))[0] == 404
        assert error(nobody.get("/docs"))[0] == 404


def test_the_page_signs_in_with_a_cookie(endpoint: Served, cells: list[bytes]) -> None:
    with httpx.Client(base_url=endpoint.url, trust_env=False) as browser:
        signed_in = browser.post("/v1/session", json={"token": endpoint.token})
        assert signed_in.status_code == 204
        cookie = signed_in.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert endpoint.token.lower() not in cookie
        assert browser.get("/v1/session").json()["name"] == "anna"
        own = {"Origin": endpoint.url}
        classified(browser.post("/v1/classify", content=cells[0], headers=own))
        other = {"Origin": "http://evil.example"}
        refused = browser.post("/v1/classify", content=cells[0], headers=other)
        assert error(refused) == (403, "foreign_origin")
        assert browser.delete("/v1/session").status_code == 204
        assert error(browser.get("/v1/session"))[0] == 401


def test_every_answer_carries_the_headers(client: httpx.Client) -> None:
    for response in (client.get("/v1/model"), client.get("/nothing"), client.post("/v1/classify")):
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-request-id"]


def test_the_model_says_what_it_is(client: httpx.Client) -> None:
    model = client.get("/v1/model").json()
    assert tuple(model["classes"]) == CLASSES
    assert model["bundle_digest"] == ModelBundle.load(shipped_bundle_uri()).digest
    assert model["card"].startswith("# ")


def test_prometheus_hears_of_every_image(client: httpx.Client, cells: list[bytes]) -> None:
    classified(client.post("/v1/classify", content=cells[0]))
    deadline = time.monotonic() + 40  # Ray exports now and then
    while True:
        text = client.get("/metrics").text
        found = re.search(
            r'^ray_bloodcells_images_total\{.*outcome="scored".*\} (\S+)$', text, re.M
        )
        if found and float(found[1]) >= 1:
            break
        assert time.monotonic() < deadline, text[:2000]
        time.sleep(1)
    families = re.findall(r"^# TYPE (\S+) ", text, re.M)
    assert len(families) == len(set(families)), "a family stands there twice"


def test_the_log_has_a_line_a_request_and_no_secret(
    endpoint: Served, client: httpx.Client, cells: list[bytes]
) -> None:
    forged = client.get(
        '/v1/%22}%0A{"request_id":"x","person":"root', params={"token": "query-secret"}
    )
    ours = client.post("/v1/classify", content=cells[0])
    wanted = ours.headers["x-request-id"]
    text = ""
    deadline = time.monotonic() + 30
    while wanted not in text and time.monotonic() < deadline:
        for _ in range(110):  # the log is written a hundred lines at a time
            client.get("/v1/session")
        text = "".join(path.read_text() for path in replica_logs(endpoint))
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [json.loads(e["message"]) for e in lines if e["message"].startswith('{"request_id')]
    (mine,) = [request for request in requests if request["request_id"] == wanted]
    assert (mine["person"], mine["status"], mine["path"]) == ("anna", 200, "/v1/classify")
    assert forged.headers["x-request-id"] in text
    assert not any(request.get("person") == "root" for request in requests)
    assert endpoint.token not in text and "query-secret" not in text


def replica_logs(endpoint: Served) -> list[Path]:
    """Return the logs of the endpoint's replicas, in the folder of its Ray session."""
    (raylet,) = endpoint.children("raylet")[:1]
    arguments = " ".join(raylet.cmdline())
    found = re.search(r"(/\S*?/session_[0-9_-]+)", arguments)
    assert found, arguments
    return list(Path(found[1], "logs", "serve").glob("replica_bloodcells_Endpoint*.log"))


def test_nothing_that_its_own_description_allows_breaks_it(
    endpoint: Served, tmp_path: Path
) -> None:
    ran = subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "run", f"{endpoint.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {endpoint.token}"),
            *("--checks", "not_a_server_error", "--max-examples", "25", "--seed", "4"),
        ],
        cwd=tmp_path,  # it leaves notes
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert re.search(r"\d+ generated, \d+ passed", ran.stdout)


def examples(language: str) -> list[str]:
    text = (ROOT / "docs" / "api.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("language", ["sh", "python"])
def test_the_documented_examples_run(
    language: str, endpoint: Served, cells: list[bytes], tmp_path: Path
) -> None:
    for number in (1, 2):
        (tmp_path / f"cell-{number}.jpg").write_bytes(cells[number])
    (tmp_path / "notes.txt").write_text("no image")
    variables = {**os.environ, "URL": endpoint.url, "TOKEN": endpoint.token}
    assert examples(language)
    for example in examples(language):
        shell = ["bash", "-euc", example] if language == "sh" else [sys.executable, "-c", example]
        ran = subprocess.run(
            shell, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        assert '"error"' not in ran.stdout.replace('"error":{"code":"undecodable"', "")
        assert ran.stdout
