"""What a stranger may try on the page: requests as the page never sends them. Each is refused, and the page goes on."""

from __future__ import annotations

import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pictures import bombs, halves, photo, write_bad
from PIL import Image

from gprune.app.studio import Studio
from gprune.errors import BadValue
from gprune.images import SEEN_PIXELS

pytest.importorskip("gradio", reason="the web page needs gradio: make test-app")

NAME = "pictures.example"
REFUSED = "This file was not uploaded here"
META = {"_type": "gradio.FileData"}


@dataclass
class Client:
    """Someone who speaks with a page as they like.

    Args:
        url: of the page, with its last slash.
        session: what the page calls the session.
    """

    url: str
    session: str = field(default_factory=lambda: uuid.uuid4().hex)

    def request(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
        """Status and body of the answer."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} | headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def upload(self, content: bytes, name: str = "a.png") -> str:
        """The path that an upload gets on the server."""
        status, body = self.send(content, name)
        assert status == 200, body
        return json.loads(body)[0]

    def send(self, content: bytes, name: str = "a.png") -> tuple[int, str]:
        """The answer to an upload."""
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        kind = "multipart/form-data; boundary=x"
        return self.request("gradio_api/upload", head + content + b"\r\n--x--\r\n", Content_Type=kind)

    def event(self, name: str, kind: str) -> dict[str, Any]:
        """What the page does first when this happens to the component of this name."""
        config = json.loads(self.request("config")[1])
        [target] = [each["id"] for each in config["components"] if each["props"].get("elem_id") == name]
        return next(each for each in config["dependencies"] if [target, kind] in each["targets"])

    def join(self, event: int, data: Any, about: Any = None) -> tuple[int, str]:
        """The answer to an event that wants to wait."""
        wanted = {"session_hash": self.session, "fn_index": event, "data": data, "event_data": about}
        return self.request("gradio_api/queue/join", json.dumps(wanted).encode())

    def told(self, event: int, data: Any, about: Any = None) -> tuple[bool, Any]:
        """Whether an event was done, and what came of it, or why it was not."""
        status, body = self.join(event, data, about)
        if status != 200:
            return False, json.loads(body)["detail"]
        said = self.request(f"gradio_api/queue/data?session_hash={self.session}")[1]
        [line] = [line for line in said.splitlines() if '"process_completed"' in line]
        message = json.loads(line.removeprefix("data: "))
        return message["success"], message["output"]["data" if message["success"] else "error"]

    def chosen(self, question: str, methods: Any, keep: Any, unit: Any = "share") -> list[Any]:
        """What the page sends of its controls, the state of the session first; methods in the first group."""
        inputs = len(self.event("ask", "click")["inputs"])
        said = [None, question, unit, keep, 0, methods]
        return said + [[]] * (inputs - len(said))

    def give(self, file: Any) -> tuple[bool, Any]:
        """What becomes of a picture that is given to the page."""
        return self.told(self.event("picture", "upload")["id"], [file])


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    from gprune.app.page import serve

    before = os.environ.get("GRADIO_TEMP_DIR")
    page, _ = serve(Studio("embedded"), "127.0.0.1", None, allowed_hosts=[NAME], block=False)
    yield page
    page.close()
    assert not Path(page.folder.name).exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


@pytest.fixture
def client(page: Any, capfd: pytest.CaptureFixture[str]) -> Iterator[Client]:
    """After whose requests the server has no traceback to show, and serves the next one."""
    client = Client(page.local_url)
    yield client
    assert "Traceback" not in capfd.readouterr().err
    after = Client(page.local_url)
    assert after.give({"path": after.upload(png()), "meta": META})[0]


def png(picture: Image.Image | None = None) -> bytes:
    buffer = BytesIO()
    (picture or halves()).save(buffer, "PNG")
    return buffer.getvalue()


def files(path: str) -> list[Any]:
    """A path, in all ways in which a request may say it."""
    return [
        {"path": path},
        {"path": path, "meta": META},
        {"path": path, "meta": None},
        {"path": path, "meta": [], "is_stream": True},
        {"path": path, "url": f"file://{path}", "orig_name": "a.png", "mime_type": "image/png", "size": 1},
        {"url": f"file://{path}", "meta": META},
        {"path": None, "url": f"file://{path}"},
        {"path": [path]},
        {"path": {"path": path, "meta": META}},
        {"image": {"path": path}, "caption": None},
        [{"path": path}],
        [[[{"path": path, "meta": META}]]],
        path,
    ]


def test_what_is_uploaded_is_opened_with_and_without_meta(client: Client) -> None:
    for meta in ({"meta": META}, {}):
        right, (_, _, status) = client.give({"path": client.upload(png()), **meta})
        assert right and status == ""


def test_no_picture_of_the_disk_is_opened(page: Any, client: Client, tmp_path: Path) -> None:
    """A picture, a file, a folder, nothing: nobody learns which of them it is."""
    (tmp_path / "private.png").write_bytes(png(photo("coffee")))
    own = client.upload(png())
    (link := Path(own).parent / "link.png").symlink_to(tmp_path / "private.png")
    paths = [tmp_path / "private.png", "/etc/passwd", tmp_path, tmp_path / "missing.png", "private.png", link]
    paths += [f"{own}/../../../../../../..{tmp_path}/private.png", Path(page.folder.name), f"{own}\0.png", "a" * 9000]
    said = set()
    for path in map(str, paths):
        for file in files(path):
            right, why = client.give(file)
            assert not right, file
            said.add(why.partition(" [")[0])
    refused, other = sorted(said, key=lambda why: not why.startswith(REFUSED))
    assert str(tmp_path) not in refused and "should be a valid dictionary" in other


def test_no_event_opens_a_file(client: Client, tmp_path: Path) -> None:
    """Wherever an event takes something, a file is refused."""
    (tmp_path / "private.png").write_bytes(png())
    for event in json.loads(client.request("config")[1])["dependencies"]:
        for file in files(str(tmp_path / "private.png"))[:2]:
            if event["inputs"]:
                right, why = client.told(event["id"], [file] * len(event["inputs"]))
                assert not right and REFUSED in why


def test_bad_files_are_explained_before_and_after_a_good_one(client: Client, tmp_path: Path) -> None:
    bad = write_bad(tmp_path)
    for name in ("text.jpg", "truncated.png", "text.jpg"):
        path = client.upload(bad[name][0].read_bytes(), name)
        right, (_, _, status) = client.give({"path": path})
        assert right and bad[name][1] in status and name in status and str(Path(path).parent) not in status
        assert client.give({"path": client.upload(png())})[0]


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused(client: Client, name: str) -> None:
    right, (_, _, status) = client.give({"path": client.upload(bombs()[name], name)})
    assert right and "accepted are at most 40,000,000 pixels" in status


def test_the_limit_of_pixels_is_the_operators(tmp_path: Path) -> None:
    from gprune.app.handlers import Handlers

    (tmp_path / "a.png").write_bytes(png())
    for limit, accepted in ((24 * 16, True), (24 * 16 - 1, False)):
        subject, _, status = Handlers(Studio("embedded"), limit).upload({"path": str(tmp_path / "a.png")})
        assert (subject is not None) == accepted and ("at most 383 pixels" in status) != accepted


def test_only_what_a_model_can_see_is_remembered(page: Any, client: Client) -> None:
    assert client.give({"path": client.upload(png(Image.new("L", (7000, 5000))))})[0]
    subjects = [each for each in page.state_holder[client.session].state_data.values() if each is not None]
    assert [round(math.prod(each.picture.size) / SEEN_PIXELS, 3) for each in subjects] == [1.0]
    width, height = subjects[0].picture.size
    assert abs(width / height - 1.4) < 0.001


def test_addresses_are_not_fetched(client: Client) -> None:
    asked = []

    class Inside(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Inside) as inside:
        threading.Thread(target=inside.serve_forever).start()
        url = f"http://127.0.0.1:{inside.server_port}/secret.png"
        for file in ({"path": url}, {"path": url, "url": url, "meta": META}, {"url": url}, [{"url": url}], url):
            assert not client.give(file)[0]
        own = client.upload(png())
        assert client.give({"path": own, "url": url, "meta": META})[0]
        client.request(f"gradio_api/proxy={url}")
        client.request(f"gradio_api/file={url}")
        inside.shutdown()
    assert asked == []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:7860", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:7860", 200),
        (NAME, 200),
        (f"{NAME}:443", 200),
        ("attacker.example", 400),
        ("attacker.example:7860", 400),
        ("localhost.attacker.example", 400),
        (f"attacker.{NAME}", 400),
        ("127.0.0.1.attacker.example", 400),
        ("localhost@attacker.example", 400),
        ("169.254.1.1", 400),
        ("[::1", 400),
        ("*", 400),
    ],
)
def test_the_page_answers_to_its_names(client: Client, host: str, status: int) -> None:
    """A name of a stranger that leads to this machine is not one of them."""
    picture = client.upload(png())
    for path in ("", "config", "gradio_api/info", f"gradio_api/file={picture}"):
        assert client.request(path, Host=host)[0] == status
    joined = json.dumps({"session_hash": client.session, "fn_index": 9999, "data": []}).encode()
    body = client.request("gradio_api/queue/join", joined, Host=host)[1]
    assert ("Invalid host header" in body) == (status == 400)


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "", "a b", "*.example", "127.0.0.1:80", "[::1]"])
def test_names_that_are_none(name: str) -> None:
    from gprune.app.guard import trusted_names

    with pytest.raises(BadValue, match=r"allowed host .* accepted are names and addresses"):
        trusted_names("127.0.0.1", [name])


def test_other_addresses_are_names_too() -> None:
    from gprune.app.guard import trusted_names

    assert trusted_names("::", ["fe80::1", "10.0.0.7"])[3:] == ["[::]", "[fe80::1]", "10.0.0.7"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../etc/passwd", str(Path(__file__).resolve()), "pyproject.toml"])
def test_no_other_file_is_served(client: Client, path: str) -> None:
    for route in ("gradio_api/file=", "file=", "static/", "assets/", "gradio_api/file/", "svelte/", "theme.css/"):
        status, body = client.request(f"{route}{path}")
        assert status >= 400 and "root:" not in body and "def test" not in body and "build-system" not in body


def test_too_large_a_file(client: Client) -> None:
    assert client.send(bytes(1000))[0] == 200
    assert client.send(bytes(21 * 2**20))[0] == 413


def test_names_of_files_are_text(client: Client) -> None:
    path = client.upload(b"no picture", "<img src=x onerror=alert(1)>.png")
    assert "<img" not in client.give({"path": path})[1][2]
    name = "../../../../outside.png"
    assert Path(client.upload(png(), name)).is_relative_to(os.environ["GRADIO_TEMP_DIR"])


def test_events_that_are_none(client: Client) -> None:
    for number in (9999, -1, 2**40):
        status, body = client.join(number, [])
        assert status == 400 and "There is no event" in body
    for body in (b"[]", b"{", b"{}", b'{"data": 1}', b"[" * 100_000, b'{"data": [], "fn_index": "x"}'):
        assert 400 <= client.request("gradio_api/queue/join", body)[0] < 500


@pytest.mark.parametrize("index", [-1, 99, 1.5, None, "x", [], [0, 0], {}, {"path": "/etc/passwd"}, math.inf, math.nan])
def test_examples_that_are_none(client: Client, index: Any) -> None:
    event = client.event("examples", "select")["id"]
    right, why = client.told(event, [], {"index": index, "value": None})
    assert not right and why


def test_events_that_say_too_little(client: Client) -> None:
    select = client.event("examples", "select")["id"]
    for about in (None, {}, [], "x", 1):
        right, why = client.told(select, [], about)
        assert not right and why
    preview = client.event("keep", "change")["id"]
    for data in ([], [None], [None] * 9):
        right, why = client.told(preview, data)
        assert not right and why


def test_places_that_are_none(client: Client) -> None:
    assert client.give({"path": client.upload(png(photo("coffee")))})[0]
    first, second = (client.event(f"kept-0-{number}", "select")["id"] for number in (0, 1))
    for place in (None, [], [1], [1, 2, 3], "x", {}, [None, None], [math.inf, 0], [0, -math.inf], [math.nan, 1]):
        right, said = client.told(first, [None, "", 5], {"index": place, "value": None})
        assert said if not right else 'role="alert"' in said[1], place
    for place in ([1e300, 1], [-5, -5]):
        assert client.told(first, [None, "", 5], {"index": place, "value": None})[0]
    right, said = client.told(second, [None, "", 5], {"index": [60, 60], "value": None})
    assert right


@pytest.mark.parametrize("iterations", [-1, 11, 10**9, math.inf, math.nan, "x", None, [], True])
def test_iterations_that_are_none(client: Client, iterations: Any) -> None:
    assert client.give({"path": client.upload(png())})[0]
    right, said = client.told(client.event("kept-0-0", "select")["id"], [None, "", iterations], {"index": [9, 40]})
    assert said if not right else True


@pytest.mark.parametrize(
    ("methods", "keep"),
    [
        (["foreground:mask=/etc/passwd"], 0.5),
        (["gprune:iterations=999999999"], 0.5),
        (["gprune"] * 1000, 0.5),
        (["gprune"], 0),
        (["gprune"], -1),
        (["gprune"], 1e9),
        (["gprune"], math.nan),
        (["gprune"], None),
        (["gprune"], "0.5; rm"),
        ("gprune", 0.5),
        (None, 0.5),
        ([None], 0.5),
        ([["gprune"]], 0.5),
    ],
)
def test_odd_choices(client: Client, methods: Any, keep: Any) -> None:
    """Of a preview, and of an answer: nothing is computed."""
    assert client.give({"path": client.upload(png())})[0]
    for name, kind in (("keep", "change"), ("ask", "click")):
        asked = client.chosen("what is it?", methods, keep)
        right, said = client.told(client.event(name, kind)["id"], asked)
        assert 'role="alert"' in json.dumps(said).replace('\\"', '"') if right else said
        assert "tokens kept" not in json.dumps(said)


@pytest.mark.parametrize("unit", [None, "", "own", "cover:0.9", [], {}, 1])
def test_budgets_of_no_kind(client: Client, unit: Any) -> None:
    assert client.give({"path": client.upload(png())})[0]
    asked = client.chosen("what is it?", ["gprune"], 0.5, unit)
    right, said = client.told(client.event("keep", "change")["id"], asked)
    assert 'role=\\"alert\\"' in json.dumps(said) if right else said
    assert "tokens kept" not in json.dumps(said)


UNKNOWN: tuple[Any, ...] = ("?picture=/etc/passwd&path=/etc/passwd", "javascript:alert(1)", 7, ["?keep=0.5"])
"""Links that say nothing which the page knows; what is no text is taken for its text."""


@pytest.mark.parametrize(
    "address",
    [
        "?method=foreground:mask=/etc/passwd&example=../../etc/passwd&keep=__import__('os')",
        "?question=" + "x" * 10**6,
        "?" + "&example=1" * 10**5,
        "?method=<img src=x onerror=alert(1)>",
        *UNKNOWN,
        None,
        {"path": "/etc/passwd"},
    ],
)
def test_links_that_are_none(client: Client, address: Any) -> None:
    """What cannot be is ignored with a word, and the page begins without it."""
    events = json.loads(client.request("config")[1])["dependencies"]
    [begin] = [event for event in events if len(event["inputs"]) == 1 and event["js"] and event["backend_fn"]]
    right, said = client.told(begin["id"], [address])
    words = json.dumps(said)
    assert "<img src=x" not in words and "root:" not in words
    if right:
        assert ("Ignored in the link" in said[2]) == (address not in UNKNOWN)
        assert said[5:8] == ["share", 0.5, 0]
    else:
        assert said and not isinstance(address, str)


def test_a_question_as_long_as_a_book(client: Client) -> None:
    assert client.give({"path": client.upload(png())})[0]
    asked = client.chosen("x" * 10**6, ["auto"], 0.5)
    asked[7] = ["cdpruner"]
    right, said = client.told(client.event("keep", "change")["id"], asked)
    assert right and "accepted are 1 to 1000" in json.dumps(said)


def test_nobody_passes_by_the_line(client: Client) -> None:
    event = client.event("keep", "change")["id"]
    wanted = json.dumps({"data": client.chosen("", ["gprune"], 0.5), "fn_index": event}).encode()
    for route in ("gradio_api/run/predict", "gradio_api/api/predict", "gradio_api/process_recording"):
        assert 400 <= client.request(route, wanted)[0] < 500
    assert client.request(f"gradio_api/deep_link?session_hash={client.session}")[0] == 404


def test_the_other_way_to_wait_opens_no_file_either(client: Client, tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(png())
    wanted = {"data": [{"path": str(tmp_path / "private.png")}], "fn_index": client.event("picture", "upload")["id"]}
    status, body = client.request("gradio_api/call/upload", json.dumps(wanted).encode())
    assert status == 200
    said = client.request(f"gradio_api/call/upload/{json.loads(body)['event_id']}")[1]
    assert "event: error" in said and REFUSED in said


def test_nobody_fills_the_line(page: Any, client: Client) -> None:
    """Neither one session, nor many that do not listen; others are served."""
    event = client.event("keep", "change")["id"]
    data = client.chosen("", ["gprune"], 0.5)
    answers = [client.join(event, data)[0] for _ in range(120)]
    assert answers.count(503) >= 100 and set(answers) == {200, 503}
    for _ in range(120):
        assert Client(client.url).join(event, data)[0] == 200
    assert len(page._queue) <= page._queue.max_size
    assert Client(client.url).told(event, data)[0]


def test_events_of_those_who_are_gone_are_not_computed(
    page: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    monkeypatch.setattr(Studio, "preview", lambda *_: computed.append("by somebody") or [])
    monkeypatch.setattr("gprune.app.line.HEARD_WITHIN", 0.5)
    assert client.give({"path": client.upload(png())})[0]
    event = client.event("keep", "change")["id"]
    for _ in range(5):
        assert client.join(event, client.chosen("", ["gprune"], 0.5))[0] == 200
    for _ in range(100):
        if len(page._queue) == 0:
            break
        time.sleep(0.1)
    assert len(page._queue) == 0 and computed == []
    assert client.session not in page._queue.pending_event_ids_session
    assert client.told(event, client.chosen("", ["gprune"], 0.5))[0] and computed


def test_uploads_are_for_this_account_until_the_end(page: Any, tmp_path: Path) -> None:
    """Also when the page is terminated; and another one does not serve them."""
    assert stat.S_IMODE(Path(page.folder.name).stat().st_mode) == 0o700
    program = "import sys; from gprune.cli import main; main(['app'])"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("GRADIO_TEMP_DIR")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        line = other.stdout.readline()
        client = Client(line.split()[-1])
        path = Path(client.upload(png()))
        assert client.request(f"gradio_api/file={path}")[0] == 200
        assert Client(page.local_url).request(f"gradio_api/file={path}")[0] in (403, 404)
        [folder] = [each for each in tmp_path.iterdir() if path.is_relative_to(each)]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        other.send_signal(signal.SIGTERM)
        other.wait(60)
    assert not folder.exists() and [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_it_listens_to_this_machine_alone(page: Any) -> None:
    import socket

    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for host in others:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((host, page.server_port)) != 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", page.server_port)) == 0
