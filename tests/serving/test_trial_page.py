"""The page to try a model on: who gets it, its headers, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests._support.closed_sets import make_classifier
from tests._support.http_calls import HTTP, get
from tests._support.servers import make_image, serving

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from plsc.inference.embedding import to_unit_length
from plsc.inference.gallery import Gallery
from plsc.inference.model import load_inference_model
from plsc.serving import trial_page
from plsc.serving.trial_page import TrialPage, prefers_html

CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
HOSTILE = "<img src=x onerror=document.title='hacked'>"
FILES = {
    "/": "text/html",
    "/page/page.css": "text/css",
    "/page/page.js": "text/javascript",
    "/page/icon.svg": "image/svg",
}


@pytest.mark.parametrize(
    "accept, expected",
    [
        (CHROMIUM, True),
        ("text/html", True),
        ("Text/HTML ; charset=utf-8", True),
        ("application/json;q=0.5, text/html;q=0.8", True),
        ("", False),
        ("*/*", False),
        ("text/*", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("text/html;q=0", False),
        ("text/html;q=x", False),
        ("*/*, text/html;q=0.1", False),
    ],
)
def test_only_who_names_html_gets_the_page(accept, expected):
    assert prefers_html(accept) is expected


def test_the_page_is_asked_for_by_get_alone():
    page = TrialPage()
    assert page.is_asked_for("GET", "/", CHROMIUM) and page.is_asked_for("HEAD", "/page/page.js", "")
    for method, path, accept in [("POST", "/", CHROMIUM), ("GET", "/", "*/*"), ("GET", "/metrics", CHROMIUM)]:
        assert not page.is_asked_for(method, path, accept)


def test_every_file_of_the_folder_is_served_and_names_no_other_place():
    folder = Path(trial_page.__file__).with_name("page")
    assert {f"/page/{path.name}" for path in folder.iterdir()} == {*FILES, "/page/index.html"} - {"/"}
    for path in folder.iterdir():
        text = path.read_text().replace('"http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|//[a-z]|innerHTML|insertAdjacentHTML|style=|\son[a-z]+=", text), path


@pytest.mark.server
def test_the_files_have_strict_headers(server):
    for path, kind in FILES.items():
        reply = get(server, path, Accept=CHROMIUM)
        assert reply.status == 200 and reply.headers["Content-Type"].startswith(kind)
        rules = dict(rule.split(" ", 1) for rule in reply.headers["Content-Security-Policy"].split("; "))
        assert rules == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' blob:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.server
def test_programs_get_the_list_of_endpoints(server):
    listed = [get(server, "/", **headers) for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"})]
    assert len({reply.data for reply in listed}) == 1 and b"POST /embed" in listed[0].data
    browsed = get(server, "/", Accept=CHROMIUM)
    assert b"page/page.js" in browsed.data and b"page/page.js" not in listed[0].data
    assert {reply.headers["Vary"] for reply in (*listed, browsed)} == {"Accept"}


@pytest.mark.server
@pytest.mark.parametrize(
    "name", ["", "index.html", "other.js", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "page.js/"]
)
def test_other_names_are_not_found(server, name):
    reply = HTTP.request("GET", f"{server.url}/page/{name}", headers={"Accept": CHROMIUM})
    assert reply.status == 404 and reply.headers["Content-Type"] == "application/json"


@pytest.mark.server
def test_the_page_needs_no_key_and_tells_nothing(strict):
    for path in FILES:
        assert get(strict, path, Accept=CHROMIUM).status == 200
    assert b"Embeddings of size" not in get(strict, "/", Accept=CHROMIUM).data
    assert get(strict, "/").status == get(strict, "/openapi.json", Accept=CHROMIUM).status == 401
    assert HTTP.request("POST", f"{strict.url}/", body=b"x", headers={"Accept": CHROMIUM}).status == 401


@pytest.mark.server
def test_no_page(model, tmp_path):
    with serving(model, "--no-page", log=tmp_path / "log") as running:
        reply = get(running, "/", Accept=CHROMIUM)
        assert reply.data == get(running, "/").data and b"page.js" not in reply.data
        assert [get(running, path).status for path in FILES] == [200, 404, 404, 404]


# In a browser


def cosine_of(server, paths):
    fields = [("image", ("image", path.read_bytes())) for path in paths]
    return json.loads(HTTP.request("POST", f"{server.url}/verify", fields=fields).data)["cosine"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images whose names HTML, shells and curl would read, and a file that is none."""
    folder = tmp_path_factory.mktemp("files")
    made = [folder / "one.png", folder / 'it\'s <b>; "two".png', folder / "text.png"]
    for seed, path in enumerate(made[:2]):
        path.write_bytes(make_image(seed))
    made[2].write_bytes(b"this is no image")
    return made


