"""Secrets are planted wherever one can come in, and every file written is searched for them, as it is and decoded."""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
import random
import re
import string
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outer import outer

sys.path.insert(0, str(Path(__file__).parent / "fake_stages"))

from endpoint import Answer, Endpoint, Said, listed
from fake_stage import HERE, Fake, fake

from bench import secrets
from bench.cli.sweep_files import BadSweep, load_sweep
from bench.cli.words import SWEEPS
from bench.config import Cell, LocalLauncher, Serving, Session
from bench.engines import vllm_server
from bench.engines.vllm import Child, VllmFailed
from bench.runner.local_pool import Pool
from bench.runner.worker import describe
from bench.store import stage_settings
from bench.store.stage_run import reason
from bench.store.store import Store

KEY = "sk-PLANTED/planted+PLANTED=0123456789abcdef"
ROOT = Path(__file__).parent.parent


# A search for secrets -------------------------------------------------------------------------------------------------


def views(content: bytes) -> Iterator[str]:
    """A content, and what a reader can make of it: decompressed, unescaped, base64 and hexadecimal digits decoded."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    text = content.decode("utf-8", "replace")
    yield text
    unescaped = re.sub(
        r"\\+u([0-9a-fA-F]{4})|\\+x([0-9a-fA-F]{2})", lambda m: chr(int(m[1] or m[2], 16)), text
    ).replace("\\", "")
    yield unescaped
    yield urllib.parse.unquote(urllib.parse.unquote(unescaped))
    yield html.unescape(unescaped)
    for run in re.findall(r"[A-Za-z0-9+/_-]{12,}", re.sub(r"\\+[nr]|\s", "", text)):
        for start in range(4):
            part = run[start:].replace("-", "+").replace("_", "/")
            yield base64.b64decode(part[: len(part) // 4 * 4]).decode("latin-1")
    yield "".join(
        bytes.fromhex(run[: len(run) // 2 * 2]).decode("latin-1")
        for run in re.findall(r"[0-9a-fA-F]{16,}", text)
    )


def parts(secret: str) -> list[str]:
    """What must not be found: pieces of a secret, since half a key is a leak as well."""
    return [secret[i : i + 10] for i in range(2, len(secret) - 10, 4)]


def leaks(folder: Path, *said: str, planted: Sequence[str] = (KEY,)) -> list[str]:
    """Where a secret can be read: files below a folder (members of archives too), their names, and what a command has said."""
    contents = [("said", text.encode()) for text in said]
    for path in folder.rglob("*"):
        contents.append((f"name of {path}", str(path.relative_to(folder)).encode()))
        if path.is_file() and tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
                contents += [(f"{path}:{member.name}", file.read()) for member, file in members if file]
        elif path.is_file():
            contents.append((str(path), path.read_bytes()))
    found = []
    for name, content in contents:
        seen = "\n".join(views(content))
        found += [f"{name} holds {part}" for secret in planted for part in parts(secret) if part in seen][:1]
    return found


def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    for i, write in enumerate(WRITTEN):
        (tmp_path / f"{i}").write_text(f"before {write(KEY)} after")
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(KEY.encode()))
    found = {Path(line.split()[0]).name for line in leaks(tmp_path)}
    assert found == {*map(str, range(len(WRITTEN))), "zipped.gz"}


# Ways to write a secret -----------------------------------------------------------------------------------------------


def _base64(encode: Callable[[bytes], bytes], offset: int) -> Callable[[str], str]:
    return lambda text: encode(b"xyz"[:offset] + text.encode() + b"~~").decode()


WRITTEN: list[Callable[[str], str]] = [
    str,
    repr,
    lambda text: repr(text.encode()),
    lambda text: repr(repr(f"'\"{text}")),
    json.dumps,
    lambda text: json.dumps(json.dumps(text)),
    lambda text: json.dumps(text).replace("/", "\\/"),
    urllib.parse.quote,
    lambda text: urllib.parse.quote(text, safe=""),
    lambda text: re.sub("%..", lambda m: m[0].lower(), urllib.parse.quote(text, safe="")),
    lambda text: urllib.parse.quote(urllib.parse.quote(text, safe=""), safe=""),
    urllib.parse.quote_plus,
    html.escape,
    lambda text: text.encode().hex(),
    *(
        _base64(encode, offset)
        for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes)
        for offset in range(3)
    ),
    lambda text: json.dumps(_base64(base64.encodebytes, 1)(text)),
]

PACKED: list[Callable[[str], str]] = [
    *(_base64(base64.b32encode, offset) for offset in range(3)),
    lambda text: base64.b32encode(b"1234" + text.encode() + b"~~").decode().rstrip("="),
    lambda text: base64.b32encode(b"x" + text.encode()).decode().rstrip("="),
    lambda text: re.sub("(.{40})", "\\1\n", base64.b32encode(text.encode()).decode()),
    lambda text: base64.b64encode(gzip.compress(f"Authorization: Bearer {text}".encode(), mtime=0)).decode(),
    lambda text: base64.urlsafe_b64encode(gzip.compress(text.encode(), mtime=0)).decode().rstrip("="),
    lambda text: json.dumps(
        base64.encodebytes(gzip.compress(f"a page with {text} in it".encode(), mtime=0)).decode()
    ),
    *(
        (lambda text, level=level: base64.b64encode(zlib.compress(text.encode(), level)).decode())
        for level in (6, 9)
    ),
    *(
        (lambda text, unseen=unseen: unseen.join(text))
        for unseen in ("\u200b", "\u200d\u2060", "\ufeff", "\u00ad")
    ),
    lambda text: text[:5] + "\u200b" + text[5:],
    lambda text: json.dumps(text[:9] + "\u200b" + text[9:]),
    lambda text: json.dumps(json.dumps(text[:9] + "\u200b" + text[9:])),
]


@pytest.mark.parametrize("write", range(len(WRITTEN + PACKED)))
@pytest.mark.parametrize(
    "key",
    [
        KEY,
        "plain0123456789plain",
        "quo'te\"d\\back&slash<é>%25",
        "in\x07side\x1b[2Jcontrols1",
        "a b\tc_d-e.f~g9",
    ],
)
def test_a_secret_is_found_however_it_is_written(
    write: int, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", key)
    text = f"before: {(WRITTEN + PACKED)[write](key)} :after"
    for cleaned in (secrets.without_values(text), secrets.clean(text), secrets.shown(text)):
        assert secrets.REDACTED in cleaned and cleaned.startswith("before: ") and cleaned.endswith(" :after")
        assert len(cleaned) < 40, cleaned
    assert secrets.holders(text) == ["SOME_API_KEY"] == secrets.holders(text.encode())


@given(
    key=st.text(
        st.sampled_from(string.ascii_letters + string.digits + "-_./+=~:&%'\" \\é"), min_size=17, max_size=200
    ),
    write=st.sampled_from(WRITTEN + PACKED),
    around=st.text(max_size=30),
)
def test_any_key_is_found_and_nothing_else_is_touched(
    key: str, write: Callable[[str], str], around: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_API_KEY", key)
        assert secrets.without_values(around) == around or secrets.holders(around)
        text = f"{around}\n{write(key)}\n{around}"
        if not secrets.is_ordinary(key):
            assert secrets.REDACTED in secrets.without_values(text)
            assert key not in secrets.without_values(text) and write(key) not in secrets.without_values(text)


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\r", "\t\n"])
def test_white_space_around_a_key_hides_it_nowhere(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY + end)
    assert secrets.key("OPENAI_API_KEY") == KEY
    for text in (f"Illegal header value {f'Bearer {KEY}{end}'.encode()!r}", KEY, f"Bearer {KEY}{end}"):
        assert "PLANTED" not in secrets.without_values(text)


@pytest.mark.parametrize(
    "inside", ["\n", "\r", "\x07", "\x1b[2J", "\x00"[:0] + "\x7f", "é", "\u201c", "\u200b"]
)
def test_a_key_that_no_header_carries_is_refused_by_its_variables_name(
    inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_JUDGE", KEY[:20] + inside + KEY[20:])
    with pytest.raises(
        secrets.BadKey, match="the environment variable MY_JUDGE must hold one key in one line, got a"
    ) as error:
        secrets.key("MY_JUDGE")
    assert not [part for part in parts(KEY) if part in str(error.value)]
    assert "PLANTED" not in secrets.without_values(
        f"{KEY[:20]}{inside}{KEY[20:]}"
    )  # secret under a name that does not say so


@pytest.mark.parametrize(
    "value",
    [
        "true",
        "default",
        "placeholder",
        "12345678",
        "0.12345678",
        "/tmp",
        "https://auth.example.com/token",
        "   ",
    ],
)
def test_ordinary_values_blacken_nothing(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule: 8 characters; a number or one word 16; folders that exist and URLs without credentials never."""
    for name in ("SOME_TOKEN", "SOME_API_KEY", "SOME_SECRET"):
        monkeypatch.setenv(name, value)
    text = f"win rate 0.12345678 of 12345678 in /tmp (default, placeholder) true at https://auth.example.com/token   {value}"
    assert secrets.clean(text) == text and secrets.holders(text) == []


