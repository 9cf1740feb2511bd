"""Signing in: what works, what is refused with which words, and that no secret is ever shown."""

from __future__ import annotations

import http.server
import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryosparc_project import Run, add_micrographs, particle_table, store_token
from double_server import Reply, Server
from double_store import Store
from double_v5 import EMAIL, PASSWORD, TOKEN, Double5

from cryohush.core.errors import ConfigurationError
from cryohush.cryosparc_job.cli import main
from cryohush.cryosparc_job.credentials import Credentials, normalise_url, read_credentials


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://host:39000", "http://host:39000"),
        ("http://host:39000/", "http://host:39000"),
        ("host:39000", "http://host:39000"),
        ("https://Cryo.Example.org//", "https://cryo.example.org"),
        ("http://host:39000/browse/P3-W1-J42", "http://host:39000"),
        (" https://example.org/cryosparc/ ", "https://example.org/cryosparc"),
    ],
)
def test_addresses_are_put_right(text: str, url: str) -> None:
    assert normalise_url(text) == url


@pytest.mark.parametrize("text", ["", "ftp://host", "http://", "http://host:port", "http://host?x=1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected the address"):
        normalise_url(text)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="Leave it out") as caught:
        normalise_url("http://user:secret@host:39000")
    assert "secret" not in str(caught.value)


def write_credentials(path: Path, mode: int = 0o600) -> Path:
    path.write_text(json.dumps({"email": EMAIL, "password": PASSWORD, "license": "x", "base_port": 39000}))
    path.chmod(mode)
    return path


