"""A hub on loopback, with the routes by which `huggingface_hub` and `datasets` fetch a repository."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "a" * 40


@contextmanager
def loopback_hub(root: Path) -> Iterator[str]:
    """Serves the models `root/ORG/NAME` and the data sets `root/datasets/ORG/NAME`.

    It gives the address for `HF_ENDPOINT`.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            if match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
                self._send_info(match[2], _folder(match[1], match[2]))
            elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/[^/]+(?:/(.+))?", path):
                self._send_tree(_folder(match[1], match[2]), match[3] or "")
            elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._send_file(_folder(match[1] or "", match[2]), match[3])
            else:
                self._send_missing("EntryNotFound")

        do_HEAD = do_GET

        def _send_info(self, name: str, folder: Path) -> None:
            if not folder.is_dir():
                return self._send_missing("RepoNotFound")
            files = [{"rfilename": str(file.relative_to(folder))} for file in _files(folder)]
            self._send_json({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": files})

        def _send_tree(self, folder: Path, path: str) -> None:
            if not folder.is_dir():
                return self._send_missing("RepoNotFound")
            if not (folder / path).is_dir():
                return self._send_missing("EntryNotFound")
            everything = "recursive=True" in self.path or "recursive=true" in self.path
            found = (folder / path).rglob("*") if everything else (folder / path).iterdir()
            rows = []
            for entry in sorted(found):
                kind, size = ("directory", 0) if entry.is_dir() else ("file", entry.stat().st_size)
                oid = _digest(entry) if entry.is_file() else "0" * 40
                rows.append({"type": kind, "oid": oid, "size": size, "path": str(entry.relative_to(folder))})
            self._send_json(rows)

        def _send_file(self, folder: Path, name: str) -> None:
            if not (folder / name).is_file():
                return self._send_missing("EntryNotFound" if folder.is_dir() else "RepoNotFound")
            self._send((folder / name).read_bytes(), {"ETag": f'"{_digest(folder / name)}"'})

        def _send_missing(self, code: str) -> None:
            self._send(b"{}", {"X-Error-Code": code}, 404)

        def _send_json(self, content: Any) -> None:
            self._send(json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Keeps requests out of the tests' output."""

    def _folder(kind: str, name: str) -> Path:
        return root / "datasets" / name if kind.startswith("datasets") else root / name

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
