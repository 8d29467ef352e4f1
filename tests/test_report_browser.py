"""report.html as a person opens it, on a phone and on a desktop: headless Chromium, no network, hostile texts."""

from pathlib import Path

import pytest

from tests.evaluation.reports import hostile_page
from tests.test_browser import CHROMIUM, DRIVER

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.mark.parametrize(("width", "columns"), [(390, 1), (1400, 3)])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_screen_and_shows_texts_as_text(tmp_path: Path, width: int, columns: int, dark: bool) -> None:
    selenium = pytest.importorskip("selenium.webdriver", reason="needs the browser extra: pip install selenium")
    page = hostile_page(tmp_path)
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    # No sandbox: it can't be set up inside a container, and only this project's own page is opened.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    try:
        # A window is never as narrow as a phone
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get(page.as_uri())
        driver.save_screenshot(tmp_path / "page.png")
        said = str(driver.execute_script("return document.body.innerText"))
        title = driver.title
        seen, whole = driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        requests = driver.execute_script("return performance.getEntriesByType('resource').length")
        counts = {tag: len(driver.find_elements("tag name", tag)) for tag in ("script", "img", "svg")}
        beside = driver.find_element("class name", "beside").value_of_css_property("grid-template-columns")
        paper = driver.find_element("tag name", "body").value_of_css_property("background-color")
        digits = driver.find_element("css selector", ".grid td").value_of_css_property("color")
    finally:
        driver.quit()
    assert title == "Evaluation of a tuned model"  # a script would have changed it
    assert "<script>document.title='run'</script>\"'&<b>\\u202egnol\\u2066x\\x07\\x1b[31m" in said
    assert counts == {"script": 0, "img": 0, "svg": 2}
    assert requests == 0
    assert seen == width and whole <= width
    assert len(beside.split()) == columns
    assert ("22, 22, 22" if dark else "255, 255, 255") in paper
    assert "17, 17, 17" in digits
