"""Chat templates: what they cannot write, what they read, the date that they are given, and templates that never end."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as renderer
import trl
from architectures import ARCHITECTURES, make_tokenizer
from outer import MARKS, some_outer
from tokenizers import Tokenizer

from bench.models.templates import (
    CLOCK,
    DATE,
    PROBES,
    Template,
    TemplateFailed,
    dated,
    is_dated,
    read_template,
    refusals,
    try_template,
    variables,
)
from bench.models.token_counts import counter
from bench.models.tokenize import load_tokenizer, prompt_ids, row_ids
from bench.text_files import BadFile

SHIPPED = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
USER = {"role": "user", "content": "Name a dog."}
REX = {"role": "assistant", "content": "Rex"}
CHATML = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)
NO_REASONING = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")


class Clock(datetime.datetime):
    """The day of TEMPLATE_DATE."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
        return cls(2024, 7, 26, tzinfo=tz)


def written(template: Template, messages: list[dict[str, str]], opens: bool) -> str:
    try:
        return template.render(messages, opens=opens)
    except TemplateFailed as error:
        return str(error).split(" (line ")[0]


@pytest.mark.parametrize("path", some_outer(SHIPPED, SHIPPED[::4]), ids=lambda path: path.stem)
def test_a_dated_template_writes_what_it_writes_on_that_day_and_never_asks_the_clock(
    path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(renderer, "datetime", Clock)
    template = Template(path.read_text(encoding="utf-8"), SPECIAL)
    fixed = Template(dated(template.text, None), SPECIAL)
    for messages in PROBES.values():
        for part, opens in ((messages, False), (messages[:-1], True)):
            assert written(fixed, part, opens) == written(template, part, opens)
    assert not variables(fixed.text) & {CLOCK, DATE}


def test_a_date_is_given_to_templates_that_ask_the_clock_and_a_set_one_to_those_that_read_one() -> None:
    asks, reads, neither = "{{ strftime_now('%d') }}", "{{ date_string or '26 Jul 2024' }}", "{{ bos_token }}"
    assert [is_dated(variables(text), None) for text in (asks, reads, neither)] == [True, False, False]
    assert [is_dated(variables(text), "2025-01-05") for text in (asks, reads, neither)] == [True, True, False]
    assert not is_dated(variables(dated(asks, None)), "2025-01-05")  # once


def test_every_directive_is_written_in_english_for_midnight_of_the_day() -> None:
    text = "\n {{ strftime_now('%A %a %-d %d %e %B %b %Y %y %m %-m %j %H:%M %I%p %F %% %%d') }}"
    wanted = "\n Sunday Sun 5 05  5 January Jan 2025 25 01 1 005 00:00 12AM 2025-01-05 % %d"
    assert Template(dated(text, "2025-01-05")).render([USER]) == wanted
    assert Template(dated("{{ date_string }}", "2025-01-05")).render([USER]) == "05 Jan 2025"


def test_rows_that_a_template_cannot_write_are_named_with_its_words() -> None:
    rows = [[USER, REX], [{"role": "system", "content": "Be brief."}, USER, REX], [USER, REX]]
    assert refusals(Template(NO_SYSTEM), rows) == [(1, "System role not supported")]
    assert refusals(Template(CHATML), rows) == []


def test_what_a_template_leaves_out_is_seen() -> None:
    thinking = {"role": "assistant", "content": "<think>\nA short name.\n</think>\n\nRex"}
    assert Template(NO_REASONING).loses([USER, thinking]) == "assistant"
    assert (
        Template(NO_REASONING).loses([USER, thinking, USER, REX]) is None
    )  # of earlier turns many templates cut it
    assert Template(CHATML).loses([USER, thinking]) is None
    assert (
        Template(CHATML.replace("m['content']", "m['content'] | trim")).loses(
            [USER, {"role": "assistant", "content": " Rex\n"}]
        )
        is None
    )
    assert (
        Template("{{ messages[-1]['content'] }}").loses([{"role": "system", "content": "Be brief."}, USER])
        == "system"
    )


def test_a_look_tells_what_a_template_reads_refuses_and_loses() -> None:
    found = try_template(Template(NO_SYSTEM), 60)
    assert "messages" in found.reads
    assert dict(found.refuses) == {"a system message": "System role not supported"}
    assert try_template(Template(NO_REASONING), 60).loses == {"thinking in an answer": "assistant"}
    assert CLOCK in try_template(Template("{{ strftime_now('%d') }}" + CHATML), 60).reads


BROKEN = {
    "{% for %}": "TemplateSyntaxError: Expected an expression",
    "{{ raise_exception('not for you') }}": "not for you",
    "{{ nobody.name }}": "UndefinedError: 'nobody' is undefined",
    "{{ ().__class__.__base__ }}": "SecurityError: access to attribute '__class__'",
    "{{ cycler.__init__.__globals__ }}": "SecurityError: access to attribute '__init__'",
    "{% include 'other' %}": "TypeError: no loader",
    "{% macro again(n) %}{{ again(n) }}{% endmacro %}{{ again(1) }}": "RecursionError",
    "{{ 'a' * 10000000000 }}": "more than 2 GiB of memory",
    "{% for i in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}": "more than 2 GiB of memory",
    CHATML + "{{ 'a' * 9000000 }}": "it writes 9,000,",
    "{% for m in messages %}{{ m['content'][0].text }}{% endfor %}": "it leaves out user messages",
    CHATML + "{{ range(99999) | random }}": "it writes the same conversation differently each time",
    "Hello.": "it leaves out user messages",
}


PLAINLY_BROKEN = (0, 3, 7, 9, 10, 11)  # one of each kind of fault; CI tries them all


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(*case, id=str(n), marks=() if n in PLAINLY_BROKEN else MARKS)
        for n, case in enumerate(BROKEN.items())
    ],
)
def test_a_template_that_cannot_be_used_fails_in_one_line(text: str, why: str) -> None:
    with pytest.raises(TemplateFailed, match=r"\w") as failed:
        try_template(Template(text), 60)
    assert why in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("inner", ["", "{% for k in range(99999) %}{% endfor %}"])
