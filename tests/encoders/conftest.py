"""A hub on loopback, as small as huggingface_hub lets it be."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest


@dataclass
class StandInHub:
    """Entries by name, each a list of commits; a commit is a dictionary of files."""

    url: str = ""
    entries: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    status: int = 200

    def commit(self, entry: str, **files: bytes) -> str:
        """Add a commit to an entry's main branch; files are named with __ for a dot."""
        commits = self.entries.setdefault(entry, [])
        content = {name.replace("__", "."): value for name, value in files.items()}
        content = {**commits[-1][1], **content} if commits else content
        digest = hashlib.sha1(repr((entry, len(commits))).encode()).hexdigest()
        commits.append((digest, content))
        return digest

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Give status, headers and body of what is at a path."""
        if self.status != 200:
            return self.status, {}, b""
        if path in self.plain:
            return 200, {}, self.plain[path]
        entry, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if entry in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if entry not in self.entries:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commits = dict(self.entries[entry]) | {"main": self.entries[entry][-1][1]}
        if revision not in commits:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit = self.entries[entry][-1][0] if revision == "main" else revision
        headers = {"X-Repo-Commit": commit}
        body = commits[revision].get(name)
        if body is None:
            return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b""
        etag = hashlib.sha256(body) if name.endswith("safetensors") else hashlib.sha1(body)
        return 200, {**headers, "ETag": f'"{etag.hexdigest()}"'}, body


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Give an empty hub that huggingface_hub takes for the real one, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    hub = StandInHub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.reply(body=False)

        def do_GET(self):
            self.reply(body=True)

        def reply(self, *, body):
            path = unquote(self.path)
            hub.asked.append(f"{self.command} {path}")
            status, headers, content = hub.answer(path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents"), raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()
