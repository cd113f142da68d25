"""The page at `/` in a real headless Chromium: on a real endpoint, and where the server is busy, locked or
gone."""

import httpx
import pytest
from harness import chromium
from harness.scripted_api import Api, ScriptedEngine, listening
from harness.served import QUESTIONS

from benchmarks.ray_cluster import free_port
from stasc_ray.generation.samples import Sample
from stasc_ray.serving.keys import KeyRing, add_key

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(chromium.BINARY is None, reason="needs Debian's chromium: apt-get install chromium"),
]

DONE = "document.querySelector('#go').innerText === 'Ask'"
NO_WIDER_THAN_THE_SCREEN = "document.documentElement.scrollWidth <= window.innerWidth"
MARKUP = "<b>second</b><img src=x onerror=alert(1)>"


@pytest.fixture
def tab():
    with chromium.tab() as one:
        one.screen()
        yield one
        assert one.problems == []


class Markup(ScriptedEngine):
    """Corrects its answer to something that a careless page would render."""

    async def generate(self, token_ids, request, on_text=None) -> Sample:
        found = await super().generate(token_ids, request, on_text=None)
        text = MARKUP if found.text == "second" else found.text
        if on_text:
            on_text(text)
        return Sample(text, found.token_ids, found.finish_reason)


def ask(tab: chromium.Tab, question: str) -> None:
    """Type a question, press Enter, wait for the end."""
    tab.fill("#question", question)
    tab.press("Enter")
    tab.wait(DONE)


def without_marked(tab: chromium.Tab, side: str) -> str:
    """What is not marked as changed on a side, blanks aside."""
    kept = f"[...document.querySelector('{side}').childNodes].filter(node => node.nodeType === 3).map(node => node.data).join(' ')"
    return "".join(tab.js(kept).split())


def log_in(tab: chromium.Tab, key: str) -> None:
    tab.wait("document.activeElement.id === 'key'")
    tab.send("Input.insertText", text=key)
    tab.press("Enter")
    tab.wait("!document.querySelector('#run').hidden")


def test_both_answers_stream_in_with_the_changed_words_marked_and_a_new_version_takes_over(
    served, tab, tmp_path
):
    before = served.health()["active"]
    replies = {question: served.correct(question).json() for question in QUESTIONS}
    reply = next(reply for reply in replies.values() if reply["changed"])
    tab.open(served.url)
    log_in(tab, served.keys["plain"])
    assert tab.js("document.querySelectorAll('#chart .dot').length") == 2 * len(served.run.versions())
    tab.fill("#temperature", "0")
    seen = "new MutationObserver(() => seen.add(document.querySelector('#y2').textContent.length))"
    tab.js(f"window.seen = new Set(), {seen}.observe(document.querySelector('#y2'), {{childList: true}}), 0")
    ask(tab, reply["question"])
    tab.screenshot(tmp_path / "wide.png")
    assert tab.js("document.querySelector('#y1').textContent") == reply["initial_answer"]
    assert tab.js("document.querySelector('#y2').textContent") == reply["answer"]
    assert tab.js("seen.size") > 3
    assert tab.js("document.querySelectorAll('#y1 del, #y2 ins').length") > 0
    assert without_marked(tab, "#y1") == without_marked(tab, "#y2")
    assert before in tab.text("#facts") and f"{reply['usage']['completion_tokens']} written" in tab.text(
        "#facts"
    )

    version = served.publish("b")
    tab.wait(f"document.querySelector('#state').innerText.startsWith('{version} answers')")
    tab.wait(f"document.querySelector('tr.active').innerText.includes('{version}')")
    ask(tab, reply["question"])
    assert version in tab.text("#facts")
    assert (
        tab.js("document.querySelector('#y2').textContent")
        == served.correct(reply["question"]).json()["answer"]
    )

    tab.fill("#rounds", "3")
    ask(tab, reply["question"])
    assert tab.js("document.querySelectorAll('#round input').length") == 3
    for width in (390, 320):
        tab.screen(width, 800, phone=True, dark=True)
        assert tab.js(NO_WIDER_THAN_THE_SCREEN)
        tab.screenshot(tmp_path / f"phone-{width}.png")


def test_it_says_when_the_server_is_busy_or_gone_and_when_it_is_back(tab, tmp_path):
    api, port = Api(tmp_path, "serve.max_in_flight=1", "serve.max_queue=0"), free_port()
    with listening(api, port) as url:
        tab.open(url)
        ask(tab, "Why?")
        assert (tab.text("#y1"), tab.text("#y2")) == ("first", "second")
        with httpx.stream("POST", f"{url}/v1/correct", json={"question": "slow", "stream": True}, timeout=60):
            ask(tab, "And how?")
            assert "busy" in tab.text("#notice") and "Try again in" in tab.text("#notice")
            assert tab.text("#y2") == "second", "an answer stays until the next one begins"
    tab.click("#go")
    tab.wait("document.querySelector('#notice').dataset.kind === 'gone'")
    tab.wait("document.querySelector('#state').dataset.is === 'bad'")
    assert "does not answer" in tab.text("#notice") and "does not answer" in tab.text("#state")
    assert tab.js("document.querySelector('#question').value") == "And how?"
    tab.screenshot(tmp_path / "gone.png")
    with listening(api, port):
        tab.wait(
            "document.querySelector('#notice').hidden && document.querySelector('#state').dataset.is === "
            "'good'"
        )
        ask(tab, "And how?")
        assert tab.text("#asked") == "And how?"


