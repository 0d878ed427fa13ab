"""The server's page in a real browser; needs Debian's chromium and chromium-driver."""

from __future__ import annotations

import pytest
from served import make_bundle, serving
from test_report_browser import FLAGS

from leafembed.serve.specs import ModelSpec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    good = make_bundle(tmp_path_factory.mktemp("good"))
    exits = make_bundle(tmp_path_factory.mktemp("exits"), exits=[1])  # says so; it is not opened here
    bad = make_bundle(tmp_path_factory.mktemp("bad"), kept=0.7, dim=300)
    specs = [ModelSpec("leaf", good), ModelSpec("refused", bad), ModelSpec("whole", exits)]
    specs.append(ModelSpec("early", exits, exit=1))
    with serving(specs, allow_failed=True) as running:
        yield running


@pytest.fixture(params=[1280, 390], ids=["laptop", "phone"])
def browser(request, served, tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option(
        "mobileEmulation", {"deviceMetrics": {"width": request.param, "height": 900, "pixelRatio": 1, "touch": False}}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    driver.implicitly_wait(10)
    driver.get(f"{served.url}/ui")
    yield driver
    driver.quit()


def compare(browser, text):
    area = browser.find_element("id", "texts")
    area.clear()
    area.send_keys(text)
    browser.find_element("id", "go").click()


def test_texts_are_compared(browser):
    assert browser.find_element("css selector", "#verdict.yes").text.startswith("passed: ")
    compare(browser, "red\ngreen two\nred")
    cells = [cell.text for cell in browser.find_elements("css selector", "#map td")]
    assert len(cells) == 9
    assert cells[0] == cells[2] == cells[8] == "1.00"
    assert cells[1] == cells[3]
    assert "7 tokens" in browser.find_element("id", "said").text
    wide = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_model_dim_and_prompt_are_chosen(browser):
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element("id", "model")).select_by_value("refused")
    assert browser.find_element("css selector", "#verdict.no").text.startswith("refused: ")
    assert [o.text for o in Select(browser.find_element("id", "dim")).options] == ["all 300", "256", "128", "64"]
    Select(browser.find_element("id", "dim")).select_by_value("64")
    Select(browser.find_element("id", "prompt")).select_by_value("query")
    compare(browser, "red\nblue")
    assert len(browser.find_elements("css selector", "#map td")) == 4


def test_an_exit_is_chosen_where_a_name_has_it(browser):
    from selenium.webdriver.support.ui import Select, WebDriverWait

    exits, model = (Select(browser.find_element("id", name)) for name in ("exit", "model"))
    assert browser.find_element("css selector", "#verdict.yes")
    assert [option.text for option in exits.options] == ["all layers"]
    model.select_by_value("whole")
    WebDriverWait(browser, 10).until(lambda _: len(exits.options) == 2)
    assert [option.text for option in exits.options] == ["all layers", "layer 1"]
    exits.select_by_visible_text("layer 1")
    assert model.first_selected_option.text == "early"
    WebDriverWait(browser, 10).until(lambda it: "from layer 1" in it.find_element("id", "verdict").text)
    assert exits.first_selected_option.text == "layer 1"


def test_what_goes_wrong_is_said(browser):
    compare(browser, "\n".join(["red"] * 41))
    assert browser.find_element("css selector", "#said.no").text == "Got 41 texts, a map shows at most 40."
    compare(browser, "<img src=x onerror=alert(1)>\nred")
    assert len(browser.find_elements("css selector", "#map td")) == 4
    browser.implicitly_wait(0)
    assert browser.find_elements("css selector", "#map img") == []
