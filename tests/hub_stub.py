"""A hub in memory: as much of the API as creating a repository, committing to it and downloading from it take.

As the hub does, it takes ``*.bin`` by the protocol of LFS and other files within the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_tokenofthetest"


@dataclass
class Hub:
    """What the hub holds: files of each commit, by repository and commit, and where each branch is."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256, as LFS takes them
    fails: dict[str, int] = field(default_factory=dict)  # the status of reading what has this in its path
    stalls: dict[str, int] = field(default_factory=dict)  # bytes of a file after which no more comes
    ranges: list[tuple[str, str]] = field(default_factory=list)  # files of which a part was asked for, and which part
    ended: threading.Event = field(default_factory=threading.Event)

    def create(self, repo, *, private):
        """Like a new repository of the hub's: it has one file already."""
        self.private[repo], self.branches[repo], self.commits[repo] = private, {}, {}
        self.commit(repo, "main", {".gitattributes": b"*.bin filter=lfs\n"})

    def commit(self, repo, branch, files):
        """Add files to a branch and return the commit."""
        at = self.branches[repo].get(branch)
        content = {**(self.commits[repo][at] if at else {}), **files}
        sha = hashlib.sha1(f"{len(self.commits[repo])} {sorted(content)}".encode()).hexdigest()
        self.commits[repo][sha], self.branches[repo][branch] = content, sha
        return sha

    def at(self, repo, revision):
        """The commit that a branch or a commit names."""
        sha = self.branches.get(repo, {}).get(revision, revision)
        return sha if sha in self.commits.get(repo, {}) else None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args):
        pass

    def _json(self, data, status=200, **headers):
        self._send(json.dumps(data).encode(), status, {"Content-Type": "application/json", **headers})

    def _send(self, body, status=200, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code):
        self._json({"error": code}, 404, **{"X-Error-Code": code})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
            return
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if repo in self.hub.commits:
                self._json({"error": "exists", "url": f"{self.hub.url}/{repo}"}, 409)
                return
            self.hub.create(repo, private=bool(asked.get("private")) or asked.get("visibility") == "private")
            self._json({"url": f"{self.hub.url}/{repo}"})
            return
        if parts == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
            return
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
            return
        repo, verb, branch = "/".join(parts[2:4]), parts[4], parts[5]
        if verb == "branch":
            self.hub.branches[repo].setdefault(branch, self.hub.branches[repo]["main"])
            self._json({})
        elif verb == "preupload":
            files = [
                {"path": name, "uploadMode": "lfs" if name.endswith(".bin") else "regular", "shouldIgnore": False}
                for name in (one["path"] for one in json.loads(body)["files"])
            ]
            self._json({"files": files})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            added = {
                one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
            }
            large = [one["value"] for one in lines if one["key"] == "lfsFile"]
            added |= {one["path"]: self.hub.large[one["oid"]] for one in large}
            self.hub.messages.append(lines[0]["value"]["summary"])
            sha = self.hub.commit(repo, branch, added)
            self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/lfs/{hashlib.sha256(content).hexdigest()}"
        self.hub.large[self.path.rpartition("/")[2]] = content
        self._json({})

    def do_GET(self):
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        is_api = parts[0] == "api"
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        rest = parts[4:] if is_api else parts[2:]
        for part, status in self.hub.fails.items():
            if part in self.path:
                self._json({"error": "no"}, status)
                return
        private = self.hub.private.get(repo)
        if private is None or (private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._missing("RepoNotFound")
            return
        sha = self.hub.at(repo, rest[1] if len(rest) > 1 else "main")
        if sha is None:
            self._missing("RevisionNotFound")
            return
        files = self.hub.commits[repo][sha]
        if is_api and rest[:1] == ["tree"]:
            self._json(
                [
                    {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for n, c in files.items()
                ]
            )
        elif is_api:
            names = [{"rfilename": name} for name in files]
            self._json({"id": repo, "modelId": repo, "sha": sha, "private": private, "siblings": names})
        elif (content := files.get("/".join(rest[2:]))) is None:
            self._missing("EntryNotFound")
        else:
            self._file(
                "/".join(rest[2:]), content, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            )

    def _file(self, name, content, headers):
        status = 200
        if asked := self.headers.get("Range"):
            self.hub.ranges.append((name, asked))
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content = content[start:]
        if name not in self.hub.stalls:
            self._send(content, status, headers)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.hub.stalls[name]])
        self.hub.ended.wait(60)

    do_HEAD = do_GET


@contextmanager
def hub():
    """A hub that runs until the block ends."""
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": state}))
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