@pytest.fixture(scope="module")
def complete(tmp_path_factory, files):
    """A server with a threshold, a classifier and a gallery, whose first image has a hostile name."""
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    folder = tmp_path_factory.mktemp("complete")
    make_classifier(folder / "m", names=[HOSTILE, *(f"class {number}" for number in range(1, 8))])
    loaded = load_inference_model(folder / "m")
    gallery = Gallery(loaded.emb_dim, loaded.card.weights)
    images = [make_image(seed) for seed in range(4)]
    gallery.add([HOSTILE, "bob", "cy", "di"], to_unit_length(loaded.embed(images)))
    gallery.save(folder / "g")
    with serving(folder / "m", "--gallery", folder / "g", "--threshold", 0.9, log=folder / "log") as running:
        yield running


class Page:
    """The page in a browser, as a person uses it."""

    def __init__(self, browser, server):
        self.browser, self.driver, self.server = browser, browser.driver, server
        browser.events()
        self.driver.get(server.url)

    def at(self, selector):
        return self.driver.find_element("css selector", selector)

    def choose(self, number, path):
        self.at(f"#file-{number}").send_keys(str(path))
        self.browser.wait(lambda: self.at(f".slot:nth-of-type({number}) .file-name").text == path.name)

    def act(self, name):
        self.browser.wait(self.at(f"#{name}").is_displayed)
        self.at(f"#{name}").click()
        self.browser.wait(lambda: "Waiting" not in self.at("#result").text)
        return self.at("#result").text

    def check_quiet(self, *, refused=0):
        """No request went elsewhere, no policy was violated, and no more than `refused` replies were errors."""
        urls, lines = self.browser.events()
        assert urls and all(url.startswith((f"{self.server.url}/", "blob:")) for url in urls), urls
        assert len(lines) == refused and all("status of 4" in line for line in lines), lines


@pytest.mark.server
def test_two_images_are_compared(browser, complete, files):
    page = Page(browser, complete)
    page.choose(1, files[0])
    page.choose(2, files[0])
    text = page.act("verify")
    assert text.startswith("Cosine 1.0000 the same") and "Threshold: 0.9000" in text
    page.choose(2, files[1])
    assert "Nothing was asked about these images" in page.at("#result").text
    assert page.act("verify").startswith(f"Cosine {cosine_of(complete, files[:2]):.4f} ")
    images = browser.driver.find_elements("css selector", ".picture img")
    assert all(browser.driver.execute_script("return arguments[0].naturalWidth", image) == 16 for image in images)
    page.check_quiet()


@pytest.mark.server
def test_a_gallery_is_searched_and_names_stay_texts(browser, complete, files):
    page = Page(browser, complete)
    page.choose(1, files[0])
    page.choose(2, files[1])
    page.act("identify")
    first, second = browser.driver.find_elements("css selector", "#result table")
    assert second.find_element("css selector", "caption").text == f"The second image, {files[1].name}"
    rows = [row.text for row in first.find_elements("css selector", "tbody tr")]
    assert len(rows) == 4 and rows[0] == f"{HOSTILE} 1.0000 the same"
    assert not browser.driver.find_elements("css selector", "#result img") and "hacked" not in browser.driver.title
    page.check_quiet()


@pytest.mark.server
def test_classes_are_found_as_many_as_asked_for(browser, complete, files):
    page = Page(browser, complete)
    page.choose(1, files[0])
    browser.wait(page.at("#k").is_displayed)
    page.at("#k").clear()
    page.at("#k").send_keys("8")
    assert "Probabilities compare 8 classes" in page.act("classify")
    rows = [row.text for row in browser.driver.find_elements("css selector", "#result tbody tr")]
    assert len(rows) == 8 and sum(row.startswith(f"{HOSTILE} 0 ") for row in rows) == 1
    page.check_quiet()


@pytest.mark.server
def test_errors_are_told_in_plain_words(browser, complete, files):
    page = Page(browser, complete)
    assert page.act("verify") == "Choose two images first."
    page.choose(1, files[0])
    page.choose(2, files[2])
    text = page.act("verify")
    assert text.startswith("The server cannot read the second image (text.png).") and "expected one of JPEG" in text
    page.check_quiet(refused=1)


