"""Files and model folders that a setting names: what each must hold."""

from __future__ import annotations

import re
from pathlib import Path

from filelock import FileLock

from bench.config import user_path
from bench.hub import read_config
from bench.store import hash_long
from bench.text_files import BadFile, read_text

CHAT_TEMPLATES = Path(__file__).parent.parent / "chat_templates"
KNOWN = ", ".join(sorted(path.stem for path in CHAT_TEMPLATES.glob("*.jinja")))
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
OF_TRANSFORMERS = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # a tag of its own, around what the assistant says
NAME_ONE = f"name one as model.chat_template ({KNOWN}, or a Jinja file)"
ADD_ONE = f"add {TEMPLATE}"


def a_file(text: str, key: str) -> Path:
    path = user_path(text)
    if not path.is_file():
        raise ValueError(f"{key} must be a file, got {text}: {'a folder' if path.is_dir() else 'no such file'}")
    return path


def model_folder(text: str, key: str = "model.path", what: str = "a causal LM", weights: bool = True) -> Path:
    folder = user_path(text)
    if not folder.is_dir():
        hint = "" if text.count("/") != 1 or text[:1] in "./~" else f" (of the hub: model=hub model.hub={text})"
        raise ValueError(f"{key} must be a folder of {what}, got {text}: no such folder{hint if key == 'model.path' else ''}")
    lying = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    for part, pattern in (("config.json", "config.json"), ("tokenizer files", "*token*"), ("*.safetensors", "*.safetensors")):
        if not list(folder.glob(pattern)) and (weights or "safetensors" not in part):
            wanted = f"{key} must hold config.json, a tokenizer and weights as safetensors"
            raise ValueError(f"{wanted}, got {text} without {part} (it holds {lying})")
    return folder


def positions(folder: Path) -> int | None:
    """Tokens that a model was made for, where its config says so."""
    found = read_config(folder).get("max_position_embeddings")
    return found if isinstance(found, int) else None


def no_template(folder: Path, way_out: str) -> str | None:
    """What is wrong with a model that is asked in messages and has no chat template."""
    config = folder / "tokenizer_config.json"
    if any((folder / name).exists() for name in (TEMPLATE, "chat_template.json", TEMPLATES)):
        return None
    if config.exists() and read_config(folder, config.name).get("chat_template"):
        return None
    return f"{folder} is asked in messages and its tokenizer has no chat template: {way_out}"


def template_file(text: str) -> Path:
    """A chat template by name or path. Raises ValueError where there is none, or one that cannot be read."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    path = CHAT_TEMPLATES / f"{text}.jinja"
    if path.is_file():
        return path
    if not (path := user_path(text)).is_file():
        raise ValueError(f"model.chat_template must be one of {KNOWN} or a Jinja file, got {text}: no such file")
    try:
        template = OF_TRANSFORMERS.sub("", read_text(path))
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except BadFile as error:
        raise BadFile(f"model.chat_template must be a Jinja template in UTF-8, got {error}") from error
    except TemplateSyntaxError as error:
        raise ValueError(f"model.chat_template must be a Jinja template, got {text}, line {error.lineno}: {error.message}") from error
    return path


def with_template(folder: Path, template: Path, under: Path) -> Path:
    """A folder of links to a model's files, with another chat template; the same each time, and left as it is where nothing changed:
    stages that run look at the times of its files."""
    text = read_text(template)
    made = under / f"{folder.name}-{hash_long([str(folder), text])[:12]}"
    made.mkdir(parents=True, exist_ok=True)
    with FileLock(under / f".{made.name}.lock"):
        wanted = {path.name: path for path in folder.iterdir() if path.name not in (TEMPLATE, "chat_template.json", TEMPLATES)}
        for path in made.iterdir():
            if path.name != TEMPLATE and (not path.is_symlink() or path.name not in wanted or path.readlink() != wanted[path.name]):
                path.unlink()
        for name, path in wanted.items():
            if not (made / name).is_symlink():
                (made / name).symlink_to(path)
        if not (made / TEMPLATE).is_file() or (made / TEMPLATE).read_text(encoding="utf-8") != text:
            aside = under / f".{made.name}.{TEMPLATE}"
            aside.write_text(text, encoding="utf-8")
            aside.replace(made / TEMPLATE)
    return made


def tasks_folder(path: str) -> Path:
    """A folder of lm_eval's task files. Raises ValueError for anything else."""
    folder = user_path(path)
    if not folder.is_dir() or not any(file.suffix in (".yaml", ".yml") for file in folder.rglob("*")):
        what = "holds no YAML file" if folder.is_dir() else "is no folder"
        raise ValueError(f"forgetting.include_path must be a folder of task files (YAML), got {path}, which {what}")
    return folder
