"""The demo's page in Chromium: streams, survives hostile prompts, asks no foreign host."""

import re
import socket

import pytest

pytest.importorskip("gradio", reason="the page is drawn by gradio: the extra demo")

from playwright.sync_api import expect, sync_playwright  # noqa: E402

from tests.workbook.browser import FLAGS, chromium  # noqa: E402
from workbook.demo import EXAMPLES, MOST_CHARACTERS, load_demo  # noqa: E402
from workbook.demo_page import launch  # noqa: E402
from workbook.progress import course_root  # noqa: E402

pytestmark = pytest.mark.browser


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served():
    port = free_port()
    adapter = course_root() / "workbook" / "assets" / "adapters" / "sft"
    page = launch(load_demo([adapter]), port=port, wait=False, max_new_tokens=100)
    yield port
    page.close()


@pytest.fixture
def page(served):
    """The open page, and what must not happen on it: foreign hosts, dialogs, script errors."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        hosts, wrong = set(), []
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss()))
        page.goto(f"http://127.0.0.1:{served}")
        page.get_by_role("button", name="Ask").wait_for(timeout=60_000)
        yield page
        browser.close()
    assert {host for host in hosts if host} == {f"127.0.0.1:{served}"} and wrong == []


def ask(page, text: str) -> None:
    page.get_by_label("Question").fill(text)
    page.get_by_role("button", name="Ask").click()


def test_both_models_answer_with_score_and_graded_answer(page, tmp_path):
    ask(page, EXAMPLES["maths"])
    facts = page.get_by_label("graded answer, reward model")
    for place in range(2):
        expect(facts.nth(place)).to_have_value(
            re.compile(r"answer.*reward model: [+-]"), timeout=60_000
        )
    assert page.get_by_label("sft").input_value().strip()
    page.screenshot(path=tmp_path / "answered.png")


def test_the_answer_grows_while_it_is_written(page):
    box = page.get_by_label("sft").element_handle()
    page.evaluate(
        """box => {
            window.lengths = [0];
            setInterval(() => {
                if (box.value.length !== lengths.at(-1)) lengths.push(box.value.length);
            }, 10);
        }""",
        box,
    )
    ask(page, EXAMPLES["maths"])
    facts = page.get_by_label("graded answer, reward model").nth(1)
    expect(facts).to_have_value(re.compile("answer"), timeout=60_000)
    lengths = page.evaluate("lengths")
    assert lengths == sorted(lengths) and len(lengths) > 3
    assert lengths[-1] == len(page.get_by_label("sft").input_value())


def test_a_hostile_prompt_stays_a_text(page, tmp_path):
    ask(page, "<img src=x onerror=alert(1)><script>alert(2)</script> {{7*7}} \u202e <|endoftext|>")
    facts = page.get_by_label("graded answer, reward model").nth(1)
    expect(facts).to_have_value(re.compile("answer"), timeout=60_000)
    assert page.locator("img[src='x']").count() == 0
    page.screenshot(path=tmp_path / "hostile.png")


def test_an_empty_and_a_huge_question_are_bounded(page, tmp_path):
    ask(page, "   ")
    expect(page.get_by_label("Note")).to_have_value("There is no question: type one.")
    question = page.get_by_label("Question")
    question.fill("x" * (MOST_CHARACTERS + 500))
    assert len(question.input_value()) == MOST_CHARACTERS
    question.evaluate("box => box.removeAttribute('maxlength')")
    ask(page, "x" * (MOST_CHARACTERS + 1))
    assert len(question.input_value()) == MOST_CHARACTERS + 1
    expect(page.get_by_label("Note")).to_have_value(re.compile("more than 4,000 characters"))
    page.screenshot(path=tmp_path / "bounded.png")
