"""A model hub on loopback, with the three routes by which `huggingface_hub` fetches a repository."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


@contextmanager
def loopback_hub(root: Path) -> Iterator[str]:
    """Serves the repositories `root/ORG/NAME`; gives the address for `HF_ENDPOINT`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main|/tree/[^/]+)?", self._path()):
                self._send_api(match[1], (match[2] or "").startswith("/tree"))
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self._path()):
                self._send_file(root / match[1], match[2])
            else:
                self._send_missing("RevisionNotFound" if "/revision/" in self._path() else "EntryNotFound")

        do_HEAD = do_GET

        def _path(self) -> str:
            return self.path.partition("?")[0]

        def _send_api(self, name: str, is_tree: bool) -> None:
            if not (root / name).is_dir():
                return self._send_missing("RepoNotFound")
            files = sorted((root / name).iterdir())
            rows = [{"type": "file", "oid": _digest(f), "size": f.stat().st_size, "path": f.name} for f in files]
            info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
            self._send(json.dumps(rows if is_tree else info).encode(), {"Content-Type": "application/json"})

        def _send_file(self, folder: Path, name: str) -> None:
            if not (folder / name).is_file():
                return self._send_missing("EntryNotFound" if folder.is_dir() else "RepoNotFound")
            self._send((folder / name).read_bytes(), {"ETag": f'"{_digest(folder / name)}"'})

        def _send_missing(self, code: str) -> None:
            self._send(b"{}", {"X-Error-Code": code}, 404)

        def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Keeps requests out of the tests' output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
