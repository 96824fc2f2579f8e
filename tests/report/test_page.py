"""The page of a sweep, in a real browser: what it shows, what its parts do, and that texts stay texts.

Needs Chromium (`apt install chromium`); skipped without it, with the reason.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import smoke, smoke_cell, smoke_cells

from bench import report
from bench.cli.compose import open_command
from bench.commands import carry_out, view
from bench.report import page, write
from bench.report.analysis import Analysis, analyse
from bench.report.page import content, scripts
from bench.report.page.samples import sample_sets
from bench.store.store import FileFacts, Store, file_digest, files_digest, read_manifest, write_manifest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def plant(results: Path, role: str, text: str) -> str:
    """Begin the first text of a stage of the KTO cell with `text`; returns the id of its item.

    The stage and its readers then hold the digests of an honest run that wrote this text.
    """
    stage = smoke_cell("kto", 0.1).roles[role]
    folder = results / "store" / stage.kind / stage.key
    (name,) = (
        path.name for path in folder.glob("*.jsonl") if path.name in ("completions.jsonl", "verdicts.jsonl")
    )
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    if name == "completions.jsonl":
        rows[0]["completions"][0] = text
    else:
        rows[0]["raw"] = text
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = read_manifest(folder / "manifest.json")
    info = (folder / name).stat()
    files = {**manifest.files, name: FileFacts(file_digest(folder / name), info.st_size, info.st_mtime_ns)}
    manifest = dataclasses.replace(manifest, files=files, digest=files_digest(files))
    write_manifest(folder / "manifest.json", manifest)
    for path in results.glob("store/*/*/manifest.json"):
        reader = read_manifest(path)
        if any(source["key"] == stage.key for source in reader.inputs.values()):
            inputs = {
                role: {**source, "digest": manifest.digest} if source["key"] == stage.key else source
                for role, source in reader.inputs.items()
            }
            write_manifest(path, dataclasses.replace(reader, inputs=inputs))
    return str(rows[0].get("id") or rows[0]["item_id"])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke sweep with texts that try to be HTML, reported by the real command."""
    folder = tmp_path_factory.mktemp("page") / "results"
    shutil.copytree(smoke().results, folder)
    plant(folder, "preference_completions", f"{EVIL} written by a model")
    plant(folder, "preference_verdicts", f"{EVIL} said by a judge")
    assert carry_out(open_command(["+sweep=smoke", "do=report", f"results={folder}", "tracker=none"])) == 0
    return folder


@functools.cache
def analysis_of(results: Path) -> Analysis:
    sweep = report.Sweep(
        "smoke", "does it work?", "+sweep=smoke", smoke_cells(), axes=("method", "method.beta")
    )
    return analyse(sweep, report.collect(sweep, Store(results / "store"), {}), results)


# Without a browser --------------------------------------------------------------------------------------------------


def test_every_report_writes_the_page_and_texts_cannot_end_their_element(results: Path) -> None:
    html = (results / "sweeps/smoke/report.html").read_text()
    assert EVIL not in html and "onerror" not in html
    assert len(re.findall("<script", html)) == 6  # Data, four packed ones, the page's own.
    assert not re.findall(r"(?:src|href)=[\"']?https?:", html)


def test_a_title_is_escaped(results: Path) -> None:
    of = analysis_of(results)
    html = page.render(dataclasses.replace(of, sweep=dataclasses.replace(of.sweep, question=EVIL)))
    assert EVIL not in html and "&lt;/script&gt;" in html


