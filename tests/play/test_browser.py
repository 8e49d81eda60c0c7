"""The playground as a person meets it: real clicks in a headless Chromium."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from twoview.cli.configs import compose as composed_by
from twoview.commands.play import scene_of
from twoview.play.server import server

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
pytest.importorskip("werkzeug")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its chromedriver")


class Page:
    """The page in a browser. `after` waits until what an action has asked for is shown."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def shown(self) -> int:
        return int(self.driver.execute_script("return document.body.dataset.shown || 0"))

    def after(self, action: Callable[[], Any]) -> None:
        before = self.shown()
        action()
        WebDriverWait(self.driver, 30, 0.05).until(lambda _: self.shown() > before)

    def open(self) -> None:
        self.driver.get("about:blank")
        self.after(lambda: self.driver.get(self.address))

    def pictures(self, kind: str) -> list[str]:
        return [image.get_attribute("src") for image in self.all(f".{kind} img")]

    def policy(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.one("#yaml").text)
        return found


@pytest.fixture(scope="module")
def page(finished: Path) -> Iterator[Page]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twoview.commands.play.overrides", list)
        scene = scene_of(composed_by("play", [f"ckpt={finished}", "images=8"]).config)
    found = server(scene, 0)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1300"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield Page(driver, f"http://127.0.0.1:{found.port}/")
    driver.quit()
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture(autouse=True)
def fresh(page: Page) -> Iterator[None]:
    page.open()
    yield
    refused = [entry for entry in page.driver.get_log("browser") if "400" not in entry["message"]]
    assert not refused, "no error in the console, nothing that the policy of the page refused"


def test_it_opens_with_pairs_and_what_the_encoder_makes_of_them(page: Page) -> None:
    assert len(page.all(".card")) == 4
    assert len(page.all("#strip button")) == 8
    for figure in page.all(".card img"):
        assert int(figure.get_attribute("naturalWidth")) >= 16
    assert "overlap" in page.one(".card .overlap").text
    assert [one.get_attribute("data-space") for one in page.all(".card:first-child .cosine")] == ["h", "z"]
    assert page.one("#status").text == ""
    loaded = page.driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert loaded
    assert all(name.startswith((page.address, "data:")) for name in loaded), "nothing from elsewhere"


def test_a_slider_changes_views_and_policy(page: Page) -> None:
    views, cosines = page.pictures("view0"), [one.text for one in page.all(".cosine b")]
    slider = page.one("#crop-scale-from")
    page.after(lambda: slider.send_keys(Keys.END))  # to the right end: every crop is the whole image
    assert page.policy()["ops"]["crop"]["scale"] == [1, 1]
    assert page.pictures("view0") != views
    assert [one.text for one in page.all(".cosine b")] != cosines
    assert {one.text for one in page.all(".overlap")} == {"overlap 100 %"}
    assert page.one("#words").text.endswith("'augment.ops.crop.scale=[1,1]'")


def test_an_operation_is_switched_off_and_everything_reset(page: Page) -> None:
    views = page.pictures("view1")
    for name in ("crop", "flip", "jitter", "gray"):
        page.after(page.one(f"#{name}-on").click)
    assert page.policy()["ops"] == {}
    assert page.pictures("view0") == page.pictures("original")
    page.after(page.one("#reset").click)
    assert page.pictures("view1") == views


def test_images_are_chosen_by_clicks(page: Page) -> None:
    fifth = page.all("#strip button")[4]
    page.after(fifth.click)
    assert fifth.get_attribute("aria-pressed") == "true"
    assert [card.get_attribute("data-number") for card in page.all(".card")][-1] == fifth.get_attribute("data-number")
    page.after(fifth.click)
    assert len(page.all(".card")) == 4


def test_another_epoch_has_other_views(page: Page) -> None:
    views = page.pictures("view0")
    page.after(page.one("#next").click)
    assert page.one("#epoch").get_attribute("value") == "1"
    assert page.pictures("view0") != views
    page.after(lambda: page.one("#epoch").send_keys(Keys.BACKSPACE, "0"))
    assert page.pictures("view0") == views


def test_a_value_that_an_operation_refuses_is_answered_there(page: Page) -> None:
    views = page.pictures("view0")
    field = page.one("#flip-p + input")
    page.after(lambda: field.send_keys(Keys.CONTROL, "a", Keys.NULL, "7"))
    assert "must lie in [0, 1], not 7" in page.one("#status").text
    assert page.pictures("view0") == views
    page.after(lambda: field.send_keys(Keys.BACKSPACE, "1"))
    assert page.one("#status").text == ""


def test_the_policy_is_copied(page: Page) -> None:
    wished = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.address}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", wished)
    page.one("#copy-yaml").click()
    WebDriverWait(page.driver, 10).until(lambda _: page.one("#status").text == "copied")
    copied = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert yaml.safe_load(copied) == page.policy()
