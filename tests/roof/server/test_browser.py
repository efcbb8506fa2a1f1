"""The page in a real browser: a fact is taught in one tab and undone in another, by the page's own rules."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loredit.server.app import Server, application, bound, url
from loredit.server.batching import Batcher
from loredit.server.jobs import Jobs
from loredit.server.page import Page, attach
from loredit.session import Session

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # playwright's own pipes
]


@pytest.fixture
def address(opened, model_folder: Path, tmp_path: Path) -> Iterator[str]:
    """A server on a port of its own, in a thread."""
    session = Session(tmp_path, model=str(model_folder / "model"), encoder="base", grows=True)
    jobs = Jobs(session)
    page = Page(Batcher(session), jobs)
    app = application(page.batcher, "edits", "127.0.0.1", ending=jobs.close)
    attach(app, page)
    with bound("127.0.0.1", 0) as listening:
        server = Server(app, page.ending.set)
        thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
        thread.start()
        yield url("127.0.0.1", listening)
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def test_a_fact_is_taught_kept_and_undone_in_two_tabs(address, tmp_path):
    said: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context()
        context.set_default_timeout(60_000)
        tab, other = context.new_page(), context.new_page()
        for each in (tab, other):
            each.on("console", lambda message: said.append(message.text))
            each.on("pageerror", lambda error: said.append(str(error)))
            each.on("request", lambda request: None if request.url.startswith(address) else said.append(request.url))
            each.goto(address)
        form = tab.locator("form[hx-post='/learn']")
        form.locator("[name=prompt]").fill("The capital of France is")
        form.locator("[name=target_new]").fill("Rome")
        form.locator("[name=subject]").fill("France")
        form.locator("summary").click()
        form.get_by_text("Propose some").click()
        playwright.expect(form.locator("[name=neighbours]")).to_have_value(re.compile("The capital of Germany is"))
        with tab.expect_response("**/learn"):  # a tab that is closed at once takes its request along
            form.get_by_role("button", name="Learn").click()
        tab.close()  # what was begun goes on
        other.reload()
        other.get_by_role("button", name="Keep").click()
        playwright.expect(other.locator("#facts")).to_contain_text("The capital of France is Rome")
        other.locator("form[hx-post='/ask'] textarea").fill("The capital of France is")
        other.get_by_role("button", name="Ask", exact=True).first.click()
        playwright.expect(other.locator("#answers .note")).to_contain_text("score")
        playwright.expect(other.locator("#answers [sse-swap=edited]")).to_contain_text("Rome")
        playwright.expect(other.locator("#answers [sse-swap=without]")).not_to_contain_text("Rome")
        other.on("dialog", lambda dialog: dialog.accept())
        other.locator("#facts summary").click()
        other.get_by_role("button", name="Undo").click()
        playwright.expect(other.locator("#facts")).to_contain_text("Nothing yet")
        other.locator("input[type=file]").set_input_files(
            {"name": "bad.json", "mimeType": "text/plain", "buffer": b"{"}
        )
        other.locator("form[hx-post='/list'] button.main").click()
        playwright.expect(other.locator("#message")).to_contain_text("bad.json")
        wide = other.evaluate("document.documentElement.scrollWidth <= innerWidth")
        other.set_viewport_size({"width": 360, "height": 700})
        assert wide
        assert other.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
    assert [text for text in said if "422" not in text] == []
    assert not (tmp_path / "edits.json").exists()