@pytest.mark.server
def test_the_line_of_curl_does_the_same(browser, complete, files):
    page = Page(browser, complete)
    page.choose(1, files[0])
    page.choose(2, files[1])
    page.act("verify")
    words = shlex.split(page.at("#curl").text)
    assert words[0] == "curl" and words[-1] == f"{complete.url}/verify"
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    done = subprocess.run([*words, "-s"], cwd=files[0].parent, capture_output=True, check=True)
    assert json.loads(done.stdout)["cosine"] == cosine_of(complete, files[:2])


@pytest.mark.server
def test_two_files_may_be_dropped_and_removed(browser, complete):
    page = Page(browser, complete)
    browser.driver.execute_script(DROP, page.at("main"))
    names = browser.driver.find_elements("css selector", ".file-name")
    assert [name.text for name in names] == ["a.png", "b.png"]
    page.at(".slot .remove").click()
    assert [name.text for name in names] == ["No image", "b.png"]
    assert browser.driver.execute_script("return document.activeElement.id") == "file-1"
    assert page.act("verify") == "Choose two images first."
    page.check_quiet()


# Files that are dropped beside the places for images.
DROP = """
const dropped = new DataTransfer();
for (const name of ["a.png", "b.png"]) dropped.items.add(new File(["x"], name));
const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: dropped });
arguments[0].dispatchEvent(event);
"""


@pytest.mark.server
def test_a_phone_is_offered_its_camera(browser, complete, files):
    page = Page(browser, complete)
    camera = page.at("#camera-1")
    assert camera.get_attribute("capture") and not page.at(".camera").is_displayed()
    browser.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        browser.wait(page.at(".camera").is_displayed)
        camera.send_keys(str(files[0]))
        assert page.at(".file-name").text == files[0].name
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


@pytest.mark.server
def test_the_key_is_asked_for_and_stored_nowhere(browser, strict, files):
    from selenium.webdriver import Keys

    page = Page(browser, strict)
    browser.wait(page.at("#access").is_displayed)
    page.at("#key").send_keys("wrong", Keys.ENTER)
    browser.wait(lambda: "does not accept" in page.at("#key-state").text)
    page.at("#key").clear()
    page.at("#key").send_keys("secret", Keys.ENTER)
    browser.wait(lambda: "accepts the key" in page.at("#key-state").text)
    assert not page.at("#identify").is_displayed() and not page.at("#classify").is_displayed()
    page.choose(1, files[0])
    page.choose(2, files[1])
    assert "no threshold" in page.act("verify")
    assert "$PLSC_API_KEY" in page.at("#curl").text and "secret" not in page.at("#curl").text
    stored = "return [localStorage.length, sessionStorage.length, document.cookie, location.href]"
    assert browser.driver.execute_script(stored) == [0, 0, "", f"{strict.url}/"]
    page.check_quiet(refused=2)


@pytest.mark.server
def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser, complete, files):
    from selenium.webdriver import Keys

    page = Page(browser, complete)
    browser.wait(page.at("#classify").is_displayed)
    page.choose(1, files[0])
    browser.driver.execute_script("document.activeElement.blur()")
    reached = []
    for _ in range(9):
        browser.press(Keys.TAB)
        reached.append(browser.driver.execute_script(FOCUSED))
        if reached[-1][0] == "classify":
            browser.press(Keys.ENTER)
    assert [name for name, _, _ in reached][:7] == ["file-1", "", "file-2", "verify", "identify", "classify", "k"]
    assert all(label and outline == "solid" for _, label, outline in reached[:7]), reached
    browser.wait(lambda: browser.driver.find_elements("css selector", "#result table"))


# id, label and outline of what has the focus; the label of a hidden input of files shows its outline.
FOCUSED = """
const it = document.activeElement, label = it.labels && it.labels[0];
const shown = it.type === "file" ? label : it;
return [it.id, (label || it).textContent.trim(), getComputedStyle(shown).outlineStyle];
"""


# Whether everything in the result is within it.
FITS = """
const result = document.getElementById("result"), right = result.getBoundingClientRect().right + 0.5;
return [...result.querySelectorAll("*")].every(each => each.getBoundingClientRect().right <= right);
"""


@pytest.mark.server
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_width_in_both_themes(browser, complete, files, width, scheme):
    browser.display(width, scheme)
    page = Page(browser, complete)
    page.choose(1, files[0])
    page.choose(2, files[1])
    for name in ("verify", "identify", "classify"):
        page.act(name)
        assert browser.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.driver.execute_script(FITS)
    ground = browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (scheme == "light")
