"""A local W&B server that keeps the history rows it receives: as much of the protocol as wandb needs to upload."""

import gzip
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROJECT = {"id": "p", "name": "tinylm", "entity": {"id": "e", "name": "me"}}
VIEWER = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}, "apiKeys": {"edges": []}}


class Server(http.server.ThreadingHTTPServer):
    """Holds the lines of each run's history, in the places that the client names."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, list[str]] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that close their connections early are no errors."""

    def rows(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.runs[run]]

    def store(self, run: str, place: int, lines: list[str]) -> None:
        assert place <= len(self.runs[run]), "a gap"
        self.runs[run][place : place + len(lines)] = lines

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables.get("name") or variables.get("run") or variables.get("runName") or ""
        if operation == "UpsertBucket":
            new = self.runs.setdefault(run, []) == []
            return {"upsertBucket": {"bucket": self.bucket(run), "inserted": new}}
        if operation == "RunResumeStatus":
            return {"model": {**PROJECT, "bucket": self.bucket(run) if run in self.runs else None}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/put"} for name in variables["files"]]
            return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":  # already there: nothing is to be uploaded
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if operation == "ArtifactType":
            return {"project": None}
        if operation in ("Viewer", "GetDefaultEntity"):
            return {"viewer": VIEWER}
        if run in self.runs:  # questions of wandb.Api
            lines = self.runs[run]
            first, end = int(variables.get("minStep", 0)), int(variables.get("maxStep", len(lines)))
            history = [line for line in lines if first <= json.loads(line)["_step"] < end]
            parquet = {"parquetUrls": [], "liveData": []}
            keys = {"lastStep": len(lines) - 1, "keys": {}, "sets": []}
            found = {**self.bucket(run), "history": history, "parquetHistory": parquet, "historyKeys": keys}
            return {"project": {**PROJECT, "run": found}}
        return {}

    def bucket(self, run: str) -> dict[str, Any]:
        lines = self.runs[run]
        counts = {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps(lines[-1:]), "eventsTail": "[]"}
        texts = {
            "description": "",
            "config": "{}",
            "summaryMetrics": lines[-1] if lines else "{}",
            "wandbConfig": '{"t": 1}',
        }
        names = {"id": run, "name": run, "displayName": run, "projectId": "1", "state": "running", "tags": []}
        return {**names, **counts, **tails, **texts, "project": PROJECT, "sweepName": None, "user": VIEWER}


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        content = self.content()
        if self.path.endswith("/file_stream"):
            lines = content.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            self.server.store(self.path.split("/")[-2], lines["offset"], lines["content"])
            return self.reply({})
        operation = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
        return self.reply({"data": self.server.answer(operation[1] if operation else "", content.get("variables", {}))})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def content(self) -> dict[str, Any]:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        return json.loads(gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data)

    def reply(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