def test_a_fault_of_the_page_fails_no_command(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> str:
        raise ValueError("no default export\nin this version")

    monkeypatch.setattr(scripts, "datatables", broken)
    of = analysis_of(results)
    paths = write.write_files(of.sweep, of.rows, tmp_path)
    assert paths.page is None and paths.unwritten == []
    assert paths.page_fault.endswith("report.html: ValueError: no default export in this version")


def test_the_prompts_of_all_cells_are_the_same_and_blind_to_outcomes(results: Path) -> None:
    of = analysis_of(results)
    for n in (8, None):
        preference, rating = sample_sets(of.rows, of.store, n)
        assert (preference["name"], preference["total"], rating["total"]) == ("preference", 64, 16)
        names = [item["id"] for item in preference["items"]]
        assert len(names) == (n or 64) and all(len(texts) == len(names) for texts in preference["texts"])
    again = sample_sets(list(reversed(of.rows)), of.store, 8)[0]["items"]
    assert [item["id"] for item in again] == names[:8]


def test_rows_share_a_letter_just_where_they_cannot_be_told_apart(results: Path) -> None:
    """Three rows a, b, c with a apart from c alone: ab and bc share a letter, a and c none."""
    part = analysis_of(results).pooled
    groups = part.groups[1:4]
    apart = {(groups[0].key, groups[2].key)}
    some = next(pair for pair in part.pairs.values() if pair is not None)
    pairs = {
        (a.key, b.key): dataclasses.replace(some, p_holm=0.01 if (a.key, b.key) in apart else 0.5)
        for i, a in enumerate(groups)
        for b in groups[i + 1 :]
    }
    letters = content.letters(dataclasses.replace(part, groups=groups, pairs=pairs))
    first, second, third = (set(letters[group.number]) for group in groups)
    assert first & second and second & third and not first & third


def test_a_page_of_fifty_long_cells_stays_below_three_megabytes(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random words do not compress as text does, so the limit is reached with fewer of them."""
    of = analysis_of(results)
    monkeypatch.setattr(page, "MOST", 20_000)
    sets, packed = page._samples(of, everything=False)
    assert len(packed) <= 20_000 or all(one["n"] == page.FEWEST for one in sets)
    assert page._samples(of, everything=True)[0][0]["n"] == 64


# In a browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium is installed (apt install chromium)")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


Opened = Callable[..., Any]


@pytest.fixture
def opened(chromium: Any, results: Path) -> Iterator[Opened]:
    """Opens the page and waits for its scripts. No error may reach the console, and no request may leave the file."""
    wrong: list[str] = []
    contexts = []

    def of(width: int = 1400, address: str | None = None, **options: Any) -> Any:
        address = address or (results / "sweeps/smoke/report.html").as_uri()
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: wrong.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        tab.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((address, "blob:", "data:")) else wrong.append(asked.url)
            ),
        )
        tab.goto(address)
        tab.wait_for_selector("html[data-ready]", timeout=60_000)
        return tab

    yield of
    for context in contexts:
        context.close()
    assert wrong == []


def texts(tab: Any, selector: str) -> list[str]:
    return [text.strip() for text in tab.locator(selector).all_inner_texts()]


def column(tab: Any, name: str) -> list[str]:
    heads = texts(tab, "#results thead th")
    return texts(tab, f"#results tbody tr td:nth-child({heads.index(name) + 1})")


@pytest.mark.browser
def test_the_table_has_the_numbers_of_table_csv(opened: Opened, results: Path) -> None:
    tab = opened()
    rows = list(csv.DictReader((results / "sweeps/smoke/table.csv").open()))
    for name, shown in (("win_rate", "win rate %"), ("equal_length_win_rate", "equal-length %")):
        numbers = [
            [f"{100 * float(row[name + end]):.1f}" for end in ("", "_low", "_high") if row[name + end]]
            for row in rows
        ]
        expected = [value + (f" [{', '.join(ends)}]" if ends else "") for value, *ends in numbers]
        assert [text.removesuffix(" *") for text in column(tab, shown)] == expected
    intervals = [text for text in texts(tab, "#results tbody td") if "[" in text]
    assert tab.locator("#results .bar").count() == len(intervals) >= 2 * len(rows) - 1
    assert tab.locator(".chart svg").count() == len(texts(tab, "figure")) >= 3


@pytest.mark.browser
def test_sorting_searching_and_choosing_columns(opened: Opened) -> None:
    tab = opened()
    tab.get_by_role("columnheader", name="length length").click()
    lengths = [float(text) for text in column(tab, "length")]
    assert lengths == sorted(lengths)
    head = tab.get_by_role("columnheader", name="length length")
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("[tabindex]").first.focus()
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#results th[aria-sort=descending]")
    assert [float(text) for text in column(tab, "length")] == sorted(lengths, reverse=True)
    tab.fill("#search", "ipo")
    assert column(tab, "method") == ["ipo †"] and tab.inner_text("#count") == "1 of 5 rows"
    tab.fill("#search", "")
    assert "SEs" not in texts(tab, "#results thead th")
    tab.click(".menu summary")
    tab.get_by_role("checkbox", name="SEs").check()
    assert "SEs" in texts(tab, "#results thead th")


@pytest.mark.browser
def test_a_reference_row_shows_the_differences_of_pairs_csv(opened: Opened, results: Path) -> None:
    tab = opened()
    tab.select_option("#reference", "2")
    shown = column(tab, "vs reference")
    pairs = {
        (row["first_row"], row["second_row"]): row
        for row in csv.DictReader((results / "sweeps/smoke/pairs.csv").open())
    }
    pair = pairs["2", "4"]
    value, low, high = (-100 * float(pair[f"prompts_{part}"]) for part in ("value", "high", "low"))
    assert shown[1] == "reference"
    assert shown[3].removesuffix(" ≈") == f"{value:+.1f} [{low:+.1f}, {high:+.1f}]".replace("+-", "-")
    assert float(column(tab, "p (all pairs)")[3]) == pytest.approx(float(pair["p_holm"]), abs=1e-4)
    tab.select_option("#reference", "")
    assert "vs reference" not in texts(tab, "#results thead th")


@pytest.mark.browser
def test_completions_are_read_side_by_side_by_click_and_by_keyboard(opened: Opened, results: Path) -> None:
    tab = opened()
    tab.get_by_role("button", name="Read completions of row 2").click()
    assert tab.locator("#s-a option:checked").inner_text() == "2 kto beta 0.1"
    assert tab.inner_text("#s-count") == "1 of 64"
    tab.keyboard.press("j")
    tab.keyboard.press("j")
    tab.keyboard.press("k")
    assert tab.inner_text("#s-count") == "2 of 64"
    tab.click("#s-next")
    assert tab.inner_text("#s-count") == "3 of 64"
    (item,) = [
        one["items"][2] for one in sample_sets(analysis_of(results).rows, analysis_of(results).store, 64)[:1]
    ]
    assert tab.inner_text("#s-shown .text >> nth=0") == item["turns"][0]
    assert tab.locator("#s-shown .side").count() == 3
    tab.select_option("#s-b", "1")  # The same cell on both sides.
    tab.select_option("#s-show", "differ")
    assert tab.inner_text("#s-count") == "no prompt has this"
    tab.select_option("#s-show", "all")
    tab.select_option("#s-b", "0")
    assert tab.locator("#s-shown mark").count() > 0
    tab.select_option("#s-category", "writing")
    assert all(
        ": " in text and text.split(". ")[1].startswith("writing") for text in texts(tab, "#s-item option")
    )


@pytest.mark.browser
def test_texts_of_models_and_judges_stay_texts(opened: Opened, results: Path) -> None:
    tab = opened()
    of = analysis_of(results)
    names = [item["id"] for item in sample_sets(of.rows, of.store, 64)[0]["items"]]
    planted = next(
        k for k, texts in enumerate(sample_sets(of.rows, of.store, 64)[0]["texts"][1]) if EVIL in texts[0][0]
    )
    tab.select_option("#s-a", "1")
    tab.select_option("#s-item", str(planted))
    side = tab.locator("#s-shown .side.a")
    assert side.locator(".text").first.inner_text() == f"{EVIL} written by a model"
    side.get_by_text("the judge's words").click()
    assert f"{EVIL} said by a judge" in side.inner_text()
    assert tab.locator("img").count() == 0 and tab.title() != "taken" and len(names) == 64


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_both_themes_have_contrast(opened: Opened, width: int, scheme: str) -> None:
    tab = opened(width, color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("document.documentElement.dataset.theme") == scheme
    # Contrast of WCAG 2: (L1 + 0.05) / (L2 + 0.05), at least 4.5 for text.
    low = tab.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const light = (name) => {
            const hex = style.getPropertyValue(name).trim().replace(/^#(.)(.)(.)$/, "#$1$1$2$2$3$3");
            const [r, g, b] = [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16) / 255)
              .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const pairs = [];
          for (const text of ["--ink", "--soft", "--blue", "--good", "--bad"])
            for (const ground of ["--card", "--page"]) pairs.push([text, ground]);
          for (const ground of ["--less", "--more", "--mark-a", "--mark-b"]) pairs.push(["--ink", ground]);
          const ratio = (x, y) => (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
          return pairs.filter(([a, b]) => ratio(light(a), light(b)) < 4.5);
        }"""
    )
    assert low == []


@pytest.mark.browser
def test_rows_open_their_details_and_controls_have_names(opened: Opened) -> None:
    tab = opened()
    tab.get_by_role("link", name="Details of row 4").click()
    assert tab.locator("#row-4").get_attribute("open") is not None
    assert "preference rows a step" in tab.inner_text("#row-4")
    named = "one.labels?.length || one.textContent.trim() || one.ariaLabel"
    unnamed = tab.evaluate(
        f"[...document.querySelectorAll('select, input, button')].filter((one) => !({named})).length"
    )
    assert unnamed == 0


@pytest.mark.browser
def test_the_page_prints_and_reads_without_scripts(opened: Opened, chromium: Any, results: Path) -> None:
    assert len(opened().pdf()) > 20_000
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((results / "sweeps/smoke/report.html").as_uri())
    assert len(texts(tab, "#results tbody tr")) == 5 and "reference" not in " ".join(
        texts(tab, "#results thead th:visible")
    )
    assert tab.locator("#search").is_hidden()
    context.close()


@pytest.mark.browser
def test_the_live_page_loads_again_once_a_cell_has_ended_and_keeps_what_was_chosen(
    opened: Opened, results: Path, tmp_path: Path
) -> None:
    shutil.copytree(results / "store", tmp_path / "store")
    score = smoke_cell("ipo").score
    shutil.move(tmp_path / "store/score" / score.key, tmp_path / "aside")
    with view.make_server(view.LivePage(analysis_of(results).sweep, tmp_path), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        tab = opened(address=server.address)
        tab.select_option("#s-category", "writing")
        tab.select_option("#reference", "3")
        assert tab.inner_text("#state") == "4 of 5 cells are done, 1 to do"
        shutil.move(tmp_path / "aside", tmp_path / "store/score" / score.key)
        tab.wait_for_selector("#state:text-is('5 of 5 cells are done')")
        tab.wait_for_selector("html[data-ready] #results td:has-text('ipo')")
        tab.wait_for_selector("html[data-ready]")
        assert tab.input_value("#reference") == "3"
        assert tab.input_value("#s-category") == "writing"
        server.shutdown()
        thread.join()
