"""A double of cryoSPARC 5 for the real client, made of the interface that the client itself ships.

cryosparc-tools has a typed stub of every function of the server (`api.pyi`) and models of what they take and
give, but no addresses: it asks the server for an OpenAPI document and makes its functions from that. So the
document is made from the stub here: what is positional only goes into the path, what is keyword only into the
query, the rest is the body, and the annotation of the result is its schema. Every request is validated by the
stub's annotations, every reply by the model that it names. `double_store` tells what no double can know.
Addresses and verbs of the requests are this double's own.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin
from urllib.parse import parse_qs

import cryosparc
import numpy as np
from cryosparc.dataset import Dataset
from cryosparc.models.asset import GridFSAsset
from cryosparc.models.auth import Token
from cryosparc.models.event import ImageEvent, TextEvent
from cryosparc.models.job import Job as JobModel
from cryosparc.models.job_spec import (
    Connection,
    Input,
    Inputs,
    InputSlot,
    InputSpec,
    JobSpec,
    Output,
    OutputResult,
    Outputs,
    OutputSlot,
    OutputSpec,
)
from cryosparc.models.project import Project
from cryosparc.models.resource import ResourceSpec
from cryosparc.models.tag import Tag
from cryosparc.models.user import User
from cryosparc.models.workspace import Workspace
from cryosparc.stream import Stream
from double_server import Reply, Request, Server
from double_store import PROJECT, Refused, Store
from double_store import Job as StoredJob
from pydantic import BaseModel, TypeAdapter, ValidationError

EMAIL, PASSWORD, TOKEN = "user@example.org", "correct horse", "token-of-the-double"
PREFIX = "/api/cmd"
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def interface() -> dict[str, inspect.Signature]:
    """Return the signatures of the stub, by names such as `jobs.create`."""
    stub = Path(cryosparc.__file__).with_name("api.pyi")
    names: dict[str, Any] = {"__name__": "cryosparc.stub", "__package__": "cryosparc"}
    exec(compile(stub.read_text(), str(stub), "exec", dont_inherit=True), names)
    root = names["APIClient"]
    spaces = {"": root, **root.__annotations__}
    return {
        f"{space}.{name}" if space else name: inspect.signature(function)
        for space, methods in spaces.items()
        for name, function in vars(methods).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


def schema_of(annotation: Any) -> dict[str, Any]:
    """Return what the client needs to decode a value of this type."""
    if annotation in SIMPLE:
        return {"type": SIMPLE[annotation]}
    if annotation is Any:
        return {}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {"type": SIMPLE[type(arguments[0])]}
    if origin is Union:
        return {"anyOf": [schema_of(argument) for argument in arguments]}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0])}
    if origin is tuple:
        return {"type": "array", "prefixItems": [schema_of(argument) for argument in arguments]}
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return {"$ref": f"#/components/schemas/{annotation.__name__}"}
    raise TypeError(f"the double has no schema for {annotation}")


def is_stream(annotation: Any) -> bool:
    return annotation in (Dataset, Stream)


class Operations:
    """What the server does; `jobs__create` is `jobs.create`, with the parameters of the stub."""

    def __init__(self, store: Store, version: str) -> None:
        self.store, self.version = store, version
        # where the server says that it has the project
        self.project_directory = store.directory

    def login(self, *, username: str, password: str, **rest: Any) -> Token:
        if (username, password) != (EMAIL, hashlib.sha256(PASSWORD.encode()).hexdigest()):
            raise Refused(401, "Incorrect email or password")
        return Token(access_token=TOKEN, token_type="bearer")

    def users__me(self) -> User:
        return User(name="user", first_name="A", last_name="User")

    def config__get_version(self) -> str:
        return self.version

    def projects__find_one(self, project_uid: str) -> Project:
        return Project(
            uid=self._project(project_uid),
            project_dir=str(self.project_directory),
            owner_user_id="1",
            title="A project",
            archived=self.store.archived,
            size_last_updated=NOW,
            uid_num=3,
        )

    def projects__get_directory(self, project_uid: str) -> str:
        self._project(project_uid)
        return str(self.project_directory)

    def projects__upload_file(
        self, project_uid: str, stream: bytes, *, overwrite: bool = False, path: str = ""
    ) -> str:
        return str(self.store.upload(path, stream, overwrite=overwrite))

    def projects__download_file(self, project_uid: str, *, path: str = "") -> bytes:
        return (self.store.directory / path).read_bytes()

    def projects__mkdir(
        self, project_uid: str, *, parents: bool = False, exist_ok: bool = False, path: str = ""
    ) -> str:
        (self.store.directory / path).mkdir(parents=parents, exist_ok=exist_ok)
        return path

    def workspaces__find_one(self, project_uid: str, workspace_uid: str) -> Workspace:
        self._project(project_uid)
        if workspace_uid not in self.store.workspaces:
            raise Refused(404, f"no workspace {workspace_uid}")
        return Workspace(
            uid=workspace_uid, project_uid=PROJECT, workspace_type="base", uid_num=1, project_uid_num=3
        )

    def jobs__find(
        self,
        *,
        order: int = 1,
        limit: int = 100,
        project_uid: Any = None,
        workspace_uid: Any = None,
        type: Any = None,
        status: Any = None,
        updated_at: Any = None,
        after: Any = None,
        deleted: Any = False,
        **rest: Any,
    ) -> list[JobModel]:
        found = [
            self._model(job)
            for job in list(self.store.jobs.values())[::order]
            if PROJECT in (project_uid or [PROJECT])
            and job.workspace in (workspace_uid or [job.workspace])
            and job.kind in (type or [job.kind])
            and job.status in (status or [job.status])
            and job.deleted == deleted
        ]
        if updated_at is not None:
            found = [job for job in found if updated_at[0] <= job.updated_at <= updated_at[1]]
        if after is not None:
            found = found[[job.id for job in found].index(after) + 1 :]
        return found[:limit]

    def tags__find(self, *, type: Any = None, **rest: Any) -> list[Tag]:
        return [
            Tag(uid=uid, title=title, type="job", created_by_user_id="1", uid_num=int(uid[1:]))
            for title, uid in self.store.tags.items()
        ]

    def jobs__set_description(self, project_uid: str, job_uid: str, description: str) -> JobModel:
        self.store.job(job_uid).description = description
        return self._model(self.store.job(job_uid))

    def projects__find(self, **rest: Any) -> list[Project]:
        return [self.projects__find_one(PROJECT)]

    def jobs__find_one(self, project_uid: str, job_uid: str) -> JobModel:
        self._project(project_uid)
        return self._model(self.store.job(job_uid))

    def jobs__get_directory(self, project_uid: str, job_uid: str) -> str:
        return str(self.project_directory / job_uid)

    def jobs__create(
        self,
        project_uid: str,
        workspace_uid: str,
        params: Any = None,
        *,
        type: str,
        title: str = "",
        description: str = "",
        **rest: Any,
    ) -> JobModel:
        return self._model(self.store.create(type, title, description, workspace_uid))

    def jobs__add_external_input(
        self, project_uid: str, job_uid: str, input_name: str, body: InputSpec
    ) -> JobModel:
        slots = [slot if isinstance(slot, str) else slot.name for slot in body.slots]
        self.store.add_input(job_uid, input_name, body.type, slots)
        return self._model(self.store.job(job_uid))

    def jobs__connect(
        self,
        project_uid: str,
        job_uid: str,
        input_name: str,
        *,
        source_job_uid: str,
        source_output_name: str,
    ) -> JobModel:
        self.store.connect(job_uid, input_name, source_job_uid, source_output_name)
        return self._model(self.store.job(job_uid))

    def jobs__add_external_output(
        self, project_uid: str, job_uid: str, output_name: str, body: OutputSpec
    ) -> JobModel:
        slots = [(slot, slot) if isinstance(slot, str) else (slot.name, slot.dtype) for slot in body.slots]
        self.store.add_output(job_uid, output_name, body.type, slots, body.passthrough)
        return self._model(self.store.job(job_uid))

    def jobs__get_output_fields(
        self, project_uid: str, job_uid: str, output_name: str, dtype_params: Any = None
    ) -> list[tuple[str, str]]:
        return self.store.fields(job_uid, output_name)

    def jobs__mark_running(self, project_uid: str, job_uid: str, *, status: str = "running") -> JobModel:
        self.store.mark(job_uid, "running")
        return self._model(self.store.job(job_uid))

    def jobs__mark_completed(self, project_uid: str, job_uid: str) -> JobModel:
        self.store.mark(job_uid, "completed")
        return self._model(self.store.job(job_uid))

    def jobs__mark_failed(self, project_uid: str, job_uid: str, *, error: str | None = None) -> JobModel:
        self.store.mark(job_uid, "failed", error or "")
        return self._model(self.store.job(job_uid))

    def jobs__clear(self, project_uid: str, job_uid: str) -> JobModel:
        self.store.clear(job_uid)
        return self._model(self.store.job(job_uid))

    def jobs__load_output(
        self, project_uid: str, job_uid: str, output_name: str, *, version: Any = "F", slots: Any = "default"
    ) -> bytes:
        table = self.store.load(job_uid, output_name, slots if isinstance(slots, list) else None)
        dataset = Dataset.allocate(0, [])
        dataset = Dataset({name: table[name] for name in table.dtype.names or ()})
        return b"".join(dataset.stream())

    def jobs__save_output(
        self, project_uid: str, job_uid: str, output_name: str, dataset: Dataset, **rest: Any
    ) -> JobModel:
        self.store.save(job_uid, output_name, np.asarray(dataset.to_records(fixed=True)))
        return self._model(self.store.job(job_uid))

    def jobs__add_event_log(
        self, project_uid: str, job_uid: str, text: str, *, type: str = "text"
    ) -> TextEvent:
        return self._event(job_uid, self.store.log(job_uid, text, type), text)

    def jobs__update_event_log(
        self, project_uid: str, job_uid: str, event_id: str, text: str, **rest: Any
    ) -> TextEvent:
        self.store.relog(job_uid, event_id, text)
        return self._event(job_uid, event_id, text)

    def jobs__add_image_log(
        self, project_uid: str, job_uid: str, images: list[GridFSAsset], *, text: str, **rest: Any
    ) -> ImageEvent:
        self.store.log(job_uid, text, images=len(images))
        return ImageEvent(project_uid=PROJECT, job_uid=job_uid, type="image", text=text, imgfiles=images)

    def assets__upload(
        self, project_uid: str, job_uid: str, stream: bytes, *, filename: Any = None, format: Any = None
    ) -> GridFSAsset:
        fileid = self.store.add_asset(filename or "", stream)
        return GridFSAsset(fileid=fileid, filename=filename or "", filetype=format or "png")

    def jobs__set_tile_image(self, project_uid: str, job_uid: str, body: GridFSAsset) -> JobModel:
        self.store.job(job_uid).tile = body.fileid
        return self._model(self.store.job(job_uid))

    def jobs__set_output_image(
        self, project_uid: str, job_uid: str, output_name: str, body: GridFSAsset
    ) -> JobModel:
        self.store.output(job_uid, output_name).image = body.fileid
        return self._model(self.store.job(job_uid))

    def _project(self, uid: str) -> str:
        if uid != PROJECT:
            raise Refused(404, f"no project {uid}")
        return uid

    def _event(self, job_uid: str, event: str, text: str) -> TextEvent:
        return TextEvent(_id=event, project_uid=PROJECT, job_uid=job_uid, type="text", text=text)

    def _model(self, job: StoredJob) -> JobModel:
        """Return the job as the client's own model has it."""
        inputs = {
            name: Input(
                type=entry.kind,
                title=name,
                slots=[InputSlot(name=slot, dtype=slot) for slot in entry.slots],
                connections=[Connection(job_uid=job_uid, output=out) for job_uid, out in entry.connections],
            )
            for name, entry in job.inputs.items()
        }
        outputs = {
            name: Output(
                type=entry.kind,
                title=name,
                slots=[OutputSlot(name=slot, dtype=dtype) for slot, dtype in entry.slots],
                passthrough=entry.passthrough,
                results=[
                    OutputResult(name=slot, dtype=dtype, passthrough=passed)
                    for passed, slots in ((False, entry.slots), (True, entry.passed))
                    for slot, dtype in slots
                ],
                num_items=entry.n_rows,
                image=entry.image,
            )
            for name, entry in job.outputs.items()
        }
        number = int(job.uid[1:])
        return JobModel(
            _id=f"{number:024d}",
            completed_at=None if job.completed_at is None else _time(job.completed_at),
            completed_count=job.completed_count,
            updated_at=_time(job.updated_at),
            cloned_from=job.cloned_from,
            tags=job.tags,
            deleted=job.deleted,
            uid=job.uid,
            project_uid=PROJECT,
            workspace_uids=[job.workspace],
            spec=JobSpec(
                type=job.kind,
                inputs=Inputs(inputs),
                outputs=Outputs(outputs),
                ui_tile_width=1,
                ui_tile_height=1,
                resource_spec=ResourceSpec(),
            ),
            job_dir=job.uid,
            job_dir_size_last_updated=NOW,
            title=job.title,
            description=job.description,
            status=job.status,
            uid_num=number,
            project_uid_num=3,
            status_num=0,
            build_errors=[],
        )


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def handlers(operations: Operations) -> dict[str, Callable[..., Any]]:
    """Return the operations that the double has, by their names in the stub."""
    return {
        name.replace("__", "."): getattr(operations, name)
        for name in vars(Operations)
        if not name.startswith("_")
    }


