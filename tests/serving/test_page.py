"""The page of `tinylm play` in headless Chromium. No request leaves this machine, and no script reports an error."""

import re
import shutil
import threading
import time

import pytest
import torch
import uvicorn

from tests.runs.test_compare import make_run
from tests.serving.play_models import BYTES, LETTERS, STORY, make_bundle, playing
from tinylm.evaluation import score_text
from tinylm.generation import Generator
from tinylm.serving.play import play_app
from tinylm.serving.server import listen, url

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = playwright.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="found no chromium and no google-chrome")]
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--no-first-run"]  # fmt: skip
SMALL, OTHER, CHAT = make_bundle(), make_bundle(seed=1), make_bundle(BYTES, seed=2, template="chat")
VIEWS = ("generate", "compare", "read", "attention", "runs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "runs"
    make_run(folder / "one")
    return folder


@pytest.fixture(scope="module")
def players():
    with playing(small=SMALL, other=OTHER, chat=CHAT) as found:
        yield found


@pytest.fixture(scope="module")
def address(runs, players):
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(play_app(players, [runs]), lifespan="off", log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield url(listener)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as program:
        found = program.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield found
        found.close()


@pytest.fixture
def visit(browser, address):
    """visit(view, width) opens a view; at the end, what it requested and reported is checked."""
    contexts, requests, problems = [], [], []

    def visit(view: str = "generate", width: int = 1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{address}/#{view}")
        expect(page.locator(f"#view-{view}")).to_be_visible()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert requests and {re.match(r"https?://[^/]*", each)[0] for each in requests} == {address}
    refused = "Failed to load resource: the server responded with a status of 400"  # the page shows why
    assert [problem for problem in problems if not problem.startswith(refused)] == []


def set_options(page, prefix="generate", **options):
    for name, value in options.items():
        page.locator(f"#{prefix}-options-{name}").fill(str(value))


def ended(page):
    expect(page.locator("#generate-status")).to_contain_text("ended", timeout=10_000)


def text_of(page, place="generate-text") -> str:
    """The tokens' text, without the marks of line breaks."""
    return "".join(page.locator(f"#{place} .token").all_text_contents()).replace("↵", "")


def test_a_text_streams_and_goes_on_from_another_choice(visit):
    page = visit()
    page.fill("#generate-prompt", "Once")
    set_options(page, max_new_tokens=12, temperature=0, seed=1)
    page.get_by_role("button", name="Generate").click()
    ended(page)
    generator = Generator(SMALL.model, LETTERS)
    assert text_of(page) == generator.generate("Once", max_new_tokens=12, temperature=0)

    page.locator("#generate-text .token").nth(3).click()
    panel = page.get_by_role("dialog")
    expect(panel).to_contain_text("probability")
    expect(panel.locator("li button")).to_have_count(10)
    panel.locator("li button").nth(1).click()
    expect(page.locator("#generate-history li")).to_have_count(2)
    ended(page)
    kept = text_of(page)[:4]
    assert kept[:3] == generator.generate("Once", max_new_tokens=3, temperature=0)
    ids = torch.tensor([generator.prompt_ids("Once" + kept[:3])])
    second = SMALL.model(ids)[0, -1].topk(2).indices[1].item()
    assert kept[3] == LETTERS.decode([second])
    assert text_of(page) == kept + generator.generate("Once" + kept, max_new_tokens=8, temperature=0)

    page.locator("#generate-history button").last.click()  # back to the first text
    assert text_of(page) == generator.generate("Once", max_new_tokens=12, temperature=0)


def test_the_keyboard_alone_reaches_everything_of_a_text(visit):
    page = visit()
    page.locator("#generate-prompt").focus()
    set_options(page, max_new_tokens=8, temperature=0)
    page.locator("#generate-prompt").focus()
    page.keyboard.press("Control+Enter")
    ended(page)
    before = text_of(page)
    for _ in range(20):  # Generate, legend and so on, until the one tab stop of the text
        page.keyboard.press("Tab")
        if page.locator("#generate-text .token:focus").count():
            break
    page.keyboard.press("ArrowRight")
    expect(page.locator("#generate-text .token").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#generate-text .token").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#generate-history li")).to_have_count(2)
    ended(page)
    assert text_of(page)[0] == before[0] and text_of(page)[1] != before[1]


def test_escape_stops_a_text_on_the_server_too(visit, players):
    page = visit()
    set_options(page, max_new_tokens=100_000)
    page.locator("#generate-options details summary").click()
    page.locator("#generate-options-banned_tokens").fill(str(LETTERS.end_of_text))
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#generate-text .token").nth(20)).to_be_attached(timeout=10_000)
    page.keyboard.press("Escape")
    expect(page.locator("#generate-status")).to_contain_text("stopped")
    count = page.locator("#generate-text .token").count()
    time.sleep(0.2)  # a few steps
    made = players["small"].engine.counts.new_tokens
    time.sleep(0.2)
    assert players["small"].engine.counts.new_tokens == made
    assert page.locator("#generate-text .token").count() == count < 100_000


def test_a_conversation_models_prompt_is_a_users_message(visit):
    page = visit()
    box = page.get_by_label("as a user's message")
    expect(box).to_be_hidden()
    page.select_option("#model", "chat")
    expect(box).to_be_checked()
    page.fill("#generate-prompt", "Hi")
    set_options(page, max_new_tokens=5, seed=2)
    with page.expect_request("**/api/generate") as request:
        page.keyboard.press("Enter")  # in an input of the panel: nothing happens
        page.get_by_role("button", name="Generate").click()
    assert request.value.post_data_json["chat"] is True
    ended(page)


def test_two_models_are_compared_on_one_seed(visit):
    page = visit("compare")
    page.fill("#compare-prompt", "Once")
    page.locator("#view-compare summary").first.click()
    set_options(page, "compare", max_new_tokens=10, seed=5)
    page.get_by_role("button", name="Generate both").click()
    expect(page.locator("#compare-status")).to_contain_text("part", timeout=10_000)
    for side, bundle in enumerate((SMALL, OTHER)):
        expected = Generator(bundle.model, LETTERS).generate("Once", max_new_tokens=10, seed=5)
        assert text_of(page, f"compare-text-{side}") == expected
        expect(page.locator(f"#compare-figures-{side}")).to_contain_text("seed 5")


def test_a_loss_is_read_beside_the_floor(visit):
    page = visit("read")
    page.fill("#read-text", STORY)
    page.get_by_role("button", name="Read").first.click()
    score = score_text(SMALL.model, LETTERS, STORY)
    expect(page.locator("#read-figures")).to_contain_text(f"{score.loss:.3f}")
    expect(page.locator("#read-figures")).to_contain_text(f"{score.bits_per_byte:.3f}")
    expect(page.locator("#read-curve path.curve")).to_have_count(4)  # loss and floor, each also in the key
    assert text_of(page, "read-tokens") == STORY
    page.locator("#read-tokens .token").nth(5).click()
    expect(page.get_by_role("dialog")).to_contain_text("the best possible model")
    page.select_option("#read-shown", "excess")
    expect(page.locator("#read-legend")).to_contain_text("Excess over the floor")


def test_parts_of_characters_line_breaks_and_markup_are_shown_as_they_are(visit):
    page = visit("read")
    page.select_option("#model", "chat")
    page.fill("#read-text", "<b>é</b>\n\tZ\x01")
    page.get_by_role("button", name="Read").first.click()
    tokens = page.locator("#read-tokens .token")
    expect(tokens).to_have_count(13)
    shown = tokens.all_text_contents()
    assert shown == ["<", "b", ">", "", "é", "<", "/", "b", ">", "↵\n", "→\t", "Z", "^A"]
    expect(tokens.nth(3).locator(".half")).to_have_count(1)
    expect(page.locator("#read-tokens b")).to_have_count(0)


def test_attention_follows_layer_head_and_token(visit):
    page = visit("attention")
    page.fill("#attention-text", STORY[:20])
    page.get_by_role("button", name="Look").click()
    tokens = page.locator("#attention-tokens .token")
    expect(tokens).to_have_count(21)
    tokens.nth(4).hover()
    expect(page.locator("#attention-strongest")).to_contain_text("(token 5) looks at")
    before = page.locator("#attention-strongest").text_content()
    page.select_option("#attention-head", "1")
    expect(page.locator("#attention-status")).to_contain_text("head 1")
    expect(page.locator("#attention-strongest")).to_contain_text("(token 5) looks at")
    assert page.locator("#attention-strongest").text_content() != before
    page.locator("#attention-matrix").hover(position={"x": 92, "y": 3})
    expect(page.locator("#attention-cell")).to_contain_text("100%")  # the first token can look at itself alone


def test_curves_grow_while_a_run_trains(visit, runs):
    page = visit("runs")
    row = page.get_by_role("row", name="one")
    expect(row).to_contain_text("30 of 30")
    path = runs / "one/metrics.csv"
    columns = path.read_text().splitlines()[0].split(",")
    page.select_option("#runs-metric", "val/loss")
    with path.open("a") as file:
        file.write(",".join({"step": "60", "val/loss": "1.234"}.get(name, "") for name in columns) + "\n")
    expect(row).to_contain_text("1.234", timeout=10_000)
    expect(page.locator("#runs-chart path.curve").first).to_be_visible()
    page.check("#runs-log-y")
    expect(page.locator("#runs-chart svg").first).to_be_visible()


def test_an_error_is_one_line_on_the_page(visit):
    page = visit()
    page.locator("#generate-options-temperature").fill("warm")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("alert")).to_have_text("Temperature must be a number, got warm")


def test_the_servers_error_is_shown(visit):
    page = visit()
    page.locator("#generate-options-top_p").fill("2")
    with page.expect_response("**/api/generate") as response:
        page.get_by_role("button", name="Generate").click()
    assert response.value.status == 400
    expect(page.get_by_role("alert")).to_contain_text("top_p must be in (0, 1], got 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_scrolls_sideways_on_a_narrow_screen(scheme, visit):
    page = visit(width=390)
    page.emulate_media(color_scheme=scheme)
    page.fill("#generate-prompt", "x" * 300 + " a very long prompt")
    for view in VIEWS:
        page.goto(re.sub("#.*", f"#{view}", page.url))
        expect(page.locator(f"#view-{view}")).to_be_visible()
        for details in page.locator("details:visible").all():
            details.evaluate("element => { element.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), view


def test_the_switch_overrides_the_systems_colours(visit):
    page = visit()
    paper = lambda: page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    page.emulate_media(color_scheme="light")
    light = paper()
    switch = page.get_by_role("button", name=re.compile("Colours"))
    switch.click()
    assert paper() == light  # light
    switch.click()
    assert paper() != light  # dark
    page.reload()
    expect(switch).to_have_accessible_name("Colours: dark. Change")
    assert paper() != light