NAMES = {
    "secret": [
        "api_key",
        "judgeApiKey",
        "X-Api-Key",
        "hf_token",
        "Authorization",
        "access_token",
        "password",
        "client_secret",
        "APIKEY",
    ],
    "variable": [
        "OPENAI_KEY",
        "GH_TOKEN_2",
        "DB_PASS",
        "MY_API_KEY",
        "HUGGING_FACE_HUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_KEY1",
    ],
    "neither": [
        "tokenizer",
        "max_tokens",
        "eos_token",
        "api_key_env",
        "key",
        "keep",
        "TOKENIZERS_PARALLELISM",
        "n_kl_prompts",
        "monkey",
    ],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_names_of_secrets(kind: str, name: str) -> None:
    assert secrets.names_secret(name) == (kind == "secret") or kind == "variable"
    assert secrets.is_secret_variable(name) == (kind != "neither")


def test_no_setting_of_ours_is_named_like_a_secret() -> None:
    def names(schema: Any) -> Iterator[str]:
        if isinstance(schema, Mapping):
            yield from schema.get("properties", {})
            for item in schema.values():
                yield from names(item)
        elif isinstance(schema, list):
            for item in schema:
                yield from names(item)

    found = {name for record in (Cell, Session) for name in names(record.model_json_schema())}
    assert "api_key_env" in found and len(found) > 100
    assert {name for name in found if secrets.names_secret(name)} == set()


def test_tokens_in_files_and_passwords_in_urls_are_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hub-token-0123456789\n")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password netrc-password-1\n")
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\napi_key = wandb-key-0123456789\n")
    for name, value in {"HF_HOME": "hf", "NETRC": "netrc", "WANDB_CONFIG_DIR": "wandb"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxy-p%40ssw0rd@proxy:3128")
    for secret in (
        "hub-token-0123456789",
        "netrc-password-1",
        "wandb-key-0123456789",
        "proxy-p%40ssw0rd",
        "proxy-p@ssw0rd",
    ):
        assert secrets.without_values(f"a {secret} b") == "a [redacted] b"


def test_packed_data_without_a_secret_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    pages = [
        gzip.compress(b"a page" * 9),
        zlib.compress(b"another"),
        gzip.compress(b"x" * 99)[:20],
        b"no page at all",
        gzip.compress(b""),
    ]
    texts = [base64.b64encode(page).decode() for page in pages] + [
        "H4sI is no page",
        "a\u200bb \\u200b c",
        "H4sI" * 99,
        "eJw" + "A" * 40,
    ]
    assert [secrets.without_values(text) for text in texts] == texts
    bomb = base64.b64encode(gzip.compress(bytes(200 * 2**20), 9)).decode()
    assert secrets.clean(bomb) == bomb


def test_a_key_between_characters_that_nobody_sees_is_found_in_a_replys_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    pieces = ["so ", KEY[:5] + "\u200b", KEY[5:], " it is\u200b"]
    assert secrets.clean_pieces(pieces) == ["so ", secrets.REDACTED, "", " it is\u200b"]
    assert secrets.clean_data({"content": "\u200b" + "\u200b".join(KEY)}) == {
        "content": "\u200b" + secrets.REDACTED
    }


def test_cleaning_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of 8 MB, and many short lines: a small part of the time that writing them takes a model."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rng = random.Random(0)
    log = "".join(rng.choices(string.ascii_letters + string.digits + " \n/+=:", k=8_000_000))
    began = time.process_time()
    assert secrets.clean(log) == log
    for _ in range(2000):
        secrets.clean("{'loss': 0.69, 'step': 1}")
    assert time.process_time() - began < 10


# Streams, logs, replies -----------------------------------------------------------------------------------------------


def test_pieces_of_a_secret_are_found_across_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    pieces = ["key ", "sk", "-PLANTED", KEY[10:30], KEY[30:] + ".", " so", " m"]
    assert secrets.clean_pieces(pieces) == ["key ", "[redacted]", "", "", "", " so", " m"]
    assert secrets.clean_pieces(["a", "b"]) == ["a", "b"]


def test_an_excerpt_is_cleaned_before_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for length in range(1, 60):
        assert "sk-P" not in secrets.excerpt(f"a page {KEY}", length)
        assert "sk-P" not in reason(ValueError("x" * (390 - length) + KEY))
    assert secrets.excerpt("one\n two\x1b[2J \x9b1m\u202e", 100) == "one two\\x1b[2J \\x9b1m\\u202e"


OTHER_WRITINGS: dict[str, Callable[[str], str]] = {
    "JSON's escapes of every character": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "HTML's": lambda key: "".join(f"&#x{ord(c):06X};" for c in key),
    "a URL's": lambda key: "".join(f"%{ord(c):02x}" for c in key),
    "mail's": lambda key: "".join(f"={ord(c):02X}" for c in key),
    "octal": lambda key: "".join(f"\\{ord(c):03o}" for c in key),
    "UTF-16 that was read as UTF-8": lambda key: key.encode("utf-16-le").decode(),
    "UTF-32 that was read as UTF-8": lambda key: key.encode("utf-32-be").decode(),
    "spaces": " ".join,
    "a place to break a line": lambda key: f"{key[:9]}<wbr>{key[9:]}",
    "a line end": lambda key: json.dumps(json.dumps(f"{key[:9]}\n{key[9:]}")),
    "capitals": str.upper,
    "backwards": lambda key: key[::-1],
    "base64 in short lines": lambda key: json.dumps(
        re.sub("(.{9})", "\\1\n", base64.b64encode(f"Bearer {key}".encode()).decode())
    ),
}


@pytest.mark.parametrize("writing", OTHER_WRITINGS)
def test_a_page_that_hides_a_key_in_another_encoding_is_left_out(
    writing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "live-a8F3kQz71LmT09xw")
    written = OTHER_WRITINGS[writing]("live-a8F3kQz71LmT09xw")
    left_out = "[redacted]: the text holds the value of SOME_API_KEY in another encoding"
    assert secrets.excerpt(f"a page: {written} ends", 1000) == left_out


@pytest.mark.parametrize(
    "page",
    ["<p>The model is busy: 100 % of live-a8F3</p>", 'quota \\"x\\" =20 of %41 \\u0041 &amp; done', "a b c"],
)
def test_any_other_page_is_shown(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "live-a8F3kQz71LmT09xw")
    assert secrets.excerpt(page, 1000) == page


def test_what_a_process_prints_is_cleaned(tmp_path: Path) -> None:
    """Its own prints and tracebacks by its streams; libraries' and children's by whoever keeps the log."""
    code = "from bench import secrets; import os, sys, logging; secrets.guard_streams(); k = os.environ['OPENAI_API_KEY'];"
    code += "print('out', k); logging.warning('log %r', k + chr(10)); sys.stderr.writelines([k]); 1 / 0 if not k else int(k)"
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (
        "out [redacted]" in ran.stdout
        and "log '[redacted]\\n'" in ran.stderr
        and "ValueError: invalid literal" in ran.stderr
    )
    assert leaks(tmp_path, ran.stdout, ran.stderr) == []


def test_logs_of_stages_are_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage prints a key in Python, natively and by a child; one fails with it, one dies with it."""
    monkeypatch.setitem(stage_settings.SETTINGS, "fake", (Fake,))
    monkeypatch.setitem(stage_settings.VERSIONS, "fake", 1)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "store" / "fake").mkdir(parents=True)
    store = Store(tmp_path / "store")
    monkeypatch.setenv("SHOWN", f"it printed {KEY}")
    pool, reports = (
        Pool(LocalLauncher(name="local", workers=1, threads=1, stage_timeout_s=60.0, retries=0)),
        [],
    )
    stages = [fake("prints", prints=f"key {KEY}"), fake("fails", fail=f"no luck with {KEY}\x1b[2J")]
    for stage in stages:
        pool.start(describe(stage, store) | {}, store.sidecar(stage, "log"))
        until = time.monotonic() + 60
        while len(reports) < len(stages) and time.monotonic() < until and not (found := pool.reports(0.5)):
            pass
        reports += found
    pool.close()
    logs = [store.sidecar(stage, "log").read_text() for stage in stages]
    assert logs[0].count("key [redacted]") == 4 and "no luck with [redacted]" in logs[1]
    assert reports[1].error == "ValueError: no luck with [redacted]\\x1b[2J"
    store.record_failure(stages[1], f"no luck with {KEY}")
    assert store.failure(stages[1]) == "no luck with [redacted]"
    for path in (tmp_path / "store" / "fake").glob("*/manifest.json"):
        path.unlink()  # the settings of this stage hold the key, which the checks refuse
    assert leaks(tmp_path) == []


def test_the_log_of_a_server_is_cleaned_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    code = "import os, sys, time, base64; k = os.environ['OPENAI_API_KEY']; print('starts', k, flush=True); "
    code += "print(repr(k), file=sys.stderr);"
    code += "sys.stdout.write('half a line ' + k[:20]); sys.stdout.flush(); time.sleep(1); "
    code += "print(k[20:], base64.b64encode(k.encode()))"
    process = vllm_server.start([sys.executable, "-c", code], tmp_path / "a.server.log")
    assert process.wait(60) == 0
    until = time.monotonic() + 10
    while "half a line" not in (log := (tmp_path / "a.server.log").read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    assert "starts [redacted]" in log and "half a line [redacted]" in log
    assert leaks(tmp_path) == []


def test_the_log_of_vllms_engine_is_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A python that prints its environment and ends stands where vLLM's would."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "python").write_text("#!/bin/sh\necho ready $OPENAI_API_KEY\nenv >&2\n")
    (tmp_path / "python").chmod(0o755)
    sizes: dict[str, Any] = {
        "gpu_memory_utilization": 0.5,
        "tensor_parallel_size": 1,
        "max_model_len": None,
        "arguments": {},
    }
    child = Child(Serving(python=str(tmp_path / "python"), **sizes))
    with pytest.raises(VllmFailed, match="its process ended with exit code 0"):
        child.ask("write")
    assert "ready [redacted]" in (said := capsys.readouterr().err) and "OPENAI_API_KEY=[redacted]" in said
    assert leaks(tmp_path, said) == []


def test_a_dirty_log_is_cleaned_in_place_and_a_clean_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    clean, dirty = tmp_path / "clean", tmp_path / "dirty"
    clean.write_bytes(b"\xff fine\n")
    dirty.write_bytes(b"\xff one\n" + KEY.encode() + b"\nlast")
    before = clean.stat().st_mtime_ns, clean.stat().st_ino
    for path in (clean, dirty, tmp_path / "gone"):
        secrets.clean_file(path)
    assert (clean.stat().st_mtime_ns, clean.stat().st_ino) == before
    assert dirty.read_bytes() == b"\xff one\n[redacted]\nlast"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "dirty"]


# Before a run ----------------------------------------------------------------------------------------------------------

PASSWORD = "Planted-Passw0rd!"
TYPED = [
    ["judge=mt_bench", f"judge.base_url=http://user:{PASSWORD}@host/v1"],
    ["judge=mt_bench", f"judge.base_url='https://{PASSWORD}@host/v1'"],
    ["judge=mt_bench", f"judge.base_url='http://host/v1?api_key={PASSWORD}'"],
    ["judge=mt_bench", f"judge.base_url='http://host/v1?v=1&key={PASSWORD}'"],
    ["judge=mt_bench", f"judge.verdict.request={{api_key: {PASSWORD}}}"],
    ["judge=mt_bench", f"judge.verdict.request={{extra: {{headers: {{Authorization: {PASSWORD}}}}}}}"],
    ["judge=mt_bench", f"+judge.verdict.request.access_token={PASSWORD}"],
    ["judge=mt_bench", f"judge.server_args=[--api-key,{PASSWORD}]"],
    ["judge=mt_bench", f"judge.server_args=[--api-key={PASSWORD}]"],
    ["judge=mt_bench", "judge.api_key_env=sk-abcdefghijklmnop0123"],
    ["hydra/launcher=slurm", f"hydra.launcher.env={{OPENAI_KEY: {PASSWORD}}}"],
    ["hydra/launcher=slurm", f"+hydra.launcher.env.MY_TOKEN={PASSWORD}"],
    ["hydra/launcher=slurm", f"hydra.launcher.setup=['export MY_TOKEN={PASSWORD}']"],
    ["hydra/launcher=ray", f"hydra.launcher.runtime_env={{env_vars: {{MY_TOKEN: {PASSWORD}}}}}"],
    ["model.name=$PLANTED"],
    ["results=/tmp/$PLANTED"],
    ["seed=1,2", "tracker.project=$PLANTED"],
    [f"model.name=http://u:{PASSWORD}@h/ {{not: readable"],
]


@pytest.mark.parametrize("words", TYPED, ids=lambda words: words[-1].partition("=")[0])
def test_a_typed_credential_is_refused_without_being_repeated(
    words: list[str], problems: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_API_KEY", "planted-0123456789")
    found = problems(*(word.replace("$PLANTED", "planted-0123456789") for word in words))
    assert found and all(
        "settings are written into files: put it into an environment variable" in line for line in found
    ), found
    assert not [line for line in found if PASSWORD in line or "0123" in line]


def test_a_credential_in_a_config_file_is_refused(tmp_path: Path, problems: Callable[..., list[str]]) -> None:
    text = (ROOT / "conf" / "judge" / "mt_bench.yaml").read_text()
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "mine.yaml").write_text(
        re.sub(r"base_url:.*", f"base_url: http://me:{PASSWORD}@host/v1", text)
    )
    (line,) = problems(f"--config-dir={tmp_path}", "judge=mine")
    assert line.startswith("judge.base_url holds a URL with a user or password") and PASSWORD not in line


def sweep_file(folder: Path, text: str) -> str:
    (folder / "sweep").mkdir(exist_ok=True)
    (folder / "sweep" / "theirs.yaml").write_text(f"# @package _global_\n# Question: what?\n{text}")
    return f"--config-dir={folder}"


@pytest.mark.parametrize(
    "text",
    [
        "model: {name: '${oc.env:OPENAI_API_KEY}'}",
        "axes: {method.beta: ['${oc.env:OPENAI_API_KEY}']}",
        "grids: [{seed: [1], judge: ['x-${oc.env:OPENAI_API_KEY,none}-y']}]",
        "a: oc\nmodel: {name: '${${a}.env:OPENAI_API_KEY}'}",
        "model: {name: '${scale.${oc.env:OPENAI_API_KEY}}'}",
        "model: {name: \"${oc.decode:'${oc.env:OPENAI_API_KEY}'}\"}",
        "model: {name: '${ oc.env : HOME }'}",
        "model: {name: '${oc.select:x,1}'}",
        "model: {name: '${hydra:runtime.cwd}'}",
    ],
)
def test_a_sweep_file_reads_no_environment(
    text: str, tmp_path: Path, problems: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = problems(sweep_file(tmp_path, text), "+sweep=theirs")
    assert any("must not read the environment or anything else outside it" in line for line in found), found
    assert not [part for part in parts(KEY) if part in "".join(found)]


def test_a_sweep_file_holds_no_credential(tmp_path: Path, problems: Callable[..., list[str]]) -> None:
    flag = sweep_file(
        tmp_path, f"axes: {{seed: [1]}}\njudge: {{verdict: {{request: {{api_key: {PASSWORD}}}}}}}"
    )
    (line,) = [line for line in problems(flag, "+sweep=theirs") if "verdict" in line]
    assert "judge.verdict.request.api_key is named like a secret" in line and PASSWORD not in line


def test_our_sweeps_pass() -> None:
    for path in SWEEPS.glob("*.yaml"):
        load_sweep(path)
    with pytest.raises(BadSweep):
        load_sweep(ROOT / "conf" / "nothing.yaml")


def test_config_files_and_the_command_line_read_the_environment_but_no_secret(
    tmp_path: Path, problems: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`${oc.env:SCRATCH}` in a user's own files says where their data lie."""
    monkeypatch.setenv("SCRATCH_NAME", "mine")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("A_COPY", f"x {KEY} y")
    assert problems("model.name='${oc.env:SCRATCH_NAME}'") == []
    for name in ("OPENAI_API_KEY", "A_COPY"):
        found = problems(f"model.name='${{oc.env:{name}}}'")
        assert any(f"the environment variable {name} is secret" in line for line in found), found
        assert not [part for part in parts(KEY) if part in "".join(found)]


# The whole command ----------------------------------------------------------------------------------------------------

PAGES: dict[str, Callable[[str], str | Said | Answer]] = {
    "500-plain": lambda key: Answer(500, f"<h1>Bearer {key}</h1>\x1b[2J"),
    "500-base64": lambda key: Answer(500, base64.b64encode(f"Authorization: Bearer {key}".encode()).decode()),
    "500-lines-of-base64": lambda key: Answer(
        500, base64.encodebytes(f"{'Host: here ' * 4}Bearer {key}".encode()).decode()
    ),
    "500-cut": lambda key: Answer(500, "x" * 280 + key),
    "503-json": lambda key: Answer(
        503, json.dumps({"headers": json.dumps({"authorization": f"Bearer {key}"})}).replace("/", "\\/")
    ),
    "429-url": lambda key: Answer(429, f"/v1?next=%2Fa%3Fkey%3D{urllib.parse.quote(key, safe='')}"),
    "400-plain": lambda key: Answer(400, json.dumps({"error": f"bad key {key}"})),
    "401-plain": lambda key: Answer(401, json.dumps({"error": f"bad key {key}"})),
    "200-no-completion": lambda key: Answer(200, f"<html>{key}</html>"),
    "200-odd-completion": lambda key: Answer(200, json.dumps({"choices": [{key: key}], "model": key})),
    "200-that-repeats-it": lambda key: Said(
        f"I know {key}, {base64.b64encode(key.encode()).decode()} and {urllib.parse.quote(key, safe='')}. Rating: [[7]]",
        tokens=[
            listed(piece, {piece: 0.9, key: 0.1})
            for piece in ("I know ", key[:5], key[5:20], key[20:], ". Rating: [[", "7", "]]")
        ],
        model=f"served-{key}",
        thinking=f"thinking of {key}",
    ),
}


def judged(folder: Path, endpoint: Endpoint) -> list[str]:
    """Words of a command that asks a judge about two answers, and trains nothing."""
    questions = [{"question_id": i, "category": "math", "turns": [f"What is {i} + {i}?"]} for i in (1, 2)]
    answers = [{"prompt": row["turns"][0], "completion": "It is even."} for row in questions]
    for name, rows in {"question.jsonl": questions, "answers.jsonl": answers}.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"completions={folder / 'answers.jsonl'}", f"judge.items={folder / 'question.jsonl'}"]
    return [
        *files,
        "judge=mt_bench",
        f"judge.base_url={endpoint.url}",
        "judge.attempts=1",
        "judge.concurrency=1",
    ]


