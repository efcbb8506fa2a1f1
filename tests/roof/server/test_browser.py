"""The page in a real browser: a fact is taught in one tab and undone in another, by the page's own rules."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from where import ROOT

from loredit.server.app import Server, application, bound, url
from loredit.server.batching import Batcher
from loredit.server.jobs import Jobs
from loredit.server.page import Page, attach
from loredit.session import Session

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 240_000  # milliseconds
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


@contextmanager
def browsing(tabs: int) -> Iterator[tuple[list[Any], list[str]]]:
    """Tabs of one browser, and what their consoles say but that a request was refused, which the page tells itself."""
    said: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context()
        context.set_default_timeout(PATIENCE)
        playwright.expect.set_options(PATIENCE)
        opened = [context.new_page() for _ in range(tabs)]
        for tab in opened:
            tab.on("console", lambda message: None if "422" in message.text else said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.on("dialog", lambda dialog: dialog.accept())
        yield opened, said
        browser.close()


def teach(tab: Any, prompt: str, target_new: str, subject: str) -> None:
    form = tab.locator("form[hx-post='/learn']")
    form.locator("[name=prompt]").fill(prompt)
    form.locator("[name=target_new]").fill(target_new)
    form.locator("[name=subject]").fill(subject)
    form.locator("summary").click()
    form.get_by_text("Propose some").click()
    playwright.expect(form.locator("[name=neighbours]")).to_have_value(re.compile("The capital of Germany is"))
    with tab.expect_response("**/learn"):  # a tab that is closed at once takes its request along
        form.get_by_role("button", name="Learn").click()


def ask(tab: Any, prompt: str) -> Any:
    """The newest answer, when it is written to its end."""
    tab.locator("form[hx-post='/ask'] textarea").fill(prompt)
    with tab.expect_response("**/ask"):
        tab.get_by_role("button", name="Ask", exact=True).first.click()
    answer = tab.locator("#answers .answer").first
    playwright.expect(answer.locator(".note")).not_to_have_text("…")
    for side in ("without", "edited"):
        playwright.expect(answer.locator(f"[sse-swap={side}]")).not_to_be_empty()
    return answer


def side(answer: Any, name: str) -> Any:
    return playwright.expect(answer.locator(f"[sse-swap={name}]"))


def import_list(tab: Any, name: str, text: str) -> None:
    file = {"name": name, "mimeType": "text/plain", "buffer": text.encode()}
    tab.locator("input[type=file]").set_input_files(file)
    with tab.expect_response("**/list"):
        tab.locator("form[hx-post='/list'] button.main").click()


def looked_at(tab: Any) -> None:
    """Nothing is wider than the screen, a phone's or a desk's; an error is told where one is."""
    for width, height in ((1280, 900), (360, 700)):
        tab.set_viewport_size({"width": width, "height": height})
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        import_list(tab, "bad.json", "{")
        tab.evaluate("scrollTo(0, document.body.scrollHeight)")
        playwright.expect(tab.locator("#message")).to_contain_text("bad.json")
        playwright.expect(tab.locator("#message")).to_be_in_viewport()
        teach(tab, "The capital of France is", "Oslo", "France")
        playwright.expect(tab.locator("#message")).to_be_empty()
        tab.locator(".job").first.get_by_role("button", name=re.compile("Stop|Discard")).click()
        tab.reload()


def test_a_fact_is_taught_kept_and_undone_in_two_tabs(address, tmp_path):
    with browsing(2) as ((tab, other), said):
        for each in (tab, other):
            each.on("request", lambda request: None if request.url.startswith(address) else said.append(request.url))
            each.goto(address)
        teach(tab, "The capital of France is", "Rome", "France")
        tab.close()  # what was begun goes on
        other.reload()
        other.get_by_role("button", name="Keep").click()
        playwright.expect(other.locator("#facts")).to_contain_text("The capital of France is Rome")
        answer = ask(other, "The capital of France is")
        playwright.expect(answer.locator(".note")).to_contain_text("score")
        side(answer, "edited").to_contain_text("Rome")
        side(answer, "without").not_to_contain_text("Rome")
        other.locator("#facts summary").click()
        other.get_by_role("button", name="Undo").click()
        playwright.expect(other.locator("#facts")).to_contain_text("Nothing yet")
        looked_at(other)
    assert said == []
    assert not (tmp_path / "edits.json").exists()


# The real thing: the command, in a process of its own, with the default model


@contextmanager
def command(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``loredit ui FOLDER`` and where it is."""
    words = [sys.executable, "-m", "loredit", "ui", str(folder), "--port", str(port)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


LIST = "prompt,target_new,subject\n" + "".join(
    f"The capital of {{}} is,{capital},{country}\n"
    for country, capital in (("Spain", "Seville"), ("Italy", "Milan"), ("Japan", "Osaka"), ("Norway", "Bergen"))
)


@pytest.mark.slow
@pytest.mark.pretrained
def test_the_default_model_is_edited_through_a_restart_in_two_tabs(tmp_path):
    with browsing(2) as ((tab, other), said):
        with command(tmp_path) as (_, address):
            tab.goto(address)
            teach(tab, "The capital of France is", "Lyon", "France")
            card = tab.locator(".job").first
            playwright.expect(card.locator(".mark.learned").first).to_be_visible()
            playwright.expect(card).to_contain_text("Neighbours (locality)")
            card.get_by_role("button", name="Keep").click()
            answer = ask(tab, "The capital of France is")
            side(answer, "edited").to_contain_text("Lyon")
            side(answer, "without").to_contain_text("Paris")
            import_list(tab, "capitals.csv", LIST)
            playwright.expect(tab.locator(".job progress").first).to_be_visible()
        with command(tmp_path, int(address.rpartition(":")[2])):
            tab.reload()
            said.clear()  # of streams that have broken off
            other.goto(address)
            for each in (tab, other):
                playwright.expect(each.locator(".job").first).to_contain_text("4 learned")
            other.locator(".job").first.get_by_role("button", name="Keep").click()
            playwright.expect(other.locator("#facts li")).to_have_count(5)
            side(ask(other, "The capital of Spain is"), "edited").to_contain_text("Seville")
            tab.reload()
            france = tab.locator("#facts li", has_text="The capital of France is")
            france.locator("summary").click()
            france.get_by_role("button", name="Undo").click()
            playwright.expect(tab.locator("#facts")).not_to_contain_text("Lyon")
            side(ask(tab, "The capital of France is"), "edited").to_contain_text("Paris")
            side(ask(tab, "The capital of Spain is"), "edited").to_contain_text("Seville")
            looked_at(tab)
    assert said == []
