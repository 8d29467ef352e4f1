"""rows.html as a person opens it: headless Chromium, no network, and texts that would run if they could."""

from pathlib import Path

import pytest

from glm2core.text.rows_page import ROWS_PAGE, write_rows_page
from glm2core.text.tokenizer import train_tokenizer
from tests.test_browser import CHROMIUM, DRIVER
from tests.text.conftest import TRAINING_TEXTS
from tests.text.test_shown_rows import made_rows

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


def test_hostile_texts_are_shown_as_text(tmp_path: Path) -> None:
    selenium = pytest.importorskip("selenium.webdriver", reason="needs the browser extra: pip install selenium")
    write_rows_page(made_rows(tmp_path, train_tokenizer(TRAINING_TEXTS, 420)), tmp_path / ROWS_PAGE)
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    # No sandbox: it can't be set up inside a container, and only this project's own page is opened.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1600,1400"):
        options.add_argument(argument)
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    try:
        driver.get((tmp_path / ROWS_PAGE).as_uri())
        said = str(driver.execute_script("return document.body.innerText"))
        title = driver.title
        counts = {tag: len(driver.find_elements("tag name", tag)) for tag in ("script", "b", "h2", "span", "img")}
        requests = driver.execute_script("return performance.getEntriesByType('resource').length")
        supervised = driver.find_element("class name", "s").value_of_css_property("background-color")
    finally:
        driver.quit()
    assert title == "Rows as the model sees them"  # a script would have changed it
    assert "<script>document.title='run'</script>\"'&<b>\\u202egnol\\u2066x\\x07\\x1b[31m\\u200f</pre>" in said
    assert counts["script"] == counts["b"] == counts["img"] == 0
    assert counts["h2"] >= 5 and counts["span"] > 300
    assert requests == 0
    assert supervised.replace(" ", "").startswith(("rgb(205,234,192", "rgba(205,234,192"))