def operation_schema(name: str, signature: inspect.Signature) -> tuple[str, dict[str, Any]]:
    """Return the address of an operation and its part of the OpenAPI document."""
    path, schema = f"/{name}", {"summary": name, "parameters": [], "responses": {"200": {}}}
    form = name == "login"
    for parameter in list(signature.parameters.values())[1:]:
        title, kind = parameter.name, parameter.annotation
        entry = {"name": title, "required": parameter.default is parameter.empty, "in": "query"}
        if parameter.kind is parameter.POSITIONAL_ONLY:
            path += f"/{{{title}}}"
            schema["parameters"].append({**entry, "in": "path"})
        elif parameter.kind is parameter.KEYWORD_ONLY and not form:
            schema["parameters"].append(entry)
        elif is_stream(kind):
            schema["requestBody"] = kind.api_schema()
            schema["requestBody"]["content"][kind.media_type]["schema"]["title"] = title
        elif not form:
            schema["requestBody"] = {"content": {"application/json": {"schema": {"title": title}}}}
    if form:
        schema["requestBody"] = {"content": {"application/x-www-form-urlencoded": {"schema": {}}}}
    returned = signature.return_annotation
    if is_stream(returned):
        schema["responses"]["200"] = returned.api_schema()
    elif returned is not None:
        schema["responses"]["200"] = {"content": {"application/json": {"schema": schema_of(returned)}}}
    return path, schema


