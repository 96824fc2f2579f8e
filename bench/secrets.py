"""Finds secrets, and removes them from all text that leaves the process.

Secrets are the values of environment variables with a secret-like name (OPENAI_API_KEY, HF_TOKEN,
DB_PASSWORD) or that a judge names (judge.api_key_env), passwords in URLs of any variable, and the tokens that
Hugging Face, W&B and .netrc keep in files. A value counts from 8 characters on; a number, or one word of
letters only, from 16 on. Paths that exist and URLs without credentials never count. So `TOKEN=true` or
`KEY=default` redacts nothing.

A secret is found as it is, and as written by repr, JSON, HTML, URLs, hexadecimal digits, base64 and base32
(at any offset, with or without line breaks), with invisible characters inside, and in base64 of gzip or zlib.

`clean` also replaces text that only looks like a key (sk-..., hf_..., Bearer ..., http://user:password@host,
?api_key=...). `without_values` keeps such text, because it is for data, such as a judge's reply.
"""

from __future__ import annotations

import base64
import binascii
import configparser
import contextlib
import functools
import html
import itertools
import netrc
import os
import re
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO
from urllib.parse import parse_qsl, unquote, urlsplit

from bench.text_files import open_regular

REDACTED = "[redacted]"
SHORTEST, SHORTEST_WORD = 8, 16  # least characters of a secret, and of one that is a number or one word
CHUNK = 8 * 2**20  # bytes of a log that are cleaned together

_NAME = re.compile(
    r"secret|passw|passphrase|credential|authorization|bearer|apikey|(^|_)(token|auth|pwd|jwt|cookie)$"
    r"|(api|access|private|signing|account|subscription|encryption|master|service|deploy|license|ssh)_key(_id)?$"
)
# Further names, in the environment only
_VARIABLE = re.compile(r"_(key|pass|pw|pat|sas)s?_?\d*$|(^|_)token(_|$)|(^|_)(key|token)_?\d+$")
# Further names, in the query of a URL only
_QUERY = {"key", "sig", "signature", "code", "x_amz_signature", "x_goog_signature"}
_NO_SECRET = re.compile(
    r"(bos|eos|pad|unk|sep|cls|mask|stop|special|control)_token$|_(env|file|path|dir|name|type)$"
)

