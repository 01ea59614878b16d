"""Set-up downloads Delta's jars once: from a mirror where one is named, and without a word unless it fails."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sparkcf.jobs.session import proxy_options, spark_home

JARS = ("delta-spark_2.12", "delta-storage")
POM = """<project><modelVersion>4.0.0</modelVersion><groupId>{}</groupId><artifactId>{}</artifactId>
<version>3.3.3</version><dependencies>{}</dependencies></project>"""
STORAGE = """<dependency><groupId>io.delta</groupId><artifactId>delta-storage</artifactId><version>3.3.3</version>
</dependency>"""


class Mirror(BaseHTTPRequestHandler):
    """A Maven repository on the loopback with Delta's jars; `files` : by path."""

    files: dict[str, bytes]
    asked: list[str]

    @classmethod
    def serve(cls, base: str, jar: bytes, pom: str) -> None:
        for path, body in ((f"{base}.jar", jar), (f"{base}.pom", pom.encode())):
            cls.files |= {path: body, f"{path}.sha1": hashlib.sha1(body).hexdigest().encode()}

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = self.files.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def mirror() -> Iterator[tuple[str, type[Mirror]]]:
    handler = type("Handler", (Mirror,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", handler
    server.shutdown()
    server.server_close()
    thread.join()


def set_up(home: Path, address: str, *packages: str) -> subprocess.CompletedProcess[str]:
    """What `make setup` runs, for a Spark without Delta's jars."""
    own = spark_home()
    (home / "jars").mkdir(parents=True)
    for part in own.iterdir():
        if part.name not in ("jars", "conf"):
            (home / part.name).symlink_to(part)
    for jar in (own / "jars").iterdir():
        if not jar.name.startswith("delta-"):
            (home / "jars" / jar.name).symlink_to(jar)
    changed = {"SPARK_HOME": str(home), "DEFAULT_ARTIFACT_REPOSITORY": address, "HOME": str(home)}
    environment = {k: v for k, v in os.environ.items() if k not in ("PYSPARK_SUBMIT_ARGS", "SPARK_SUBMIT_OPTS")}
    words = [sys.executable, "-m", "sparkcf.jobs.session", *packages]
    return subprocess.run(words, env=environment | changed, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_jars_come_from_the_mirror_without_a_word(tmp_path: Path, mirror: tuple[str, type[Mirror]]) -> None:
    address, handler = mirror
    for name in JARS:
        base = f"/io/delta/{name}/3.3.3/{name}-3.3.3"
        jar = (spark_home() / "jars" / f"{name}-3.3.3.jar").read_bytes()
        handler.serve(base, jar, POM.format("io.delta", name, STORAGE if name == JARS[0] else ""))
    connector = jar  # what is in it does not matter
    handler.serve("/org/example/store/3.3.3/store-3.3.3", connector, POM.format("org.example", "store", ""))
    done = set_up(tmp_path / "spark", address, "org.example:store:3.3.3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for name in JARS:
        own = (spark_home() / "jars" / f"{name}-3.3.3.jar").read_bytes()
        assert (tmp_path / "spark" / "jars" / f"{name}-3.3.3.jar").read_bytes() == own
    assert (tmp_path / "spark" / "jars" / "store-3.3.3.jar").read_bytes() == connector


@pytest.mark.slow
def test_a_download_that_fails_shows_what_ivy_said_and_the_cure(
    tmp_path: Path, mirror: tuple[str, type[Mirror]]
) -> None:
    address, handler = mirror
    done = set_up(tmp_path / "spark", address)
    assert done.returncode == 2 and any("delta-spark_2.12" in path for path in handler.asked)
    *ivy, last = done.stderr.splitlines()
    assert "unresolved dependency" in "\n".join(ivy) and "Traceback" not in done.stderr
    assert last.startswith("sparkcf: Delta's jars cannot be downloaded") and "DEFAULT_ARTIFACT_REPOSITORY" in last


def test_java_is_told_of_the_proxies_of_the_environment() -> None:
    environment = {"HTTPS_PROXY": "http://proxy.example:3128", "http_proxy": "proxy.example"}
    assert proxy_options(environment) == [
        "-Dhttp.proxyHost=proxy.example",
        "-Dhttp.proxyPort=80",
        "-Dhttps.proxyHost=proxy.example",
        "-Dhttps.proxyPort=3128",
    ]
    assert proxy_options({"HTTPS_PROXY": ""}) == []