def command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OPENAI_API_KEY": KEY,
        "OPENAI_LOG": "debug",
        **environment,
    }
    line = [sys.executable, "-m", "bench", *words, f"results={folder / 'results'}"]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=240, env=variables, cwd=folder, check=False
    )


@outer
def test_nothing_secret_is_written_whatever_an_endpoint_says(tmp_path: Path, endpoint: Endpoint) -> None:
    """One command asks a judge for each page; a key from a file with its line end. Then the verbs that read what it wrote."""
    endpoint.say = lambda body: PAGES[body["model"]](KEY)
    words = [*judged(tmp_path, endpoint), f"judge.model={','.join(PAGES)}"]
    ran = command(tmp_path, *words, "tracker.mode=offline", OPENAI_API_KEY=f"{KEY}\r\n")
    assert {headers["authorization"] for headers in endpoint.headers} == {f"Bearer {KEY}"}
    assert {body["model"] for body in endpoint.asked} == {*PAGES}
    assert ran.returncode == 3, ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr
    failed = [json.loads(path.read_text())["error"] for path in tmp_path.rglob("*.failed.json")]
    assert (
        len(failed) == len(PAGES) - 1 and sum("[redacted]" in why for why in failed) >= len(failed) - 1
    )  # one was cut before it
    (journal,) = (path for path in tmp_path.rglob("journal.jsonl") if "Rating" in path.read_text())
    assert "I know [redacted], [redacted] and [redacted]. Rating: [[7]]" in journal.read_text()
    (result,) = (
        json.loads(path.read_text())["metrics"] for path in tmp_path.glob("results/store/score/*/result.json")
    )
    assert result["rating"] == 7.0
    assert {path.suffix for path in tmp_path.rglob("*")} >= {
        ".wandb",
        ".parquet",
        ".tex",
        ".csv",
        ".yaml",
        ".log",
        ".txt",
        ".md",
    }
    again = [
        command(tmp_path, *words, "tracker=none", "do=report"),
        command(tmp_path, *words, "tracker=none", "do=bundle", "out=b.tar.gz"),
    ]
    assert (tmp_path / "b.tar.gz").exists(), again[1].stderr
    assert leaks(tmp_path, *(text for done in (ran, *again) for text in (done.stdout, done.stderr))) == []


def test_a_key_with_a_control_character_is_refused_before_anything_is_done(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    words = [*judged(tmp_path, endpoint), "judge.model=m", "tracker=none"]
    ran = command(tmp_path, *words, OPENAI_API_KEY=KEY[:20] + "\n" + KEY[20:])
    assert ran.returncode == 2
    assert (
        "the environment variable OPENAI_API_KEY must hold one key in one line" in ran.stderr
        and "Traceback" not in ran.stderr
    )
    assert endpoint.asked == []
    assert leaks(tmp_path, ran.stdout, ran.stderr) == []


def test_hydras_own_flags_show_no_secret(tmp_path: Path) -> None:
    flag = sweep_file(tmp_path, "model: {name: '${oc.env:OPENAI_API_KEY}'}")
    for words in (["--cfg", "job", "--resolve"], ["--cfg", "all"]):
        ran = command(tmp_path, flag, "+sweep=theirs", *words)
        assert leaks(tmp_path, ran.stdout, ran.stderr) == []