# (text that must occur before the pattern is tried, the pattern, its replacement)
_SHAPES = (
    *(
        (f"{start}-", re.compile(rf"{start}-(?<!\w{start}-)[\w-]{{16,}}"), REDACTED)
        for start in ("sk", "pk", "rk")
    ),
    ("hf_", re.compile(r"hf_(?<!\whf_)\w{16,}"), REDACTED),
    ("gh", re.compile(r"gh(?<!\wgh)[a-z]_\w{20,}"), REDACTED),
    ("github_pat_", re.compile(r"github_pat_\w{20,}"), REDACTED),
    ("AKIA", re.compile(r"AKIA(?<!\wAKIA)\w{16}\b"), REDACTED),
    ("local-", re.compile(r"local-(?<!\wlocal-)\w{40}\b"), REDACTED),
    ("wandb_v", re.compile(r"wandb_v\d_\w{20,}"), REDACTED),
    ("AIza", re.compile(r"AIza[\w-]{30,}"), REDACTED),
    ("xox", re.compile(r"xox[a-z]-[\w-]{10,}"), REDACTED),
    ("eyJ", re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+"), REDACTED),
    ("earer", re.compile(r"([Bb]earer\s+)[\w.~+/=-]{8,}"), rf"\1{REDACTED}"),
    ("://", re.compile(r"(://)[^/\s:@'\"]*:[^/\s'\"]+(?=@)"), rf"\1{REDACTED}"),
)
_FIELD = re.compile(r"(?P<before>[?&;](?P<name>[\w.-]{1,60})=)(?P<value>[^\s&;#'\"]+)")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")


class BadKey(ValueError):
    """A variable's value cannot be a key. The message names the variable, never the value."""


# What is secret ---------------------------------------------------------------------------------------------

_named: set[str] = set()  # variables that judges read their keys from, under any name


@functools.lru_cache(maxsize=4096)
def names_secret(name: str) -> bool:
    """Whether a field or variable with this name holds a secret: api_key, judgeApiKey, X-Api-Key;
    not eos_token, api_key_env."""
    words = _words(name)
    return bool(_NAME.search(words)) and not _NO_SECRET.search(words)


def _words(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")


def is_ordinary(value: str) -> bool:
    """Whether a value is no secret under any name: short, a number, a word, a path
    that exists, or a plain URL."""
    if len(value) < SHORTEST:
        return True
    if len(value) < SHORTEST_WORD and (
        re.fullmatch(r"[A-Za-z]+", value) or re.fullmatch(r"[-+\d.,:eE ]+", value)
    ):
        return True
    if value.startswith(("/", "~", "./")):
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            return Path(value).expanduser().exists()
    return bool(_URL.fullmatch(value)) and not list(_url_secrets(value))


def register_variable(variable: str) -> None:
    """Treat a variable's value as a secret from now on, whatever its name: a judge reads its key from it."""
    _named.add(variable)


def key(variable: str) -> str | None:
    """The key in a variable, without white space around it; None where it is empty.

    From now on it is a secret. Raises BadKey for a key with a character that an HTTP header cannot carry.
    """
    register_variable(variable)
    value = os.environ.get(variable, "").strip().strip("\ufeff").strip()
    if bad := next((i for i, c in enumerate(value, 1) if not (c.isascii() and c.isprintable())), None):
        what = "a control character" if value[bad - 1].isascii() else "a character that is not ASCII"
        raise BadKey(
            f"the environment variable {variable} must hold one key in one line, got {what} at position {bad} of {len(value)}: set it again"
        )
    return value or None


def _secrets(environment: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield (value, name) of each secret."""
    for name, value in environment:
        if name in _named or is_secret_variable(name):
            parts = (value, value.strip(), *re.split(r"[\x00-\x20\x7f]+", value))
            yield from ((part, name) for part in parts if not is_ordinary(part))
        if "://" in value:
            yield from ((part, name) for part in _url_secrets(value) if not is_ordinary(part))
    yield from _stored()


@functools.lru_cache(maxsize=4096)
def is_secret_variable(name: str) -> bool:
    """Whether an environment variable with this name holds a secret: names_secret's, and
    OPENAI_KEY, GH_TOKEN_2, DB_PASS."""
    words = _words(name)
    return names_secret(name) or (bool(_VARIABLE.search(words)) and not _NO_SECRET.search(words))


def _url_secrets(text: str) -> Iterator[str]:
    """Yield passwords and tokens in the URLs of a text."""
    for url in _URL.findall(text):
        with contextlib.suppress(ValueError):
            split = urlsplit(url)
            user, sign, password = split.netloc.rpartition("@")[0].partition(":")
            for part in (password if sign else user,):
                yield from filter(None, {part, unquote(part)})
            fields = [*parse_qsl(split.query), *parse_qsl(split.fragment)]
            yield from (value for name, value in fields if value and _is_secret_query(name))


def _is_secret_query(name: str) -> bool:
    return names_secret(name) or _words(name) in _QUERY


def _stored() -> Iterator[tuple[str, str]]:
    """Yield (value, name) of the tokens in the user's files: Hugging Face's, W&B's and .netrc."""
    env, tokens = os.environ.get, []
    hub = Path(env("HF_HOME") or Path(env("XDG_CACHE_HOME") or "~/.cache", "huggingface")).expanduser()
    with contextlib.suppress(OSError, ValueError):
        tokens.append(
            (
                "Hugging Face's token",
                Path(env("HF_TOKEN_PATH") or hub / "token").expanduser().read_text("utf-8").strip(),
            )
        )
    for name, path in (
        ("Hugging Face's token", hub / "stored_tokens"),
        ("W&B's key", Path(env("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings"),
    ):
        stored = configparser.ConfigParser(interpolation=None)
        with contextlib.suppress(configparser.Error, OSError, ValueError):
            stored.read(path)
        tokens += [
            (name, value)
            for section in stored.values()
            for field, value in section.items()
            if field in ("api_key", "hf_token")
        ]
    for path in [Path(env("NETRC") or "")] if env("NETRC") else [Path("~/.netrc"), Path("~/_netrc")]:
        with contextlib.suppress(OSError, ValueError, netrc.NetrcParseError):
            tokens += [
                (f"{path}", password or "")
                for _, _, password in netrc.netrc(path.expanduser()).hosts.values()
            ]
    yield from ((value, name) for name, value in tokens if not is_ordinary(value))


# How a secret may be written --------------------------------------------------------------------------------

_ESCAPES = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", "\v": "v", "\a": "a"}
_ENTITIES = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos"}


@dataclass(frozen=True)
class _Form:
    """One way to write a secret.

    `anchors`: a text with none of them cannot match. Where there are no anchors, the pattern is always tried.
    """

    pattern: str
    anchors: tuple[str, ...]


def _char(c: str) -> str:
    """A pattern for all ways to write a character. Letters and digits are never escaped."""
    if c.isascii() and c.isalnum():
        return c
    units = c.encode("utf-16-be", "surrogatepass")
    percent = "".join(f"%(?:25)*{byte:02x}" for byte in c.encode("utf-8", "surrogateescape"))
    unicode = "".join(rf"\\+u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
    ways = [
        rf"\\*{re.escape(c)}",
        f"(?i:{percent})",
        f"(?i:{unicode})",
        rf"&#0*{ord(c)};",
        rf"(?i:&#x0*{ord(c):x};)",
    ]
    ways += [rf"\\+(?i:x{ord(c):02x})"] if ord(c) < 256 else []
    ways += (
        ["(?i:" + "".join(rf"\\+x{byte:02x}" for byte in c.encode("utf-8", "surrogateescape")) + ")"]
        if ord(c) > 127
        else []
    )
    ways += [rf"\\+{_ESCAPES[c]}"] if c in _ESCAPES else []
    ways += [f"&{_ENTITIES[c]};"] if c in _ENTITIES else []
    ways += [r"\+"] if c == " " else []
    return f"(?:{'|'.join(ways)})"


def _longest_run(text: str) -> str:
    return max(re.findall(r"[A-Za-z0-9]+", text), key=len, default="")


def _forms(value: str) -> Iterator[_Form]:
    """Yield the ways to write a secret: escaped, hexadecimal, base64 and base32 at each offset."""
    anchor = _longest_run(value)
    yield _Form("".join(map(_char, value)), (anchor,) if anchor else ())
    content = value.encode("utf-8", "surrogateescape")
    yield _Form(f"(?i:{content.hex()})", (content.hex(), content.hex().upper()))
    for offset in range(3):
        whole = base64.b64encode(b"\0" * offset + content).decode()
        # A character that also encodes bits of neighbouring text may be any.
        core = whole[(0, 2, 3)[offset] : (offset + len(content)) * 8 // 6]
        chars = [{"+": rf"(?:{_char('+')}|-)", "/": f"(?:{_char('/')}|_)"}.get(c, c) for c in core]
        pieces = len(core) // 64 + 2  # One of so many is whole where lines of 64 characters or more break it.
        size = -(-len(core) // pieces)
        anchors = tuple(_longest_run(core[i : i + size]) for i in range(0, len(core), size))
        last = "(?:[A-Za-z0-9+/_-]=*)?" if (offset + len(content)) % 3 else ""
        yield _Form(_LINES.join(chars) + last, anchors if all(anchors) else ())
    for offset in range(5):
        whole = base64.b32encode(b"\0" * offset + content).decode()
        core = whole[-(-offset * 8 // 5) : (offset + len(content)) * 8 // 5]
        pieces = len(core) // 64 + 2
        size = -(-len(core) // pieces)
        anchors = tuple(core[i : i + size] for i in range(0, len(core), size))
        yield _Form(f"{_LINES.join(core)}(?:[A-Z2-7]=*)?", anchors)


_LINES = r"(?:\s|\\+[rn])*"  # line breaks inside base64 and base32
# Beginnings of gzip and zlib data in base64
_PACKED_STARTS = ("H4sI", "eJw", "eJx", "eJy", "eJz", "eNo", "eNp", "eNq", "eNr")
_PACKED = re.compile(r"[A-Za-z0-9+/_-](?:(?:[\r\n]|\\+[rn])*[A-Za-z0-9+/_-]){11,}={0,2}")
_MOST_UNPACKED = 2**20  # bytes of unpacked data that are searched
# Characters of no width
_UNSEEN = ("\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u180e", "\u200e", "\u200f")
_UNSEEN_ESCAPES = tuple(
    dict.fromkeys(
        form(f"{ord(c):04x}") for c in _UNSEEN for form in (r"\u{}".format, lambda d: rf"\u{d.upper()}")
    )
)
_UNSEEN_WRITTEN = [  # as they are, in JSON, and in JSON inside JSON
    re.compile(rf"[{''.join(_UNSEEN)}]|{slashes}u(?i:{'|'.join(f'{ord(c):04x}' for c in _UNSEEN)})")
    for slashes in (r"\\", r"\\+")
]


def _has_unseen(text: str) -> bool:
    return (not text.isascii() and any(c in text for c in _UNSEEN)) or (
        "\\u" in text and any(e in text for e in _UNSEEN_ESCAPES)
    )


def _unpacked(run: str) -> str:
    """The decompressed text of a run of base64; empty where it cannot be decompressed."""
    digits = re.sub(_LINES, "", run).rstrip("=").translate(str.maketrans("-_", "+/"))
    digits = digits[:-1] if len(digits) % 4 == 1 else digits
    with contextlib.suppress(binascii.Error, zlib.error):
        content = base64.b64decode(digits + "=" * (-len(digits) % 4))
        return (
            zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
            .decompress(content, _MOST_UNPACKED)
            .decode("utf-8", "surrogateescape")
        )
    return ""


@dataclass(frozen=True, eq=False)
class _Cleaner:
    """Finds and replaces a fixed set of secrets."""

    forms: tuple[tuple[str, _Form], ...]  # (name, form) of every secret, the longest first
    pattern: re.Pattern[str]
    values: tuple[tuple[str, str], ...]  # (name, value)

    def holders(self, text: str) -> set[str]:
        texts = [text, *(_unpacked(run[0]) for run in _packed_runs(text))]
        texts += [pattern.sub("", text) for pattern in _UNSEEN_WRITTEN] if _has_unseen(text) else []
        return {
            name
            for name, form in self.forms
            for text in texts
            if _may_hold(text, form) and re.search(form.pattern, text)
        }

    def clean(self, text: str) -> str:
        parts, end = [], 0
        for start, stop in self.spans(text):
            parts += [text[end:start], REDACTED]
            end = stop
        return "".join([*parts, text[end:]]) if parts else text

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The places (start, stop) of secrets in a text, in order and without overlap."""
        places = self._plain(text)
        places += [run.span() for run in _packed_runs(text) if self._plain(_unpacked(run[0]))]
        for pattern in _UNSEEN_WRITTEN if _has_unseen(text) else ():
            unseen = [index for match in pattern.finditer(text) for index in match.span()]
            bounds = [0, *unseen, len(text)]
            seen = list(zip(bounds[::2], bounds[1::2], strict=True))
            indices = [index for start, stop in seen for index in range(start, stop)]
            places += [
                (indices[start], indices[stop - 1] + 1)
                for start, stop in self._plain("".join(text[a:b] for a, b in seen))
            ]
        return _merged(places)

    def _plain(self, text: str) -> list[tuple[int, int]]:
        return (
            [match.span() for match in self.pattern.finditer(text)]
            if any(_may_hold(text, form) for _, form in self.forms)
            else []
        )


def _packed_runs(text: str) -> Iterator[re.Match[str]]:
    for start in _PACKED_STARTS:
        place = text.find(start)
        while place >= 0:
            if run := _PACKED.match(text, place):
                yield run
            place = text.find(start, place + 1 if run is None else run.end())


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order; overlapping ones are joined."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged


def _may_hold(text: str, form: _Form) -> bool:
    return not form.anchors or any(anchor in text for anchor in form.anchors)


def _cleaner() -> _Cleaner:
    return _cleaner_of(tuple(os.environ.items()), frozenset(_named))


@functools.lru_cache(maxsize=4)
def _cleaner_of(environment: tuple[tuple[str, str], ...], _: frozenset[str]) -> _Cleaner:
    """The cleaner for an environment and the token files that it names. It is cached."""
    names: dict[str, str] = {}
    for value, name in _secrets(environment):
        names.setdefault(value, name)
    forms = tuple(
        (names[value], form) for value in sorted(names, key=len, reverse=True) for form in _forms(value)
    )
    values = tuple((name, value) for value, name in names.items())
    return _Cleaner(forms, re.compile("|".join(form.pattern for _, form in forms) or r"(?!)"), values)


# Cleaning ---------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """The text without secrets and without anything that looks like a key.

    For screens, logs, errors, tables, trackers.
    """
    return _without_shapes(_cleaner().clean(text))


def without_values(text: str) -> str:
    """The text without the secrets that this process knows. For data: a made-up key in it stays."""
    return _cleaner().clean(text)


def _without_shapes(text: str) -> str:
    for anchor, pattern, replacement in _SHAPES:
        if anchor in text:
            text = pattern.sub(replacement, text)
    if "=" in text and ("?" in text or "&" in text):
        text = _FIELD.sub(
            lambda match: match["before"] + REDACTED if _is_secret_query(match["name"]) else match[0], text
        )
    return text


def shown(text: str) -> str:
    r"""The cleaned text with control characters escaped (\x1b), for screens and messages."""
    return _CONTROLS.sub(lambda match: _escaped(match[0]), clean(text))


def _escaped(c: str) -> str:
    return f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"


def excerpt(text: str, length: int) -> str:
    """The first `length` characters of a foreign text on one line, cleaned.

    It is cleaned before it is cut, because half a key is not recognised. A text with a secret in a form that
    `clean` does not know is left out.
    """
    line = shown(text[: max(100_000, length)])
    if hidden := _hidden(line):
        return f"{REDACTED}: the text holds the value of {hidden} in another encoding"
    line = " ".join(line.split())
    return line if len(line) <= length else f"{line[:length]}..."


_ESCAPED = re.compile(r"\\+(?:u([0-9a-f]{4})|x([0-9a-f]{2})|([0-7]{3}))|[%=]([0-9a-f]{2})", re.IGNORECASE)
_LINE_ENDS, _TAGS, _NO_KEY = re.compile(r"\\+[nrt]"), re.compile(r"<[^<>]{0,200}>"), re.compile(r"[\W_]+")
# Least letters and digits of a secret that is searched in other forms: shorter ones may match by chance.
HIDDEN_LENGTH = 16


def _hidden(text: str) -> str | None:
    """The name of a secret that a text holds in an unusual form; None without one.

    The secret's letters and digits are searched in order, forwards and backwards, with anything between them
    (zero bytes, spaces, tags) and escaped in any way.
    """
    plain = _ESCAPED.sub(_unescaped, html.unescape(unquote(text)))
    plain = _bare(_TAGS.sub("", _LINE_ENDS.sub("", plain)))
    unbroken = _LINE_ENDS.sub("", "".join(text.split()))
    for name, form in _cleaner().forms:
        if _may_hold(unbroken, form) and re.search(form.pattern, unbroken):
            return name
    return next(
        (name for name, bare in _bare_secrets(_cleaner()) if bare in plain or bare[::-1] in plain), None
    )


def _unescaped(match: re.Match[str]) -> str:
    sixteen, eight = match[1] or match[2] or match[4], match[3]
    return chr(int(sixteen, 16) if sixteen else int(eight, 8))


def _bare(text: str) -> str:
    return _NO_KEY.sub("", text).casefold()


def _bare_secrets(cleaner: _Cleaner) -> Iterator[tuple[str, str]]:
    for name, value in cleaner.values:
        if len(bare := _bare(value)) >= HIDDEN_LENGTH:
            yield name, bare


def clean_value(value: Any, *, secret: bool = False) -> Any:
    """The value with every text inside cleaned, names too.

    Texts of fields with a secret-like name are replaced whole.
    """
    if isinstance(value, str):
        return REDACTED if secret else clean(value)
    if isinstance(value, Mapping):
        return {
            _name(k, clean): clean_value(v, secret=secret or (isinstance(k, str) and names_secret(k)))
            for k, v in value.items()
        }
    return [clean_value(item, secret=secret) for item in value] if isinstance(value, (list, tuple)) else value


def clean_data(value: Any) -> Any:
    """JSON data from outside, with `without_values` applied to every text. A field's name does not matter."""
    if isinstance(value, str):
        return without_values(value)
    if isinstance(value, dict):
        return {_name(k, without_values): clean_data(item) for k, item in value.items()}
    return [clean_data(item) for item in value] if isinstance(value, list) else value


def _name(name: Any, cleaned: Callable[[str], str]) -> Any:
    return cleaned(name) if isinstance(name, str) else name


def clean_pieces(pieces: Sequence[str]) -> list[str]:
    """The pieces of one text (a reply's tokens) without secrets that span them.

    The first piece of a secret becomes REDACTED, the others become empty.
    """
    if not (spans := _cleaner().spans("".join(pieces))):
        return list(pieces)
    left, end = [], 0
    for piece in pieces:
        start, end = end, end + len(piece)
        hit = next(((a, b) for a, b in spans if a < end and start < b), None)
        left.append(piece if hit is None else (REDACTED if start <= hit[0] else ""))
    return left


def holders(content: str | bytes) -> list[str]:
    """The sorted names of variables and files with a secret that occurs in a text or in a file's content."""
    text = content.decode("utf-8", "surrogateescape") if isinstance(content, bytes) else content
    return sorted(_cleaner().holders(text))


# Settings ---------------------------------------------------------------------------------------------------


WAY_OUT = "put it into an environment variable and remove it here (judge.api_key_env names the variable of a judge's key)"
_ASSIGNMENT = re.compile(r"(?<![\w-])(?P<name>-{0,2}[A-Za-z_][\w.-]*)=(?P<value>[^\s&;]+)")


def refusal(name: str, value: Any) -> str | None:
    """The message for a setting, or section of settings, that holds a credential; None for any other.

    Settings are written into files, so they must hold none. The message names the setting, never its value.
    """
    return _refusal(name, value, _cleaner())


def _refusal(name: str, value: Any, cleaner: _Cleaner) -> str | None:
    if isinstance(value, Mapping):
        inside = ((f"{name}.{k}" if name else str(k), item) for k, item in value.items())
        return next((why for place, item in inside if (why := _refusal(place, item, cleaner))), None)
    if isinstance(value, (list, tuple)):
        for flag, following in itertools.pairwise(value):  # as in a command: --api-key, KEY
            if (
                isinstance(flag, str)
                and flag.startswith("-")
                and names_secret(flag)
                and not str(following).startswith("-")
            ):
                return f"{name} gives {flag} a value, and settings are written into files: {WAY_OUT}"
        return next((why for item in value if (why := _refusal(name, item, cleaner))), None)
    if value is None or isinstance(value, bool) or value == "":
        return None
    *_, section, own = ("", *name.split("."))
    if names_secret(own) or (section in ("env", "env_vars", "env_set") and is_secret_variable(own)):
        return f"{name} is named like a secret, and settings are written into files: {WAY_OUT}"
    if isinstance(value, str) and (what := _credential(value, cleaner)):
        return f"{name} holds {what}, and settings are written into files: {WAY_OUT}"
    return None


def assigns_secret(text: str) -> bool:
    """Whether an unreadable text gives a value to a field or flag with a secret-like
    name, as in `{api_key: ...`."""
    return any(map(is_secret_variable, re.findall(r"[A-Za-z_][\w-]*(?=['\"]?\s*[:=,])", text)))


@functools.lru_cache(maxsize=4096)  # Cells of a sweep share most settings.
def _credential(text: str, cleaner: _Cleaner) -> str | None:
    """The kind of credential that a text holds, without its value; None without one."""
    for url in _URL.findall(text):
        with contextlib.suppress(ValueError):
            split = urlsplit(url)
            if "@" in split.netloc:
                return "a URL with a user or password"
            if field := next(
                (
                    k
                    for k, v in [*parse_qsl(split.query), *parse_qsl(split.fragment)]
                    if v and _is_secret_query(k)
                ),
                None,
            ):
                return f"a URL with a key (its query field {shown(field)})"
    for match in _ASSIGNMENT.finditer(text):
        if is_secret_variable(match["name"]) and not match["value"].startswith(("$", '"$')):
            return f"a value of {match['name']}"
    if held := cleaner.holders(text):
        return f"the value of {', '.join(sorted(held))}"
    return "what looks like a key" if _without_shapes(text) != text else None


# Streams and files ------------------------------------------------------------------------------------------


class CleanStream:
    """A text stream that cleans all text written to it. Its other methods are those of the wrapped stream."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(clean(text))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard_streams() -> None:
    """Clean everything that this process prints from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, CleanStream):
            setattr(sys, name, CleanStream(stream))


def pipe_into(log: Path) -> tuple[int, threading.Thread]:
    """Start a thread that cleans a child's output line by line into a log: (file descriptor, thread).

    The child prints to the descriptor. Close it here once the child is started. The thread ends with the
    last process that holds it.
    """
    source, sink = os.pipe()
    out = log.open("wb", buffering=0)

    def run() -> None:
        held = b""
        with out, contextlib.closing(os.fdopen(source, "rb", buffering=0)) as pipe:
            while data := pipe.read(65536):
                held += data
                cut = max(held.rfind(b"\n"), held.rfind(b"\r")) + 1 or (
                    len(held) - 4096 if len(held) > 2**20 else 0
                )
                with contextlib.suppress(OSError):  # A full disk must not block the child.
                    out.write(_clean_bytes(held[:cut]))
                held = held[cut:]
            with contextlib.suppress(OSError):
                out.write(_clean_bytes(held))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return sink, thread


def clean_file(path: Path) -> None:
    """Clean a log in place. A log that is clean or gone is not touched."""
    aside = path.with_name(f"{path.name}.clean-{os.getpid()}")
    with contextlib.suppress(OSError):
        with open_regular(path) as file:
            if all(_clean_bytes(chunk) == chunk for chunk in _chunks(file)):
                return
            file.seek(0)
            with aside.open("wb") as out:
                out.writelines(map(_clean_bytes, _chunks(file)))
        aside.replace(path)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk + file.readline(CHUNK)


def _clean_bytes(content: bytes) -> bytes:
    return clean(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
