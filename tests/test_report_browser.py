"""The page in a real browser; needs Debian's chromium and chromium-driver."""

from __future__ import annotations

import time

import pytest
from test_report import neighbours
from tiny import sample_manifest

from leafembed.ship.report import render_report

pytestmark = pytest.mark.slow

FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update",
         "disable-sync", "no-first-run", "hide-scrollbars")  # fmt: skip


@pytest.fixture(params=[1280, 390], ids=["laptop", "phone"])
def browser(request, tmp_path):
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
    manifest = sample_manifest()
    for entry in manifest["training"]["history"]:
        for losses in (entry, entry.get("validation", {})):
            losses |= dict.fromkeys(("token_distillation", "contrastive"), losses.get("distillation"))
    (tmp_path / "report.html").write_text(render_report(manifest, neighbours()), encoding="utf-8")
    driver.get(f"file://{tmp_path / 'report.html'}")
    yield driver
    driver.quit()


def column(browser, index):
    cells = browser.find_elements("css selector", f"table.sortable tbody tr td:nth-child({index})")
    table = browser.find_element("css selector", "table.sortable")
    rows = table.find_elements("css selector", "tbody tr")
    return [cell.get_attribute("textContent").strip() for cell in cells[: len(rows)]]


def click(browser, index):
    button = browser.find_elements("css selector", "table.sortable th button")[index]
    browser.execute_script("arguments[0].click()", button)


def test_a_heading_sorts_its_column_down_then_up(browser):
    click(browser, 3)  # teacher
    down = [float(cell) for cell in column(browser, 4)]
    assert down == sorted(down, reverse=True)
    click(browser, 3)
    assert [float(cell) for cell in column(browser, 4)] == down[::-1]
    click(browser, 1)  # language: words go up first
    words = column(browser, 2)
    assert words == sorted(words)


def test_nothing_is_wider_than_the_screen_and_every_plot_is_drawn(browser):
    inner, scroll = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert scroll <= inner
    for name in ("losses", "dev", "languages", "speed"):
        left, right, marks = browser.execute_script(
            "const box = document.querySelector(`#${arguments[0]} .main-svg`).getBoundingClientRect();"
            "return [box.left, box.right, document.querySelectorAll(`#${arguments[0]} .trace`).length]", name
        )  # fmt: skip
        assert 0 <= left < right <= inner, name
        assert marks > 0, name


def test_names_of_curves_and_scores_are_seen_without_scrolling(browser):
    legend, bar, check, score = browser.execute_script(
        "const box = what => document.querySelector(what).getBoundingClientRect();"
        "return [document.querySelectorAll('#losses .legendtext').length, box('#losses .scrollbar').height,"
        " box('td.wrap').width, box('table.sortable td:nth-child(4)').right]"
    )
    assert legend == 10
    assert bar == 0
    assert check >= 150
    assert score <= browser.execute_script("return innerWidth")


def test_a_name_in_the_legend_hides_its_curve_and_shows_it_again(browser):
    def shown():
        return browser.execute_script(
            "return document.querySelector('#losses').data.map(one => [undefined, true].includes(one.visible))"
        )

    before = shown()
    toggle = browser.find_element("css selector", "#losses .legendtoggle")
    for expected in (not before[0], before[0]):
        # plotly waits for a second click, which would hide all the others
        browser.execute_script(
            "for (const kind of ['mousedown', 'mouseup'])"
            " arguments[0].dispatchEvent(new MouseEvent(kind, {bubbles: true, view: window}))", toggle
        )  # fmt: skip
        end = time.monotonic() + 10
        while shown()[0] != expected and time.monotonic() < end:
            time.sleep(0.05)
        assert shown() == [expected, *before[1:]]
        toggle = browser.find_element("css selector", "#losses .legendtoggle")


def test_examples_of_disagreement_can_be_read(browser):
    example = browser.find_element("css selector", "details[open]")
    assert example.is_displayed()
    assert "nearest for the teacher" in example.text
    assert "<script>" in browser.find_element("css selector", "main, body").get_attribute("textContent")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_either_scheme_and_the_console_is_clean(browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    ink, back = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    assert contrast(ink, back) >= 7
    assert (luminance(back) < 0.1) == (scheme == "dark")
    for what in (".xtick text", ".ytick text", ".legendtext", ".xtitle"):
        words = browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(one => getComputedStyle(one).fill)", what
        )
        assert words, what
        assert min(contrast(word, back) for word in words) >= 4.5, what
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def luminance(colour):
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])


def contrast(one, other):
    """Ratio of WCAG 2.1, 1 to 21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