class Double5:
    """The double; `url` is its address."""

    def __init__(self, store: Store, version: str = "v5.0.3") -> None:
        self.store, self.token = store, TOKEN
        self.operations = Operations(store, version)
        self._handlers = handlers(self.operations)
        self._signatures = interface()
        self.server = Server(self._answer, self._name, [0])
        self.url = f"http://127.0.0.1:{self.server.ports[0]}"

    def _name(self, request: Request) -> str:
        return request.path.removeprefix(PREFIX).strip("/").partition("/")[0]

    def document(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        paths = dict(operation_schema(name, self._signatures[name]) for name in self._handlers)
        return {
            "info": {},
            "components": {},
            "paths": {path: {"post": schema} for path, schema in paths.items()},
        }

    def _answer(self, request: Request) -> Reply:
        name = self._name(request)
        if name == "openapi.json":
            return Reply(json.dumps(self.document()).encode())
        if name not in self._handlers:
            return Reply(b"<html>cryoSPARC</html>", "text/html", 404)
        if name != "login" and request.headers.get("Authorization") != f"Bearer {self.token}":
            self.server.on_unauthorised()
            return Reply(b'{"detail": "Not authenticated"}', status=401)
        try:
            positional, keyword = self._arguments(name, request)
            result = self._handlers[name](*positional, **keyword)
        except Refused as error:
            return Reply(json.dumps({"detail": str(error)}).encode(), status=error.code)
        except (ValidationError, OSError) as error:
            return Reply(json.dumps({"detail": str(error)}).encode(), status=422)
        returned = self._signatures[name].return_annotation
        if is_stream(returned):
            return Reply(result, returned.media_type)
        return Reply(
            TypeAdapter(returned).dump_json(TypeAdapter(returned).validate_python(result), by_alias=True)
        )

    def _arguments(self, name: str, request: Request) -> tuple[list[Any], dict[str, Any]]:
        """Return what a request means, validated by the stub."""
        if name == "login":
            return [], {key: values[0] for key, values in parse_qs(request.body.decode()).items()}
        parts = request.path.removeprefix(PREFIX).strip("/").split("/")[1:]
        positional: list[Any] = []
        keyword: dict[str, Any] = {}
        for parameter in list(self._signatures[name].parameters.values())[1:]:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(parts.pop(0))
            elif parameter.kind is parameter.KEYWORD_ONLY:
                if parameter.name in request.query:
                    keyword[parameter.name] = _from_query(parameter.annotation, request.query[parameter.name])
            elif parameter.annotation is Dataset:
                keyword[parameter.name] = _dataset(request.body)
            elif parameter.annotation is Stream:
                keyword[parameter.name] = request.body
            elif request.body:
                keyword[parameter.name] = TypeAdapter(parameter.annotation).validate_json(request.body)
        return positional, keyword


def _dataset(body: bytes) -> Dataset:
    try:
        return Dataset.from_iterator(iter([body]))
    except Exception as error:
        raise Refused(422, f"bad dataset: {error}") from error


def _from_query(annotation: Any, values: list[str]) -> Any:
    adapter = TypeAdapter(annotation)
    if len(values) == 1:
        try:
            return adapter.validate_python(values[0])
        except ValidationError:
            pass
    return adapter.validate_python(values)
