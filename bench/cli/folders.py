"""Files and model folders that settings name, and checks of their content."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from bench.config import Bounds, user_path
from bench.machine import PACKAGE
from bench.models.model_config import (
    check_ends,
    check_no_adapter,
    check_rows,
    check_shards,
    check_sizes,
    check_whole,
)
from bench.models.templates import (
    TEMPLATE,
    TEMPLATE_DATE,
    TEMPLATES,
    Template,
    TemplateFailed,
    dated,
    is_dated,
    read_template,
    special_tokens,
    try_template,
)
from bench.store.keys import hash_long
from bench.text_files import read_text

CHAT_TEMPLATES = PACKAGE / "models" / "chat_templates"
KNOWN = ", ".join(sorted(path.stem for path in CHAT_TEMPLATES.glob("*.jinja")))
NAME_ONE = f"set model.chat_template ({KNOWN}, or a Jinja file)"
ADD_ONE = f"add {TEMPLATE}"


def existing_file(text: str, key: str, what: str = "a file") -> Path:
    path = user_path(text)
    if not path.is_file():
        raise ValueError(
            f"{key} must be {what}, got {text}: {'a folder' if path.is_dir() else 'no such file'}"
        )
    return path


def model_folder(
    text: str, bounds: Bounds, key: str = "model.path", what: str = "a causal LM", weights: bool = True
) -> Path:
    """A model's folder by its path. Raises ValueError for a folder that lacks files or fails check_model."""
    folder = user_path(text)
    if not folder.is_dir():
        hint = (
            ""
            if text.count("/") != 1 or text[:1] in "./~"
            else f" (for a model of the hub: model=hub model.hub={text})"
        )
        raise ValueError(
            f"{key} must be a folder of {what}, got {text}: no such folder{hint if key == 'model.path' else ''}"
        )
    lying = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    for part, pattern in (
        ("config.json", "config.json"),
        ("tokenizer files", "*token*"),
        ("*.safetensors", "*.safetensors"),
    ):
        if not list(folder.glob(pattern)) and (weights or "safetensors" not in part):
            wanted = f"{key} must hold config.json, a tokenizer and weights as safetensors"
            raise ValueError(f"{wanted}, got {text} without {part} (it holds {lying})")
    check_model(folder, bounds, weights)
    return folder


def check_model(folder: Path, bounds: Bounds, weights: bool) -> None:
    """Raises ValueError for an adapter, sizes beyond the bounds, tokens without an embedding, end tokens
    outside the vocabulary, damaged weight files, and (with `weights`) missing ones."""
    check_no_adapter(folder)
    config = check_sizes(folder, bounds)
    check_rows(folder, config)
    check_ends(folder, config)
    if weights:
        check_shards(folder)
    check_whole(folder)


def no_template(folder: Path, way_out: str) -> str | None:
    """The problem of a model that gets messages and has no chat template, or None."""
    if read_template(folder) is not None:
        return None
    return f"{folder} gets prompts as messages, but its tokenizer has no chat template: {way_out}"


def template_file(text: str) -> Path:
    """A chat template by name or path. Raises ValueError where there is none."""
    path = CHAT_TEMPLATES / f"{text}.jinja"
    if path.is_file():
        return path
    if not (path := user_path(text)).is_file():
        raise ValueError(
            f"model.chat_template must be one of {KNOWN} or a Jinja file, got {text}: no such file"
        )
    return path


class Templated(NamedTuple):
    """A model's folder with the chat template in use: its own folder, or one of links. `day` is the
    template's fixed date."""

    folder: Path
    day: str | None


def with_usable_template(
    folder: Path, under: Path, seconds: float, chosen: str | None = None, day: str | None = None
) -> Templated:
    """A model with its own chat template or a `chosen` one, with a fixed date where the template reads one.
    Where the template is not the model's own, links to its files are in `under`. Raises ValueError for a
    template that cannot be used."""
    own = read_template(folder)
    template = Template(read_text(template_file(chosen)), special_tokens(folder)) if chosen else own
    if template is None:
        return Templated(folder, None)
    try:
        reads = try_template(template, seconds).reads
    except TemplateFailed as error:
        named = f"model.chat_template={chosen}" if chosen else f"the chat template in {folder}"
        raise ValueError(f"{named} cannot be used: {error}; {NAME_ONE}") from error
    given = day or TEMPLATE_DATE if is_dated(reads, day) else None
    text = dated(template.text, given) if given else template.text
    return Templated(with_template(folder, text, under) if chosen or given else folder, given)


def with_template(folder: Path, text: str, under: Path) -> Path:
    """A folder of links to a model's files, with the same name and another chat template. It is the same each
    time and is not touched where nothing changed, because running stages compare the times of its files."""
    of_one = under / hash_long([str(folder), text])[:12]
    made = of_one / folder.name
    made.mkdir(parents=True, exist_ok=True)
    with FileLock(of_one / ".lock"):
        wanted = {
            path.name: path
            for path in folder.iterdir()
            if path.name not in (TEMPLATE, "chat_template.json", TEMPLATES)
        }
        for path in made.iterdir():
            if path.name != TEMPLATE and (
                not path.is_symlink() or path.name not in wanted or path.readlink() != wanted[path.name]
            ):
                path.unlink()
        for name, path in wanted.items():
            if not (made / name).is_symlink():
                (made / name).symlink_to(path)
        if not (made / TEMPLATE).is_file() or (made / TEMPLATE).read_text(encoding="utf-8") != text:
            aside = of_one / f".{TEMPLATE}"
            aside.write_text(text, encoding="utf-8")
            aside.replace(made / TEMPLATE)
    return made


def tasks_folder(path: str) -> Path:
    """A folder of lm_eval's task files. Raises ValueError for anything else."""
    folder = user_path(path)
    if not folder.is_dir() or not any(file.suffix in (".yaml", ".yml") for file in folder.rglob("*")):
        what = "holds no YAML file" if folder.is_dir() else "is not a folder"
        raise ValueError(
            f"forgetting.include_path must be a folder of task files (YAML), got {path}, which {what}"
        )
    return folder