class Remembering(ScriptedEngine):
    """Keeps the prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []

    async def generate(self, token_ids, request, on_text=None) -> Sample:
        self.prompts.append(self.chat.tokenizer.decode(token_ids))
        found = await super().generate(token_ids, request, on_text=None)
        text = f"answer {len(self.prompts)}"
        if on_text:
            on_text(text)
        return Sample(text, found.token_ids, found.finish_reason)


def test_a_conversation_of_five_turns_reaches_the_model_and_a_new_one_begins_without_it(tab, tmp_path):
    engine = Remembering()
    with listening(Api(tmp_path, engine=engine), free_port()) as url:
        tab.open(url)
        assert tab.js("document.querySelector('#follow-row').hidden")
        for number in range(1, 6):
            ask(tab, f"q{number}?")
            if number == 1:
                tab.click("#follow")
        said = [text for number in range(1, 5) for text in (f"q{number}?", f"answer {2 * number}")]
        for prompt in engine.prompts[-2:]:  # answer and correction of the fifth
            at = [prompt.index(text) for text in (*said, "q5?")]
            assert at == sorted(at)
        assert tab.js("document.querySelector('#earlier').textContent") == "".join(said)
        assert "its 5 turns" in tab.text("#follow-row")
        for width in (1000, 390):
            tab.screen(width, 800, phone=width < 500)
            assert tab.js(NO_WIDER_THAN_THE_SCREEN)
            tab.screenshot(tmp_path / f"conversation-{width}.png")
        tab.click("#follow")
        ask(tab, "q6?")
        assert not any(text in engine.prompts[-1] for text in said)
        assert tab.js("document.querySelector('#earlier').hidden")


def test_it_says_what_is_swapped_and_what_was_refused(tab, tmp_path):
    api = Api(tmp_path)
    with listening(api, free_port()) as url:
        tab.open(url)
        api.versions._moves["v0001"] = object()
        tab.wait(
            "document.querySelector('#state').innerText === 'v0000 answers while v0001 is prepared and "
            "verified'"
        )
        active, api.versions.active = api.versions.active, None
        tab.wait("document.querySelector('#state').innerText.startsWith('v0001 is being loaded')")
        api.versions.active = active
        api.versions._moves.clear()
        tab.wait("document.querySelector('#state').innerText.startsWith('v0000 answers, the run')")


def test_escape_stops_and_the_form_is_used_by_keyboard(tab, tmp_path):
    api = Api(tmp_path)
    with listening(api, free_port()) as url:
        tab.open(url)
        tab.wait("document.activeElement.id === 'question'")
        tab.send("Input.insertText", text="slow")
        tab.press("Enter", 8)
        assert tab.js("document.querySelector('#question').value") == "slow\n"
        tab.press("Tab")
        assert tab.js("document.activeElement.id") == "rounds"
        assert tab.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        tab.press("Enter", 2)
        tab.wait("document.querySelector('#go').innerText === 'Stop'")
        tab.wait("document.querySelector('#facts').innerText.includes('writing')")
        tab.press("Escape")
        tab.wait(DONE)
        assert "stopped" in tab.text("#facts") and tab.js("document.querySelector('#notice').hidden")


def test_a_key_is_asked_for_and_stays_in_the_tab_and_texts_stay_text(tab, tmp_path):
    file = tmp_path / "keys.json"
    key = add_key(file, "me")
    api = Api(tmp_path, engine=Markup(), keys=KeyRing(file), loopback_only=False)
    with listening(api, free_port()) as url:
        tab.open(url)
        tab.wait("document.activeElement.id === 'key'")
        tab.send("Input.insertText", text="wrong")
        tab.press("Enter")
        tab.wait("document.querySelector('#key-why').innerText.includes('does not know')")
        log_in(tab, key)
        assert tab.js("[localStorage.length, document.cookie, Object.values(sessionStorage).length]") == [
            0,
            "",
            1,
        ]
        ask(tab, MARKUP)
        assert tab.text("#asked") == tab.text("#y2") == MARKUP
        assert tab.js("document.querySelectorAll('#answers b, #answers img').length") == 0


def test_the_documentation_is_rendered_without_a_request_to_elsewhere(tab, tmp_path):
    with listening(Api(tmp_path), free_port()) as url:
        tab.open(url)
        tab.wait("document.querySelector('#state').dataset.is === 'good'")
        tab.click("footer a")
        tab.wait("location.pathname === '/docs' && document.readyState === 'complete'")
        assert "POST /v1/correct" in tab.text("body") and "The last correction" in tab.text("body")
        tab.click("a[href='#CorrectRequest']")
        assert tab.js("document.querySelector(':target').innerText") == "CorrectRequest"
        for width in (1100, 390):
            tab.screen(width, phone=width < 500)
            assert tab.js(NO_WIDER_THAN_THE_SCREEN)
            tab.screenshot(tmp_path / f"docs-{width}.png")
        assert all(one.startswith((url, "data:")) for one in tab.requests)
        tab.js("fetch('http://localhost:1/').catch(() => 0)")
        blocked = [problem["text"] for problem in tab.problems]
        assert blocked and all("Content Security Policy" in text for text in blocked), blocked
        tab.problems.clear()
