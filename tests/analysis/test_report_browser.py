"""The report in a real browser: it runs, without a network; what it shows is reachable, readable, and never executed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser, needs_browser
from report_records import HOSTILE, card, language_model

from analysis.report.content import gather
from analysis.report.page import render

pytestmark = needs_browser
READY = "document.documentElement.dataset.ready"
DRAWN = "document.querySelectorAll('.plot[data-drawn]').length"
READY_WITHIN = (
    1.0  # processor seconds of the tab until 500 runs are ready; how long that takes depends on what else the cores do
)
DRAWN_WITHIN = 6.0  # and until any part of them is drawn, the plot library's start included
LARGEST = 6e6  # bytes of such a page

# Relative luminance and contrast as in WCAG 2.2; the background is the nearest ancestor's that has one.
CONTRASTS = """(() => {
  const channel = c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
  const colour = text => text.match(/[\\d.]+/g).map(Number);
  const behind = node => {
    const own = colour(getComputedStyle(node).backgroundColor);
    return own.length < 4 || own[3] ? own : node.parentElement ? behind(node.parentElement) : [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !node.checkVisibility() || node.closest('script, [aria-hidden]')) continue;
    const style = getComputedStyle(node);
    const ink = colour(node.closest('svg') ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(behind(node))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), walk.currentNode.textContent.trim().slice(0, 40), style.color]);
  }
  return found.sort((x, y) => x[0] - y[0]);
})()"""

FOCUS = """(one => [one.closest('section')?.id, one.tagName, one.textContent.slice(0, 12)].join(' '))(document.activeElement)"""
NAMELESS = {  # what must have a name, and how it has none
    "input, select": "one => !one.labels.length",
    ".plot": "one => one.getAttribute('role') !== 'img' || !one.getAttribute('aria-label')",
    "table": "one => !one.tHead || [...one.querySelectorAll('th')].some(th => !th.scope)",
    "button, a, summary": "one => !(one.textContent || one.getAttribute('aria-label')).trim()",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, one of whose names and texts is an attack, a card, and a folder that is skipped."""
    out = tmp_path_factory.mktemp("browser")
    language_model(out / "runs" / "a", "dpo", name="a")
    language_model(out / "runs" / "b", HOSTILE, name=HOSTILE, texts=(HOSTILE, HOSTILE), labels=HOSTILE)
    card(out / "runs" / "card")
    language_model(out / "runs" / "broken", "dpo")
    (out / "runs" / "broken" / "run.json").unlink()
    (out / "report.html").write_bytes(render(gather([out / "runs"], 6), "A report", "command"))
    return out / "report.html"


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as page:
        yield page


def opened(tab: Page, report: Path, **size: int) -> Page:
    """The report with every part made."""
    tab.events.clear()
    tab.open(report, **size)
    tab.wait(READY)
    plots = tab.evaluate("document.querySelectorAll('section[id] .part').length")
    for index in range(plots):
        tab.evaluate(f"document.querySelectorAll('.part')[{index}].scrollIntoView()")
        tab.wait(f"document.querySelectorAll('.part')[{index}].childElementCount")
    tab.wait(f"{DRAWN} === 3")
    return tab


def test_a_script_in_a_text_is_shown_and_does_not_run(tab: Page, report: Path) -> None:
    page = opened(tab, report)
    choose(page, "#samples select", 0)  # the attack sorts before the other run
    assert page.evaluate("document.querySelector('#samples td').textContent").startswith(HOSTILE)
    assert HOSTILE in page.evaluate("document.querySelector('#frontiers fieldset').textContent")  # a method's name
    page.evaluate("document.querySelector('#runs td button[aria-label*=hacked]').click()")
    assert page.evaluate("document.querySelector('#manifest').open")
    assert "<script>" in page.evaluate("document.querySelector('#manifest pre').textContent")
    assert page.evaluate("window.hacked ?? 0") == 0
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.errors() == []
    # The policy is a second wall: markup that did get in could not act.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='window.hacked = 3'>`)")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 4'}))"
    )
    page.evaluate("new Promise(done => setTimeout(done, 300))")
    assert page.evaluate("window.hacked ?? 0") == 0


def test_nothing_is_asked_of_a_network(tab: Page, report: Path) -> None:
    page = opened(tab, report)
    assert set(page.requests()) == {report.resolve().as_uri()}
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"


