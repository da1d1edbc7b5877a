"""The page in a real browser: upload, ask, move, click, break, two users.

Screenshots are left in build/app.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import photo, write_bad
from PIL import Image

from gprune import kept_count
from gprune.app.studio import Studio

pytest.importorskip("gradio", reason="the web page needs gradio: make test-app")
playwright = pytest.importorskip("playwright.sync_api", reason="driving a browser needs playwright: make test-app")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = Path(__file__).parents[2] / "build" / "app"
METHODS = ("auto", "graphcover", "divprune")
PATIENCE = 60_000  # ms: a busy machine is no failure

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path: apt-get install chromium")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    from gprune.app.page import serve

    page, url = serve(Studio("embedded"), "127.0.0.1", None, block=False)
    yield url
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class User:
    """Someone with a page of their own, who notes every request and every error of it."""

    def __init__(self, browser: Any, url: str, width: int = 1280, first: int = 336) -> None:
        self.page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
        self.page.set_default_timeout(PATIENCE)
        playwright.expect.set_options(timeout=PATIENCE)
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(url)
        self.kept(first)

    def kept(self, *counts: int) -> None:
        """Wait until the methods keep so many tokens, left to right."""
        for column, count in enumerate(counts):
            playwright.expect(self.page.locator(f"#caption-{column}")).to_contain_text(
                re.compile(rf"\b{count} of|of {count}\b")
            )

    def picture(self, name: str) -> np.ndarray:
        """The pixels of a picture on the page: uint8 [height, width, 3]."""
        response = self.page.request.get(self.source(name))
        return np.asarray(Image.open(BytesIO(response.body())).convert("RGB"))

    def source(self, name: str) -> str:
        """The address of a picture, another one for other pixels."""
        return self.page.locator(f"#{name} img").get_attribute("src")

    def becomes_other(self, name: str, source: str) -> None:
        """Wait until a picture is another than it was."""
        playwright.expect(self.page.locator(f"#{name} img")).not_to_have_attribute("src", source)

    def set_number(self, name: str, value: float) -> None:
        """Move a slider, by the number beside it."""
        number = self.page.locator(f"#{name} input[type=number]")
        number.fill(str(value))
        number.press("Tab")

    def upload(self, *files: Path) -> None:
        clear = self.page.get_by_label("Remove Image")
        if clear.count():
            clear.click()
        self.page.set_input_files("#picture input[type=file]", files)

    def choose(self, *methods: str) -> None:
        """Add methods to those chosen."""
        for method in methods:
            chip = self.page.locator(".chips label").filter(has=self.page.get_by_text(method, exact=True))
            if not chip.is_visible():
                self.page.get_by_role("button", name="More methods").click()
            chip.click()

    def ask(self, question: str | None = None) -> list[str]:
        """The answers."""
        if question is not None:
            self.page.fill("#question textarea", question)
        self.page.click("#ask")
        cards = self.page.locator("#answers article")
        playwright.expect(cards.last.locator("table, .error")).to_be_visible()
        return [card.inner_text() for card in cards.all()]

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        for image in self.page.locator(".panel img").all():  # they are loaded when they come into view
            if image.is_visible():
                image.scroll_into_view_if_needed()
        self.page.wait_for_function("[...document.images].every(image => image.complete || !image.offsetParent)")
        self.page.evaluate("scrollTo(0, 0)")
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def user(browser: Any, url: str) -> Iterator[User]:
    user = User(browser, url)
    yield user
    user.page.context.close()


@pytest.fixture
def astronaut(tmp_path: Path) -> Path:
    photo("astronaut").save(tmp_path / "astronaut.jpg")
    return tmp_path / "astronaut.jpg"


def tokens(keep: float) -> int:
    """Of a square picture."""
    return sum(kept_count([64, 256], keep)) + 16


def test_a_visit(user: User, astronaut: Path) -> None:
    """A photo, a question, the slider, another method, a patch: everything follows, and nothing leaves the machine."""
    source = user.source("kept-0-1")
    user.upload(astronaut)
    user.becomes_other("kept-0-1", source)
    user.kept(tokens(0.5))
    half, source = user.picture("kept-0-1"), user.source("kept-0-1")
    user.set_number("keep", 0.2)
    user.becomes_other("kept-0-1", source)
    user.kept(tokens(0.2))
    assert grey(user.picture("kept-0-1")) > grey(half) + 0.2

    user.choose("divprune", "uniform")
    user.kept(*[tokens(0.2)] * 3)
    assert (user.picture("kept-1-1") != user.picture("kept-2-1")).any()

    cards = user.ask("what is the background?")
    assert [card.split("\n")[0] for card in cards] == [
        "all tokens",
        "auto, keep 0.2",
        "divprune, keep 0.2",
        "uniform, keep 0.2",
    ]
    assert all(f"{tokens(0.2)} of 336" in card and "GFLOPs" in card and "KV cache" in card for card in cards[1:])
    assert "336 of 336" in cards[0]

    before, source = user.picture("heat-1"), user.source("heat-1")
    user.set_number("iterations", 0)
    user.becomes_other("heat-1", source)
    assert (user.picture("heat-1") != before).any()

    user.page.locator("#kept-1-1 img").click()
    playwright.expect(user.page.locator("#patch")).to_contain_text("high-resolution grid")
    first = user.page.locator("#patch").inner_text()
    assert re.search(r"rank\s+\d+ of 256", first) and "cosine" in first
    playwright.expect(user.page.locator("#around img")).to_be_attached()
    user.shot("desktop")
    user.page.locator("#heat-0 img").click(position={"x": 5, "y": 60})
    playwright.expect(user.page.locator("#patch")).to_contain_text("base view")

    user.page.get_by_role("tab", name="Fidelity").click()
    user.page.locator("#measure").click()
    compared = user.page.locator("#compared tr")
    playwright.expect(compared).to_have_count(1 + 3 * 3)
    assert compared.nth(1).inner_text().split()[:3] == ["auto", "0.5", str(tokens(0.5))]
    user.shot("desktop_fidelity")
    user.page.get_by_role("tab", name="Accuracy").click()
    for method in ("auto", "divprune", "uniform", "unpruned"):
        playwright.expect(user.page.locator("#curve-keep").get_by_text(method, exact=True)).to_be_attached()
    user.shot("desktop_accuracy")
    user.page.get_by_role("tab", name="Code").click()
    playwright.expect(user.page.locator("#python")).to_contain_text("DivPrune(keep=0.2)")
    playwright.expect(user.page.locator("#commands")).to_contain_text("astronaut.jpg")
    playwright.expect(user.page.locator("#commands")).to_contain_text("--iterations 0")
    user.shot("desktop_code")
    assert not user.errors
    assert all(re.match(r"(http://127\.0\.0\.1:|data:|blob:)", request) for request in user.requests)


def grey(picture: np.ndarray) -> float:
    """The share of pixels that are nearly the grey of dropped patches, or of the stripes over them."""
    ground, stripes = (np.abs(picture.astype(int) - shade).max(-1) < 40 for shade in (235, 147))
    return float((ground | stripes).mean())


TEXTS = """() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let each = element; each; each = each.parentElement) {
      const [r, g, b, a = 1] = rgb(getComputedStyle(each).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const shown = [...document.querySelectorAll("h1, h3, p, span, label, button, td, th, li, text")]
    .filter(each => each.offsetParent && [...each.childNodes].some(n => n.nodeType === 3 && /\\w/.test(n.data)));
  return shown.map(each => {
    const behind = ground(each), [r, g, b, a = 1] = rgb(getComputedStyle(each).color);
    let opacity = a;
    for (let up = each; up; up = up.parentElement) opacity *= getComputedStyle(up).opacity;
    const ink = [r, g, b].map((v, i) => v * opacity + behind[i] * (1 - opacity));
    const [low, high] = [light(ink), light(behind)].sort((x, y) => x - y);
    const {left, right} = each.getBoundingClientRect();
    return [each.innerText, (high + 0.05) / (low + 0.05), left >= 0 && right <= innerWidth];
  });
}"""
"""Of every text that is seen: how bright its ink and its ground are in proportion (WCAG 2), and whether it fits."""


def test_a_narrow_screen(browser: Any, url: str) -> None:
    """Nothing is cut off, every text can be read in the light and in the dark, every picture is described."""
    user = User(browser, url, width=390)
    cards = user.ask()
    assert len(cards) == 2 and "\n03\n" in f"{cards[0]}\n"
    user.page.locator("#kept-0-0 img").click()
    playwright.expect(user.page.locator("#patch")).to_contain_text("base view")
    user.shot("phone")
    user.page.get_by_role("tab", name="Fidelity").click()
    user.page.locator("#measure").click()
    playwright.expect(user.page.locator("#compared td").last).to_be_visible()
    for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(15, 15, 17)")):
        user.page.emulate_media(color_scheme=scheme)
        playwright.expect(user.page.locator("body")).to_have_css("background-color", ground)
        texts = user.page.evaluate(TEXTS)
        assert len(texts) > 40
        assert [text for text, contrast, fits in texts if contrast < 4.5 or not fits] == []
    descriptions = user.page.evaluate("[...document.images].map(image => image.alt)")
    assert len(descriptions) > 10 and all(descriptions)
    assert "base view, 8 x 8: 32 of 64" in descriptions
    user.page.context.close()


def test_an_example_brings_its_question(user: User) -> None:
    user.page.locator("#examples .thumbnail-item").nth(1).click()
    playwright.expect(user.page.locator("#question textarea")).to_have_value("what shape is blue?")
    user.choose(*METHODS[1:])
    user.set_number("keep", 0.3)
    user.kept(75, 75, 75)
    cards = user.ask()
    assert [card.split("\n")[0] for card in cards[1:]] == [f"{name}, keep 0.3" for name in METHODS]
    assert re.search(r"^circle$", cards[0], re.MULTILINE)
    user.page.locator("#kept-0-1 img").click(position={"x": 30, "y": 65})
    playwright.expect(user.page.locator("#patch")).to_contain_text("high-resolution grid, 8 x 20")
    user.shot("example")


def test_a_link(browser: Any, url: str) -> None:
    """It brings all that was chosen, says what it could not, and follows what is changed."""
    query = "?example=1&method=graphcover&keep=cover:0.9&keep=cover:0.6&method=<b>nothing</b>"
    user = User(browser, url + query, first=232)
    playwright.expect(user.page.locator("#status [role=alert]")).to_contain_text("'<b>nothing</b>' is not offered")
    playwright.expect(user.page.locator("#question textarea")).to_have_value("what shape is blue?")
    captions = [user.page.locator(f"#caption-{column}") for column in (0, 1)]
    for caption, share in zip(captions, (90, 60), strict=True):
        playwright.expect(caption).to_contain_text(f"graphcover, cover {share / 100:g}")
        found = re.search(r"they cover ([\d.]+)%", caption.inner_text())
        assert found and share <= float(found[1]) < share + 10
    user.shot("link")

    user.page.locator("#unit").get_by_text("share of the tokens").click()
    playwright.expect(captions[1]).to_contain_text("graphcover, keep 0.6")
    user.set_number("second", 0)
    playwright.expect(captions[1]).to_be_hidden()
    address = f"{url}?example=1&method=graphcover&keep=0.9&question=what+shape+is+blue%3F"
    user.page.wait_for_url(address)
    assert not user.errors
    user.page.context.close()


REACHED = """() => {
  const focused = document.activeElement;
  const ring = element => element && getComputedStyle(element).outlineStyle === "solid"
    && parseFloat(getComputedStyle(element).outlineWidth) >= 3;
  focused.dataset.ringed = ring(focused) || ring(focused.closest("label"));
}"""
"""Note of what has the focus whether that is seen."""

MISSED = """() => [...document.querySelectorAll("button, input, textarea, [role=button]")]
  .filter(each => each.offsetParent && !each.closest("[aria-hidden=true]"))
  .filter(each => !each.disabled && each.dataset.ringed !== "true")
  .filter(each => each.type !== "file" && !(each.type === "radio" && !each.checked))
  .map(each => each.outerHTML)"""
"""Controls that are seen and never had the focus, or not so that it is seen; arrows lead to further radio buttons."""


def test_keys_are_enough(user: User) -> None:
    """Tab leads to every control, each shows that it has the focus, and Enter asks."""
    user.page.get_by_role("button", name="More methods").click()
    for _ in range(100):
        user.page.keyboard.press("Tab")
        user.page.evaluate(REACHED)
    assert user.page.evaluate(MISSED) == []
    user.page.focus("#methods input >> nth=0")
    user.page.keyboard.press("Space")
    user.page.focus("#methods input >> nth=1")
    user.page.keyboard.press("Space")
    playwright.expect(user.page.locator("#caption-0")).to_contain_text("graphcover, keep 0.5")
    user.page.focus("#question textarea")
    user.page.keyboard.press("Enter")
    cards = user.page.locator("#answers article")
    playwright.expect(cards.last.locator("table")).to_be_visible()
    assert cards.count() == 2


def test_files_that_are_no_pictures(user: User, tmp_path: Path, astronaut: Path) -> None:
    """Each is named with the reason, without the place where the server keeps it; a right one works after it."""
    bad = write_bad(tmp_path)
    for name in ("truncated.jpg", "text.jpg", "large.png", "flipped.png"):
        path, reason = bad[name]
        user.upload(path)
        status = user.page.locator("#status [role=alert]")
        playwright.expect(status).to_contain_text(reason)
        playwright.expect(status).to_contain_text(name)
        assert "/" not in status.inner_text()
        playwright.expect(user.page.locator("#caption-0")).to_be_hidden()
        user.page.click("#ask")
        playwright.expect(user.page.locator("#answers [role=alert]")).to_contain_text("no picture")
    user.shot("corrupt")
    user.upload(astronaut)
    user.kept(tokens(0.5))
    playwright.expect(user.page.locator("#status [role=alert]")).to_have_count(0)


def test_too_large_a_file(user: User, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (3000, 3000, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 20 * 2**20
    user.upload(tmp_path / "noise.png")
    playwright.expect(user.page.get_by_text("exceed the maximum allowed size")).to_be_visible()


def test_two_users(browser: Any, url: str, astronaut: Path) -> None:
    """Each has their own picture, methods and answers."""
    one, two = User(browser, url), User(browser, url)
    one.upload(astronaut)
    one.kept(tokens(0.5))
    two.page.locator("#examples .thumbnail-item").nth(1).click()
    two.kept(232)
    two.set_number("keep", 0.3)
    two.kept(75)
    playwright.expect(one.page.locator("#caption-0")).to_contain_text(f"{tokens(0.5)} of 336")
    one.set_number("keep", 0.1)
    one.kept(tokens(0.1))
    assert one.picture("kept-0-1").shape != two.picture("kept-0-1").shape
    answers = [user.ask() for user in (one, two)]
    assert "336 of 336" in answers[0][0] and "232 of 232" in answers[1][0]
    for user in (one, two):
        user.page.context.close()


def test_answers_are_text(user: User) -> None:
    """What a user writes, and a model says, is never markup."""
    user.page.fill("#question textarea", "<img src=x onerror=alert(1)>" + "x" * 1001)
    user.page.click("#ask")
    playwright.expect(user.page.locator("#answers [role=alert]")).to_contain_text("accepted are 1 to 1000")


def test_the_package_gets_no_files(user: User) -> None:
    """Gradio writes interface files beside some classes."""
    import gprune.app

    names = {path.name for path in Path(gprune.app.__path__[0]).iterdir() if path.suffix != ".py"}
    assert names <= {"cells", "__pycache__"}
