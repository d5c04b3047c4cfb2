"""A model hub on this machine, as far as huggingface_hub's client asks for it when it uploads and downloads files."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40
Files = dict[str, bytes]


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Files]

    def log_message(self, *_: object) -> None:
        """Keep standard error clean."""

    def _send(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[-2:] == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self._send_json({"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name})
        elif "preupload" in parts:
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            self._send_json({"files": [one | {"shouldIgnore": False} for one in files]})
        elif "commit" in parts:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories["/".join(parts[2:4])][line["value"]["path"]] = content
            self._send_json(
                {"commitUrl": f"http://{self.headers['Host']}/{'/'.join(parts[2:4])}", "commitOid": COMMIT}
            )
        else:
            self._send_json({})

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            name = "/".join(parts[2:4])
            if name not in self.repositories:
                self._send(404, X_Error_Code="RepoNotFound")
                return
            if "tree" in parts:
                found = self.repositories[name].items()
                self._send_json([{"type": "file", "path": p, "oid": _digest(c), "size": len(c)} for p, c in found])
                return
            files = [{"rfilename": path} for path in self.repositories[name]]
            self._send_json(
                {"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "private": False, "tags": []}
            )
            return
        name, path = "/".join(parts[:2]), "/".join(parts[4:])
        content = self.repositories.get(name, {}).get(path)
        if content is None:
            self._send(404, X_Error_Code="EntryNotFound" if name in self.repositories else "RepoNotFound")
        else:
            self._send(200, content, X_Repo_Commit=COMMIT, ETag=f'"{_digest(content)}"')

    do_HEAD = do_GET


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:40]


@contextmanager
def fake_hub() -> Iterator[tuple[str, dict[str, Files]]]:
    """Serve a hub; its address, and the content of its repositories by name."""
    repositories: dict[str, Files] = {}
    handler = type("Handler", (_Handler,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
        server.server_close()