def test_credentials_come_from_a_file_of_ones_own(tmp_path: Path) -> None:
    credentials = read_credentials(write_credentials(tmp_path / "me.json"), {})
    assert (credentials.email, credentials.password) == (EMAIL, PASSWORD)
    assert PASSWORD not in repr(credentials)
    assert PASSWORD in credentials.secrets
    (tmp_path / "me.yaml").write_text("email: a@b.c\npassword: secret\n")
    (tmp_path / "me.yaml").chmod(0o400)
    assert read_credentials(tmp_path / "me.yaml", {}) == Credentials("a@b.c", "secret")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_credentials(write_credentials(tmp_path / "me.json", mode), {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{'password: secret", "is no YAML"),
        (b"- secret", "expected lines"),
        (b"password: 1234", "expected lines"),
        (b"\xff\xfe secret", "is no text"),
        (None, "No such file"),
    ],
)
def test_a_file_of_another_kind_is_refused_without_quoting_it(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "me"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_credentials(path, {})
    assert "secret" not in str(caught.value)


def test_an_address_finds_its_token_however_it_is_written(
    denoise: Run, double: Double5, store: Store, copying: None
) -> None:
    assert denoise("--url", double.url.removeprefix("http://") + "/") == 0


def test_email_and_password_do_without_a_token(
    denoise: Run,
    store: Store,
    signed_in: Path,
    copying: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    signed_in.unlink()
    monkeypatch.setenv("CRYOSPARC_EMAIL", EMAIL)
    monkeypatch.setenv("CRYOSPARC_PASSWORD", PASSWORD)
    assert denoise() == 0
    seen = "".join(capfd.readouterr())
    assert PASSWORD not in seen + str(store.external)
    monkeypatch.setenv("CRYOSPARC_PASSWORD", "wrong " + PASSWORD)
    assert denoise() == 1
    seen = "".join(capfd.readouterr())
    assert "email and password were refused" in seen
    assert PASSWORD not in seen


def test_a_sourced_cryosparc_environment_does_not_matter(
    denoise: Run, copying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the client takes these as defaults, when it is imported; here it has been, so they are given to it
    from cryosparc.tools import CryoSPARC

    defaults = dict(CryoSPARC.__init__.__kwdefaults__)
    monkeypatch.setattr(CryoSPARC.__init__, "__kwdefaults__", {**defaults, "host": "m", "base_port": "1"})
    assert denoise() == 0


def error_of(run: Run, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(*words) == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert error.count("ERROR") == 1
    return error


def test_nobody_is_signed_in(denoise: Run, signed_in: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store_token(signed_in.parents[1], "http://elsewhere:39000")
    error = error_of(denoise, capfd)
    assert "nobody is signed in" in error
    assert "login --url http://127" in error
    assert "elsewhere" in error


@pytest.mark.parametrize("expires", ["2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"])
def test_an_expired_or_revoked_token(
    denoise: Run, double: Double5, signed_in: Path, capfd: pytest.CaptureFixture[str], expires: str
) -> None:
    store_token(signed_in.parents[1], double.url, "revoked-token", expires)
    error = error_of(denoise, capfd)
    assert f"cryosparc_cryohush login --url {double.url}" in error
    assert "revoked-token" not in error


def test_a_token_file_that_others_can_read_is_pointed_out(
    denoise: Run, signed_in: Path, copying: None, capfd: pytest.CaptureFixture[str]
) -> None:
    signed_in.chmod(0o644)
    assert denoise() == 0
    assert f"chmod 600 {signed_in}" in capfd.readouterr().err


def test_no_server(denoise: Run, double: Double5, signed_in: Path, capfd: pytest.CaptureFixture[str]) -> None:
    double.server.close()
    error = error_of(denoise, capfd)
    assert "Connection refused" in error
    assert "Is the instance running" in error


def test_https_for_http(
    denoise: Run, double: Double5, signed_in: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = double.url.replace("http", "https")
    store_token(signed_in.parents[1], url)
    assert f"is it not {double.url}?" in error_of(denoise, capfd, "--url", url)


def serve(answer: Reply, headers: dict[str, str] | None = None) -> Iterator[str]:
    """Serve one answer to whatever is asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer.status)
            for name, value in {"Content-Type": answer.content_type, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("reply", "headers", "message"),
    [
        (Reply(b"", status=307), {"Location": "https://new.example.org/api/cmd/openapi.json"},
         "leads to https://new.example.org. Give that address"),
        (Reply(b"<html>cryoSPARC</html>", "text/html"), {}, "Is the instance running"),
        (Reply(b"<html>nothing</html>", "text/html", 404), {}, "Is that the address of cryoSPARC"),
    ],
)  # fmt: skip
def test_other_pages_than_cryosparcs(
    denoise: Run,
    signed_in: Path,
    capfd: pytest.CaptureFixture[str],
    reply: Reply,
    headers: dict[str, str],
    message: str,
) -> None:
    for url in serve(reply, headers):
        store_token(signed_in.parents[1], url)
        assert message in error_of(denoise, capfd, "--url", url)


def test_a_proxy_in_the_way(
    denoise: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:proxy-secret@127.0.0.1:1")
    error = error_of(denoise, capfd)
    assert "A proxy stands in the way" in error
    assert "export no_proxy=127.0.0.1" in error
    assert "proxy-secret" not in error


def test_another_minor_version_is_said_and_goes_on(
    store: Store, signed_in: Path, denoise: Run, copying: None, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Double5(store, "v5.1.0")
    store_token(signed_in.parents[1], other.url)
    assert denoise("--url", other.url) == 0
    other.server.close()
    assert "v5.1.0 may not be compatible with current cryosparc-tools version 5.0.3" in capfd.readouterr().err


def test_a_server_of_version_4(
    denoise: Run, signed_in: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Reply(b'{"jsonrpc": "2.0", "result": {"procs": []}, "id": "cryohush"}')
    server = Server(lambda request: answer, lambda request: "system.describe", [0])
    monkeypatch.setattr("cryohush.cryosparc_job.refusals._COMMAND_PORT_OFFSET", 0)
    url = f"http://127.0.0.1:{server.ports[0]}"
    store_token(signed_in.parents[1], url)
    assert "the server is cryoSPARC 4. Install its client: pip install 'cryosparc-tools~=4.7.0'" in error_of(
        denoise, capfd, "--url", url
    )
    server.close()


def test_login_stores_a_token_that_nobody_else_can_read(
    double: Double5, signed_in: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store_token(signed_in.parents[1], "http://elsewhere:39000")
    signed_in.chmod(0o644)
    monkeypatch.setattr("getpass.getpass", lambda prompt: PASSWORD)
    words = ["login", "--url", f"{double.url}/browse/P3", "--email", EMAIL]
    assert main([*words, "--days", "30"]) == 0
    assert stat.S_IMODE(signed_in.stat().st_mode) == 0o600
    stored = json.loads(signed_in.read_text())
    assert set(stored) == {"http://elsewhere:39000", double.url}
    assert stored[double.url][EMAIL]["token"]["access_token"] == TOKEN
    assert main(["list", "--url", double.url]) == 0
    said = capfd.readouterr()
    assert "P3     A project" in said.out
    assert PASSWORD not in "".join(said)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "wrong " + PASSWORD)
    assert main(words) == 1
    said = capfd.readouterr()
    assert "email and password were refused" in said.err
    assert PASSWORD not in "".join(said)
    assert main([*words, "--days", "366"]) == 1
    assert "expected 1 to 365" in capfd.readouterr().err


def test_outputs_are_listed(
    double: Double5, signed_in: Path, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    add_micrographs(store)
    store.jobs["J42"].title = "My particles"
    store.add_source("particle", particle_table()).status = "failed"
    assert main(["list", "--url", double.url, "--project", "P3"]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [line[:3] for line in lines] == [
        ["J43:exposures", "exposure", "2"],
        ["J42:particles", "particle", "24"],
    ]
    assert lines[1][3:] == ["My", "particles"]


def test_a_server_of_version_4_is_told_before_a_sign_in_is_asked_for(
    denoise: Run, signed_in: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 4 answers nobody without its licence, and no sign-in of version 5 would work there."""
    refusal = Reply(b'{"error": "Invalid license"}', status=403)
    server = Server(lambda request: refusal, lambda request: "system.describe", [0])
    monkeypatch.setattr("cryohush.cryosparc_job.refusals._COMMAND_PORT_OFFSET", 0)
    signed_in.unlink()
    error = error_of(denoise, capfd, "--url", f"http://127.0.0.1:{server.ports[0]}")
    server.close()
    assert "the server is cryoSPARC 4" in error
    assert "nobody is signed in" not in error
