"""A W&B server on the loopback that keeps what is sent: the GraphQL and file-stream calls of runs and reports.

It answers what wandb 0.31 and wandb-workspaces 0.4 ask and keeps of each run what a real one would show. Lines of a
run's history are put at the offset that the client names, as a real server does, so that a run that was sent twice
shows whether its rows were doubled. `state` says how it behaves: `up`, `refuse` (503 to everything), `hang` (takes
calls and never answers), `down` (drops every connection).
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a" * 40
ENTITY = "team"


@dataclass
class Kept:
    """One run as the server has it."""

    facts: dict[str, Any] = field(default_factory=dict)  # of the latest UpsertBucket
    lines: dict[str, list[str]] = field(default_factory=dict)  # of the streamed files
    exit: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows as they were logged, without what W&B adds of its own."""
        rows = [json.loads(line) for line in self.lines.get("wandb-history.jsonl", ())]
        return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]

    @property
    def summary(self) -> dict[str, Any]:
        last = self.lines.get("wandb-summary.json", ["{}"])[-1]
        found: dict[str, Any] = json.loads(last)
        return found

    @property
    def config(self) -> dict[str, Any]:
        return {k: v["value"] for k, v in json.loads(self.facts["config"]).items() if k != "_wandb"}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What define_metric said."""
        made: list[dict[str, Any]] = json.loads(self.facts["config"])["_wandb"]["value"].get("m", [])
        return made


@dataclass
class Server:
    """What was sent, and how the server behaves."""

    url: str
    state: str = "up"
    runs: dict[str, Kept] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)  # path of an upload -> content
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)  # id -> input, files, committed
    reports: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # operations that there is no answer to
    lock: threading.Lock = field(default_factory=threading.Lock)
    gone: threading.Event = field(default_factory=threading.Event)
    then: tuple[str, str] | None = None  # after this call, this state
    refused: set[str] = field(default_factory=set)  # calls, or names of runs, that are answered by 403

    def files(self, kind: str) -> dict[str, dict[str, bytes]]:
        """Files of committed artifacts of a type: name of the artifact -> name of the file -> content."""
        return {
            a["name"]: {name: self.uploads.get(f"/up/{i}/{name}", b"") for name in a["files"]}
            for i, a in self.artifacts.items()
            if a["type"] == kind and a["committed"]
        }


@contextmanager
def serve() -> Iterator[Server]:
    http = _Http(("127.0.0.1", 0), _Handler)
    kept = Server(f"http://127.0.0.1:{http.server_port}")
    http.kept = kept
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield kept
    finally:
        kept.gone.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    kept: Server

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # kept connections are cut when a run ends


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()

    def do_POST(self) -> None:
        body = self.body()
        if self.unable():
            return
        kept = self.server.kept
        if "Authorization" not in self.headers:
            self.answer({"errors": [{"message": "no key"}]}, 401)
        elif self.path.endswith("/file_stream"):
            self.stream(json.loads(body))
        elif self.path.rstrip("/").endswith("graphql"):
            asked = json.loads(body)
            given = asked.get("variables") or {}
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            name = operation[1] if operation else ""
            code, answer = 200, {}
            with kept.lock:
                kept.calls.append(name)
                if kept.refused & {name, given.get("name")}:
                    code, answer = 403, {"errors": [{"message": "permission denied"}]}
                else:
                    try:
                        answer = {"data": _ANSWERS[name](kept, given)}
                    except (KeyError, TypeError) as error:
                        kept.unknown.append(f"{name}: {error!r}")
                        answer = {"errors": [{"message": f"no answer to {name}"}]}
            self.answer(answer, code)
        else:
            self.answer({})
        if kept.then and kept.calls and kept.calls[-1] == kept.then[0]:
            kept.state = kept.then[1]

    def do_PUT(self) -> None:
        body = self.body()
        if not self.unable():
            with self.server.kept.lock:
                self.server.kept.uploads[self.path] = body
            self.answer({})

    def do_GET(self) -> None:
        if not self.unable():
            self.answer({})

    do_HEAD = do_GET

    # --- parts --------------------------------------------------------------------------------------

    def unable(self) -> bool:
        """Whether the server is in no state to answer; the connection is ended as it would be."""
        state = self.server.kept.state
        if state == "up":
            return False
        if state == "refuse":
            self.answer({"errors": [{"message": "out of order"}]}, 503)
        if state == "hang":
            self.server.kept.gone.wait(60.0)
        self.close_connection = True
        return True

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def answer(self, value: object, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def stream(self, sent: dict[str, Any]) -> None:
        kept = self.server.kept
        with kept.lock:
            kept.calls.append("file_stream")
            run = kept.runs.setdefault(self.path.split("/")[-2], Kept())
            for name, part in (sent.get("files") or {}).items():
                lines = run.lines.setdefault(name, [])
                lines[part["offset"] : part["offset"] + len(part["content"])] = part["content"]
            if sent.get("complete"):
                run.exit = sent.get("exitcode")
        self.answer({"exitcode": None, "limits": {}})


# --- GraphQL --------------------------------------------------------------------------------------------

PROJECT_ID = "UHJvamVjdDox"


def _viewer(kept: Server, given: dict[str, Any]) -> Any:
    who = {"id": "u1", "username": "someone", "name": "someone", "entity": ENTITY, "email": "s@example.org"}
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    return {"viewer": {**who, "admin": False, "flags": "{}", "teams": teams, "apiKeys": {"edges": []}}}


def _upsert(kept: Server, given: dict[str, Any]) -> Any:
    run = kept.runs.setdefault(given["name"], Kept())
    run.facts = {**run.facts, **{k: v for k, v in given.items() if v is not None}}
    project, entity = run.facts.get("project"), run.facts.get("entity") or ENTITY
    bucket = {
        "id": f"run:{given['name']}", "name": given["name"], "displayName": run.facts.get("displayName"),
        "description": "", "config": run.facts.get("config", "{}"), "sweepName": None, "historyLineCount": 0,
        "project": {"id": PROJECT_ID, "name": project, "entity": {"id": "e1", "name": entity}},
    }  # fmt: skip
    return {"upsertBucket": {"bucket": bucket, "inserted": True}}


def _resume(kept: Server, given: dict[str, Any]) -> Any:
    entity = {"id": "e1", "name": given.get("entity") or ENTITY}
    return {"model": {"id": PROJECT_ID, "name": given.get("project"), "entity": entity, "bucket": None}}


def _run_files(kept: Server, given: dict[str, Any]) -> Any:
    files = [{"name": f, "uploadUrl": f"{kept.url}/run/{given['run']}/{f}"} for f in given["files"]]
    return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}


def _artifact(kept: Server, given: dict[str, Any]) -> Any:
    """A new version of an artifact, or the one that is there with the same content."""
    given = given["input"]
    same = [
        i
        for i, a in kept.artifacts.items()
        if (a["name"], a["digest"], a["committed"]) == (given["artifactCollectionName"], given["digest"], True)
    ]
    name = same[0] if same else f"artifact{len(kept.artifacts)}"
    if not same:
        about = {"name": given["artifactCollectionName"], "type": given["artifactTypeName"], "run": given["runName"]}
        kept.artifacts[name] = {**about, "digest": given["digest"], "files": [], "committed": False}
    sequence = {"id": "s1", "latestArtifact": None}
    return {
        "createArtifact": {
            "artifact": {"id": name, "state": "COMMITTED" if same else "PENDING", "artifactSequence": sequence}
        }
    }


def _manifest(kept: Server, given: dict[str, Any]) -> Any:
    upload = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": f"{kept.url}/manifest", "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": "am", "file": upload}}}


def _artifact_files(kept: Server, given: dict[str, Any]) -> Any:
    edges = []
    for spec in given["input"]["artifactFiles"]:
        owner = kept.artifacts[spec["artifactID"]]
        owner["files"].append(spec["name"])
        file = {
            "id": spec["name"], "name": spec["name"], "displayName": spec["name"], "uploadHeaders": [],
            "uploadUrl": f"{kept.url}/up/{spec['artifactID']}/{spec['name']}", "uploadMultipartUrls": None,
            "artifact": {"id": spec["artifactID"]}, "storagePath": f"x/{spec['name']}",
        }  # fmt: skip
        edges.append({"node": file})
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def _commit(kept: Server, given: dict[str, Any]) -> Any:
    name = given["artifactID"]
    kept.artifacts[name]["committed"] = True
    return {"commitArtifact": {"artifact": {"id": name, "digest": kept.artifacts[name]["digest"]}}}


def _projects(kept: Server, given: dict[str, Any]) -> Any:
    node = {"id": PROJECT_ID, "name": "harness", "entityName": ENTITY, "createdAt": "2026-01-01T00:00:00"}
    edges = [{"node": {**node, "isBenchmark": False, "user": None}, "cursor": "c"}]
    return {"models": {"edges": edges, "pageInfo": {"endCursor": "c", "hasNextPage": False}}}


def _view(kept: Server, given: dict[str, Any]) -> Any:
    kept.reports.append(given)
    view = {
        "id": f"Vmlldzox{len(kept.reports)}", "type": given["type"], "name": given["name"],
        "displayName": given["displayName"], "description": given["description"],
        "project": {"id": PROJECT_ID, "name": given["projectName"], "entityName": given["entityName"]},
        "spec": given["spec"], "updatedAt": "2026-01-01T00:00:00", "createdAt": None,
    }  # fmt: skip
    return {"upsertView": {"view": view, "inserted": True}}


_ANSWERS = {
    "Viewer": _viewer,
    "GetDefaultEntity": _viewer,
    "ServerFeaturesQuery": lambda kept, given: {"serverInfo": {"features": []}},
    "UpsertBucket": _upsert,
    "RunResumeStatus": _resume,
    "CreateRunFiles": _run_files,
    "ArtifactType": lambda kept, given: {"project": {"artifact": None}},
    "CreateArtifact": _artifact,
    "CreateArtifactManifest": _manifest,
    "UpdateArtifactManifest": _manifest,
    "CreateArtifactFiles": _artifact_files,
    "CommitArtifact": _commit,
    "ProjectInternalId": lambda kept, given: {
        "project": {"id": PROJECT_ID, "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}
    },
    "GetProjects": _projects,
    "CreateProject": lambda kept, given: {"upsertModel": {"model": {"name": given["input"]["name"]}, "inserted": True}},
    "upsertView": _view,
}