def test_a_marker_says_run_strength_and_step(tab: Page, report: Path) -> None:
    page = opened(tab, report)
    choose(page, "#frontiers select", 1)
    page.evaluate("new Promise(done => setTimeout(done, 300))")
    page.evaluate("document.querySelector('#frontiers .plot').scrollIntoView({block: 'center'})")
    x, y = page.evaluate(
        "(() => { const points = document.querySelectorAll('#frontiers .plot .trace:first-child .point');"
        "const box = points[2].getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    page.hover(x, y)
    page.wait("document.querySelector('#frontiers .hoverlayer').textContent.includes('strength')")
    said = page.evaluate("document.querySelector('#frontiers .hoverlayer').textContent")
    for words in ("dpo(beta=0.1)", "test/a", "strength 0.1", "step 20", "KL ", "reward "):
        assert words in said, said


def test_all_of_it_works_from_the_keyboard(tab: Page, report: Path) -> None:
    page = opened(tab, report)
    page.evaluate("scrollTo(0, 0), document.activeElement.blur()")
    page.evaluate("history.replaceState(null, '', location.pathname)")
    page.press("Tab", 9)
    if page.evaluate("document.activeElement.className") != "skip":  # the first stop of a page that was just loaded
        page.evaluate("document.querySelector('.skip').focus()")
    page.press("Enter", 13, "\r")
    page.wait("location.hash === '#main'")
    reached: list[str] = []
    for _ in range(150):
        page.press("Tab", 9)
        reached.append(page.evaluate(FOCUS))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
        if reached[-1] == "runs BUTTON manifest":
            break
    stops = (
        "claims A C1",
        "frontiers SELECT",
        "frontiers INPUT",
        "frontiers SUMMARY",
        "curves SELECT",
        "benchmarks BUTTON adjusted p",
        "samples SELECT",
    )
    for stop in stops:
        assert any(one.startswith(stop) for one in reached), f"{stop} not in {reached}"
    page.press("Enter", 13, "\r")
    page.wait("document.querySelector('#manifest').open")
    page.press("Escape", 27)
    page.wait("!document.querySelector('#manifest').open")
    assert page.evaluate("document.activeElement.textContent") == "manifest"  # back where one was
    # A method is hidden by its checkbox, and what is drawn can be read as a table.
    page.evaluate("document.querySelector('#frontiers fieldset input').focus()")
    before = page.evaluate("document.querySelectorAll('#frontiers .plot .point').length")
    page.press(" ", 32, " ")
    page.wait(f"document.querySelectorAll('#frontiers .plot .point').length < {before}")
    page.press(" ", 32, " ")
    page.wait(f"document.querySelectorAll('#frontiers .plot .point').length === {before}")
    page.evaluate("document.querySelector('#frontiers summary').focus()")
    page.press("Enter", 13, "\r")
    page.wait("document.querySelectorAll('#frontiers details table tbody tr').length > 2")
    assert page.errors() == []


def test_names_roles_and_contrast(tab: Page, report: Path) -> None:
    page = opened(tab, report)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert page.evaluate("document.documentElement.lang") == "en"
    for what, wrong in NAMELESS.items():
        assert (
            page.evaluate(f"[...document.querySelectorAll('{what}')].filter({wrong}).map(one => one.outerHTML)") == []
        )
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, main h2, main h3, main h4')].map(one => Number(one.tagName[1]))"
    )
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert contrasts[0][0] >= 4.5, contrasts[:5]
    colours = page.evaluate(
        "[...document.querySelectorAll('fieldset svg line')].map(one => one.getAttribute('stroke'))"
    )
    assert colours and all(contrast_on_white(colour) >= 3 for colour in colours)  # graphics: 3 to 1


def choose(page: Page, selector: str, index: int) -> None:
    """What a reader does with a list."""
    page.evaluate(
        f"(one => {{ one.value = {index}; one.dispatchEvent(new Event('change')); }})(document.querySelector('{selector}'))"
    )


def contrast_on_white(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_a_telephone_shows_it_without_scrolling_sideways(tab: Page, report: Path) -> None:
    page = opened(tab, report, width=360, height=740)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_five_hundred_runs_open_fast(tab: Page, tmp_path: Path) -> None:
    for number in range(500):
        method = ("dpo", "ipo", "maxpo", "dpo+forward_kl", "simpo")[number % 5]
        language_model(
            tmp_path / "runs" / str(number),
            method,
            name=f"{method}-{number}",
            seed=number // 50,
            strength=0.1 * (1 + number % 7),
            labels=("near_deterministic", "noisy")[number % 2],
            texts=(f"before {number} " * 12, f"after {number} " * 12),
            steps=400,
        )
    begun = time.process_time()
    page = render(gather([tmp_path / "runs"], 8), "Five hundred", "command")
    made = time.process_time() - begun
    (tmp_path / "report.html").write_bytes(page)
    tab.patience = 300.0
    tab.send("Performance.enable", timeDomain="threadTicks")

    def spent() -> float:
        """Processor seconds of the tab."""
        return next(
            one["value"] for one in tab.send("Performance.getMetrics")["metrics"] if one["name"] == "TaskDuration"
        )

    started, begun = time.monotonic(), spent()
    tab.open(tmp_path / "report.html")
    tab.wait(READY)
    took, ready = time.monotonic() - started, spent()
    ready -= begun if ready >= begun else 0.0  # a new process begins at 0
    shown = {}
    for part in ("frontiers", "curves", "benchmarks", "samples", "runs"):
        begun = spent()
        tab.evaluate(f"document.getElementById('{part}').scrollIntoView()")
        done = f"#{part} .plot[data-drawn]" if part in ("frontiers", "curves") else f"#{part} tbody tr"
        tab.wait(f"document.querySelector('{done}')")
        shown[part] = spent() - begun
    memory = tab.evaluate("performance.memory.usedJSHeapSize")
    paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    times = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in shown.items())
    print(
        f"\n{len(page) / 1e6:.2f} MB made in {made:.0f} s of processor time, first paint after {paint:.0f} ms, ready after {took:.2f} s; "
        f"processor time of the tab until ready {ready:.2f} s, then {times}; heap {memory / 1e6:.0f} MB"
    )
    assert len(page) < LARGEST and ready < READY_WITHIN and max(shown.values()) < DRAWN_WITHIN
    assert tab.errors() == []
