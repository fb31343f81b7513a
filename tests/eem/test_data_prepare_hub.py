"""`eem data prepare` from the Hub by name, streaming or not: the real client against a stand-in for the server."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

TOKENIZER = Path(__file__).parents[2] / "tokenizer"
REPO = "HuggingFaceFW/fineweb-edu"
COMMIT = "0" * 40


def _hash(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    """The five answers that reading a data set takes; `folder` holds the files, `asked` collects the requests."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:  # noqa: N802 (the base class names it)
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if path.startswith(f"/datasets/{REPO}/resolve/"):
            self._file(self.folder / path.split("/", 6)[6])
        elif path.startswith(f"/api/datasets/{REPO}/tree/"):
            below = self.folder / "/".join(path.split("/")[7:])
            self._json([self._entry(file) for file in sorted(below.rglob("*"))] if below.is_dir() else None)
        elif path.startswith(f"/api/datasets/{REPO}"):
            files = [{"rfilename": str(file.relative_to(self.folder))} for file in self.folder.rglob("*.*")]
            self._json({"id": REPO, "sha": COMMIT, "siblings": files})
        else:
            self._json(None)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else [unquote(body.split("paths=")[1].split("&")[0])]
        self._json([self._entry(self.folder / path) for path in paths if (self.folder / path).exists()])

    def _entry(self, file: Path) -> dict[str, object]:
        path = {"path": str(file.relative_to(self.folder))}
        if file.is_dir():
            return {"type": "directory", "oid": COMMIT, "size": 0, **path}
        return {
            "type": "file",
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
            "size": file.stat().st_size,
            **path,
        }

    def _file(self, file: Path) -> None:
        data = file.read_bytes()
        first, last = 0, len(data) - 1
        if wanted := self.headers.get("Range"):
            first, last = (int(part or last) for part in wanted.removeprefix("bytes=").split("-"))
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_hash(data)}"'}
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(206 if wanted else 200, data[first : last + 1], headers)

    def _json(self, content: object) -> None:
        self._answer(200 if content is not None else 404, json.dumps(content).encode(), {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it is asked. FineWeb-Edu's sample is two files of 20 documents; another sample is one."""
    for name in ("10BT/000_00000", "10BT/001_00000", "100BT/000_00000"):
        file = tmp_path / f"hub/sample/{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [f"{name}: song {i}, and the rain it raineth." for i in range(20)]}), file)
    handler = type("Hub", (_Hub,), {"folder": tmp_path / "hub", "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.asked
        server.shutdown()


@pytest.mark.parametrize("streaming", [True, False])
def test_fineweb_edu_by_name(hub: tuple[str, list[str]], tmp_path: Path, streaming: bool) -> None:
    address, asked = hub
    here = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "*"}
    command = [sys.executable, "-m", "eem", "data", "prepare", "--data", "fineweb-edu", "--workers", "1"]
    command += ["--tokenizer", str(TOKENIZER), "--output", str(tmp_path / "rows"), "--max-length", "64"]
    command += ["--held-out", "5", *(["--streaming"] if streaming else [])]
    result = subprocess.run(command, env={**os.environ, **here}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + "\n".join(asked)
    data = load_from_disk(tmp_path / "rows")
    assert {split: len(rows) for split, rows in data.items()} == {"train": 35, "held_out": 5}
    assert any("10BT/000_00000.parquet" in request for request in asked)
    assert not any(request.startswith("GET /datasets") and "100BT" in request for request in asked)
    downloaded = list((tmp_path / "cache").rglob("*.parquet"))
    assert len(downloaded) == (0 if streaming else 2)


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path) -> None:
    here = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    command = [sys.executable, "-m", "eem", "data", "prepare", "--data", "fineweb-edu", "--streaming"]
    command += ["--tokenizer", str(TOKENIZER), "--output", str(tmp_path / "rows")]
    result = subprocess.run(command, env={**os.environ, **here}, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.strip().splitlines()[-1].startswith("error: hf://datasets")
