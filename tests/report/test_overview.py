"""The page of a folder: every run, card and study of it, with links that lead somewhere, sorted as it is asked for."""

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from twoview.commands.runs import runs_command
from twoview.errors import UserError
from twoview.report.overview import overview

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
KNN = {"low": 0.2, "high": 0.9, "middle": 0.5}


@pytest.fixture(scope="module")
def root(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs, one that was killed, one of a study, a card of one and the study's report."""
    root = tmp_path_factory.mktemp("overview") / "runs & more"
    for name in (*KNN, "killed", "study/arm"):
        shutil.copytree(finished, root / name)
    for name, knn in KNN.items():
        summary = json.loads((root / name / "summary.json").read_text())
        (root / name / "summary.json").write_text(json.dumps(summary | {"knn": summary["knn"] | {"final": knn}}))
    (root / "killed" / "summary.json").unlink()
    (root / "killed" / "views.png").write_bytes(b"no picture")
    (root / "study" / "study.json").write_text(
        '{"title": "<b>", "arms": ["a", "b"], "seeds": [0], "axes": [{"key": "x"}]}'
    )
    (root / "study" / "report.html").touch()
    (root / "high" / "card").mkdir()
    (root / "high" / "card" / "card.json").write_text('{"name": "best", "linear": {"run": {"top1": 0.75}}}')
    (root / "high" / "card" / "card.html").touch()
    return root


@pytest.fixture(scope="module")
def html(root: Path) -> str:
    assert runs_command(["html", "--root", str(root)]) == 0
    return (root / "index.html").read_text()


def rows(html: str) -> list[str]:
    return re.findall(r"<tr style.*?</tr>", html, re.DOTALL)


def test_all_that_lies_there_has_a_line(html: str) -> None:
    names = [re.search(r">([^<>]+)</a>", row)[1] for row in rows(html)]  # type: ignore[index]
    assert sorted(names[:4]) == ["high", "killed", "low", "middle"]  # the run of the study stands in its report
    assert names[4:] == ["high/card", "study"]
    assert "running or killed" in html
    assert "75.0" in html
    assert "&lt;b&gt;" in html


def test_links_lead_somewhere_and_nothing_comes_from_elsewhere(html: str, root: Path) -> None:
    links = re.findall(r'href="([^"]+)"', html)
    assert len(links) >= 9
    for link in links:
        assert (root / unquote(link)).exists(), link
    assert "<script" not in html
    assert set(re.findall(r'src="([a-z]+):', html)) == {"data"}
    assert sum(row.count("data:image/png") for row in rows(html)) == 3  # of the runs whose sheet is one


def test_a_folder_without_anything_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run, card or study below"):
        overview(tmp_path, tmp_path / "index.html")
    with pytest.raises(UserError, match="there is no folder"):
        overview(tmp_path / "nowhere", tmp_path / "index.html")


@pytest.fixture(scope="module")
def driver(html: str, root: Path) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and its chromedriver")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1300"):
        options.add_argument(word)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.get(f"http://127.0.0.1:{server.server_port}/index.html")
    yield driver
    driver.quit()
    server.shutdown()
    server.server_close()


def test_a_click_sorts(driver: Any) -> None:
    """As the eye reads it, from top to bottom; what has no number is last in both directions."""
    seen: Callable[[], list[str]] = lambda: [  # noqa: E731
        row.text.split("\n")[0]
        for row in sorted(
            driver.find_elements("css selector", "#sort-runs tbody tr"), key=lambda row: row.location["y"]
        )
    ]
    arrow = "label[for=sort-runs-6{}]"
    driver.find_element("css selector", arrow.format("d")).click()
    assert seen() == ["high", "middle", "low", "killed"]
    driver.find_element("css selector", arrow.format("u")).click()
    assert seen() == ["low", "middle", "high", "killed"]
    assert driver.find_element("css selector", "#sort-runs-6u").is_selected()
