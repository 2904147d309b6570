"""What can be checked of the Dockerfile without Docker: its files, extras, options, user, port, key and health check."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
import threading
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nextdetr.cli.main import run
from nextdetr.config import ServeConfig
from nextdetr.extras import TRAIN
from nextdetr.serve.run import STOP_SECONDS
from nextdetr.serve.security import OPEN, VARIABLE
from tests.docs.blocks import PAGES, ROOT
from tests.docs.test_commands import EXTRAS, wrong_usage

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [line.partition(" ") for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
RUN = re.compile(r"docker run (.+?) nextdetr-serve (.+)")


def all_of(kind):
    return [rest for name, _, rest in LINES if name == kind]


def one(kind):
    (rest,) = all_of(kind)
    return rest


def test_what_is_copied_is_there_and_is_all_that_building_needs():
    sources = [source for copied in all_of("COPY") for source in copied.split()[:-1]]
    assert not [source for source in sources if not (ROOT / source).exists()]
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(sources)
    assert fnmatch("src/nextdetr/__pycache__", rules[-1])
    assert {"pyproject.toml", "README.md", "LICENSE", "src"} <= set(sources)  # as hatchling asks for


def test_the_installation_is_the_servers_without_torch():
    (extras,) = re.findall(r"pip install '\.\[([\w,]+)\]'", " ".join(all_of("RUN")))
    assert "serve" in extras.split(",")
    packages = [re.match(r"[\w-]+", text)[0] for extra in extras.split(",") for text in EXTRAS[extra]]
    assert not {"nextdetr", *TRAIN.values()} & set(packages)


def test_the_server_starts_as_an_ordinary_user_and_gets_signals(capsys):
    kinds = [name for name, _, _ in LINES]
    assert kinds.index("RUN") < kinds.index("USER") < kinds.index("ENTRYPOINT")
    assert one("USER") not in ("root", "0")
    assert f" {one('USER')}" in all_of("RUN")[-1]
    program, *words = json.loads(one("ENTRYPOINT"))  # a list: without a shell between Docker and the server
    assert (program, words[0]) == ("nextdetr", "serve")
    assert run([*words, *json.loads(one("CMD"))]) == 0
    assert "nextdetr serve MODELS" in capsys.readouterr().out
    assert wrong_usage([*words, "/models/cells/model.onnx"]) is None
    assert "prot" in (wrong_usage([*words, "--prot", "1"]) or "")


@pytest.mark.parametrize("text", [TEXT, *(page.read_text(encoding="utf-8") for page in PAGES if "serving" in page.name)])
def test_the_command_gives_the_port_the_key_and_the_time_to_stop(text):
    ((options, rest),) = RUN.findall(text)
    given = shlex.split(options)
    values = dict(itertools.pairwise(given))
    words = json.loads(one("ENTRYPOINT"))[1:]
    port = words[words.index("--port") + 1]
    assert values["-p"] == f"{port}:{port}" == f"{one('EXPOSE')}:{one('EXPOSE')}"
    assert values["-e"] == VARIABLE
    assert f"export {VARIABLE}=" in text
    folder = values["-v"].split(":")[1]
    assert rest.startswith(f"{folder}/")
    assert wrong_usage([*words, rest]) is None
    assert int(values["--stop-timeout"]) > ServeConfig().timeout + STOP_SECONDS  # accepted requests are answered first


def test_the_health_check_tells_a_server_that_is_ready():
    flags, _, command = one("HEALTHCHECK").partition(" CMD ")
    assert flags.startswith("--start-period=")
    python, option, code = json.loads(command)
    assert (python, option) == ("python", "-c")
    assert f", {one('EXPOSE')}," in code
    assert re.search(r"'(/\w+)'", code)[1] in OPEN  # without a key
    statuses, asked = [200, 503], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(statuses[len(asked) - 1])
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = code.replace(one("EXPOSE"), str(server.server_port))
        proxy = {"http_proxy": "http://127.0.0.1:9"}
        codes = [subprocess.run([sys.executable, "-c", code], check=False, env=proxy).returncode for _ in statuses]
        server.shutdown()
    assert (codes, asked) == ([0, 1], ["/ready", "/ready"])
    assert subprocess.run([sys.executable, "-c", code], check=False, env=proxy, stderr=subprocess.DEVNULL).returncode == 1
