"""A double of cryoSPARC 4.7 for the real client 4.7: JSON-RPC on three ports, and raw requests for data.

The methods and their arguments are those that the client calls; the documents hold what it reads. Tables are
read and written without the client's code. `double_store` tells what no double can know. Besides, the texts
of errors are this double's own, and no method here lists jobs, because the client calls none.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from double_server import Reply, Request, Server
from double_store import FIELDS, PROJECT, Job, Refused, Store
from numpy.typing import NDArray

from cryohush.core.io.csdat import read_csdat

EMAIL, PASSWORD = "user@example.org", "correct horse"
LICENSE = "01234567-89ab-cdef-0123-456789abcdef"
# Of the services for the core, for files and for Live, behind the port of the pages.
OFFSETS = (2, 3, 5)


class Methods:
    """The methods of all three services."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def get_id_by_email_password(self, email: str, password: str) -> str:
        if (email, password) != (EMAIL, PASSWORD):
            raise Refused(500, "User not found or incorrect password")
        return "user"

    def get_running_version(self) -> str:
        return "v4.7.1"

    def get_project(self, project_uid: str) -> dict[str, Any]:
        if project_uid != PROJECT:
            raise Refused(500, f"no project {project_uid}")
        return {"uid": PROJECT, "archived": self.store.archived}

    def get_project_dir_abs(self, project_uid: str) -> str:
        return str(self.store.directory)

    def get_workspace(self, project_uid: str, workspace_uid: str) -> dict[str, Any]:
        if workspace_uid not in self.store.workspaces:
            raise Refused(500, f"no workspace {workspace_uid}")
        return {"uid": workspace_uid}

    def get_job(self, project_uid: str, job_uid: str) -> dict[str, Any]:
        return document(self.store.job(job_uid))

    def get_job_dir_abs(self, project_uid: str, job_uid: str) -> str:
        return str(self.store.directory / job_uid)

    def create_external_job(
        self, project_uid: str, workspace_uid: str, user: str, title: str, desc: str
    ) -> str:
        return self.store.create("snowflake", title, desc, workspace_uid).uid

    def connect_external_job(
        self,
        project_uid: str,
        source_job_uid: str,
        source_output: str,
        target_job_uid: str,
        target_input: str,
        slots: list[str],
        title: str,
        desc: str,
    ) -> bool:
        source = self.store.output(source_job_uid, source_output)
        if target_input not in self.store.job(target_job_uid).inputs:
            self.store.add_input(target_job_uid, target_input, source.kind, slots)
        self.store.connect(target_job_uid, target_input, source_job_uid, source_output)
        return True

    def add_external_job_output(
        self,
        project_uid: str,
        job_uid: str,
        type: str,
        name: str,
        slots: list[str],
        passthrough: str | None,
        title: str,
    ) -> str:
        self.store.add_output(job_uid, name, type, [(slot, slot) for slot in slots], passthrough)
        return name

    def run_external_job(self, project_uid: str, job_uid: str, status: str) -> None:
        self.store.mark(job_uid, "running")

    def set_job_status(self, project_uid: str, job_uid: str, status: str) -> None:
        self.store.mark(job_uid, status)

    def clear_job(self, project_uid: str, job_uid: str) -> None:
        self.store.clear(job_uid)

    def job_send_streamlog(
        self,
        project_uid: str,
        job_uid: str,
        message: str,
        error: bool = False,
        flags: list[str] | None = None,
        imgfiles: list[dict[str, str]] | None = None,
    ) -> str:
        return self.store.log(job_uid, message, "error" if error else "text", len(imgfiles or []))

    def project_mkdir(self, project_uid: str, path: str, parents: bool, exist_ok: bool) -> None:
        (self.store.directory / path).mkdir(parents=parents, exist_ok=exist_ok)


def document(job: Job) -> dict[str, Any]:
    """Return a job's document."""
    results = [
        {
            "group_name": name,
            "name": slot,
            "type": f"{output.kind}.{dtype}",
            "passthrough": passed,
            "metafiles": [output.files[passed]] if passed in output.files else [],
            "min_fields": FIELDS.get(dtype, []),
        }
        for name, output in job.outputs.items()
        for passed, slots in ((False, output.slots), (True, output.passed))
        for slot, dtype in slots
    ]
    return {
        "uid": job.uid,
        "job_type": job.kind,
        "description": job.description,
        "workspace_uids": [job.workspace],
        "status": job.status,
        "completed_at": job.completed_at and str(job.completed_at),
        "input_slot_groups": [
            {
                "name": name,
                "type": entry.kind,
                "connections": [{"job_uid": uid, "group_name": out} for uid, out in entry.connections],
            }
            for name, entry in job.inputs.items()
        ],
        "output_result_groups": [
            {
                "name": name,
                "type": output.kind,
                "contains": [result for result in results if result["group_name"] == name],
            }
            for name, output in job.outputs.items()
        ],
        "output_results": results,
    }


class Double47:
    """The double; `url` is what a user gives."""

    def __init__(self, store: Store) -> None:
        self.store, self._methods = store, Methods(store)
        self.server, self.url = self._serve()

    def _serve(self) -> tuple[Server, str]:
        """Serve on three ports at their distances from a fourth, and return what a user calls that."""
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                base = int(probe.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):  # one of the three is taken: try others
                server = Server(self._answer, self._name, [base + offset for offset in OFFSETS])
                return server, f"http://127.0.0.1:{base}"

    def _name(self, request: Request) -> str:
        if request.path == "/api":
            return str(json.loads(request.body)["method"])
        return request.path.strip("/").rpartition("/")[2]

    def _answer(self, request: Request) -> Reply:
        if request.headers.get("License-ID") != LICENSE:
            return Reply(b'{"error": "Invalid license"}', status=403)
        try:
            return self._rpc(json.loads(request.body)) if request.path == "/api" else self._raw(request)
        except Refused as error:
            return Reply(json.dumps({"message": str(error)}).encode(), status=error.code)

    def _rpc(self, call: dict[str, Any]) -> Reply:
        names = [name for name, _ in inspect.getmembers(self._methods, inspect.ismethod)]
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": call["id"]}
        try:
            if call["method"] == "system.describe":
                answer["result"] = {"procs": [{"name": name} for name in ("system.describe", *names)]}
            else:
                method, params = getattr(self._methods, call["method"]), call["params"]
                answer["result"] = method(**params) if isinstance(params, dict) else method(*params)
        except Refused as error:
            answer["error"] = {"name": "ServerError", "code": 500, "message": str(error), "data": {}}
        return Reply(json.dumps(answer).encode())

    def _raw(self, request: Request) -> Reply:
        parts = request.path.strip("/").split("/")
        if request.path == "/get_project_file":
            path = self.store.directory / json.loads(request.body)["path"]
            return Reply(path.read_bytes(), "application/octet-stream")
        if parts[0] == "external":  # external/projects/P/jobs/J/outputs/O/dataset
            self.store.save(parts[4], parts[6], _table(request.body))
            return Reply(b"OK", "text/plain")
        if len(parts) == 5:  # projects/P/jobs/J/files
            name = request.query["filename"][0]
            asset = {"fileid": self.store.add_asset(name, request.body), "filename": name, "filetype": "png"}
            return Reply(json.dumps(asset).encode())
        self.store.upload(request.query["path"][0], request.body, overwrite="overwrite" in request.query)
        return Reply(b"OK", "text/plain")


def _table(body: bytes) -> NDArray[np.void]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream.cs"
        path.write_bytes(body)
        try:
            return read_csdat(path)
        except Exception as error:
            raise Refused(422, f"bad dataset: {error}") from error