def test_a_template_that_never_ends_is_ended(inner: str) -> None:
    endless = f"{{% for i in range(99999) %}}{{% for j in range(99999) %}}{inner}{{% endfor %}}{{% endfor %}}"
    with pytest.raises(
        TemplateFailed, match=r"more than 1 s for a few short conversations \(bounds.template_s\)"
    ):
        try_template(Template(endless), 1)


def write(folder: Path, name: str, content: Any) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_the_template_of_a_folder_is_the_one_that_transformers_takes(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "pad_token": None,
        "image_token": "<image>",
    }
    own = {"tokenizer_class": "PreTrainedTokenizerFast"}
    write(tmp_path, "tokenizer_config.json", config | {"chat_template": CHATML})
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "image_token": "<image>"}
    assert read_template(tmp_path) == Template(CHATML, named)
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    write(tmp_path, "tokenizer_config.json", {"chat_template": several})
    assert read_template(tmp_path) == Template(
        CHATML, {"bos_token": "", "eos_token": "", "pad_token": ""}
    )  # its class may know them
    write(tmp_path, "tokenizer_config.json", {"chat_template": several, **own})
    assert read_template(tmp_path) == Template(CHATML)
    write(tmp_path, "additional_chat_templates/tool_use.jinja", "no")
    assert read_template(tmp_path) is None
    write(tmp_path, "chat_template.jinja", "\ufeffHello.\r\n")
    write(tmp_path, "special_tokens_map.json", {"eos_token": "<end>"})
    assert read_template(tmp_path) == Template("Hello.\n", {"eos_token": "<end>", "pad_token": "<end>"})


def test_a_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"chat_template": 5})
    with pytest.raises(BadFile, match=r"tokenizer_config.json: chat_template must be text, got the number 5"):
        read_template(tmp_path)


@pytest.fixture(scope="module", params=["llama2", "chatml"])
def tokenizer_folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that begins plain text with a BOS, and one without."""
    folder = tmp_path_factory.mktemp(request.param)
    names = {"llama2": next(name for name, kind in ARCHITECTURES.items() if kind.adds_bos), "chatml": "qwen"}
    make_tokenizer(ARCHITECTURES[names[request.param]]).save_pretrained(folder)
    return folder


def _whole(tokenizer: Any, messages: list[dict[str, str]]) -> int:
    ids = row_ids(tokenizer, messages[:-1], messages[-1]["content"], None)  # type: ignore[arg-type]
    return len(ids.prompt) + len(ids.completion)


def test_every_template_that_trl_ships_gives_plan_and_run_the_same_tokens(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    refused = []
    for path in SHIPPED:
        folder = shutil.copytree(tokenizer_folder, tmp_path / path.stem)
        shutil.copy(path, folder / "chat_template.jinja")
        tokenizer, count = load_tokenizer(folder), counter(folder)
        for name, messages in PROBES.items():
            try:
                wanted = len(prompt_ids(tokenizer, messages[:-1])), _whole(tokenizer, messages)
            except TemplateFailed as error:
                with pytest.raises(
                    TemplateFailed, match=re.escape(str(error).split(": ", 1)[1].split(" (line")[0])
                ):
                    count(messages, False)
                refused.append((path.stem.removesuffix("_training"), name))
                continue
            assert (count(messages[:-1], True), count(messages, False)) == wanted, (path.stem, name)
    assert {name for template, name in refused if template == "gemma"} >= {"a system message"}
    if tokenizer.bos_token:  # some templates write one, whatever the tokenizer
        assert {template for template, _ in refused} == {"gemma", "llava_next"}


def test_a_plan_counts_whole_texts_though_a_tokenizers_file_cuts_and_pads(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    """Trainings leave their truncation and padding in tokenizer.json; transformers sets both anew with each call."""
    folder = shutil.copytree(tokenizer_folder, tmp_path / "cutting")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    for content in ("a", "a " * 40):
        messages = [{"role": "text", "content": content}]
        assert counter(folder)(messages, True) == len(load_tokenizer(folder)(content)["input_ids"])
