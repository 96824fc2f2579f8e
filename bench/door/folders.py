"""Files and model folders that a setting names: what each must hold."""

from __future__ import annotations

import json
from pathlib import Path


def a_file(text: str, key: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"{key} must be a file, got {text}: {'a folder' if path.is_dir() else 'no such file'}")
    return path


def model_folder(text: str, key: str = "model.path", what: str = "a causal LM", weights: bool = True) -> Path:
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        hint = "" if text.count("/") != 1 or text[:1] in "./~" else f" (of the hub: model=hub model.hub={text})"
        raise ValueError(f"{key} must be a folder of {what}, got {text}: no such folder{hint if key == 'model.path' else ''}")
    lying = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    for part, pattern in (("config.json", "config.json"), ("tokenizer files", "*token*"), ("*.safetensors", "*.safetensors")):
        if not list(folder.glob(pattern)) and (weights or "safetensors" not in part):
            wanted = f"{key} must hold config.json, a tokenizer and weights as safetensors"
            raise ValueError(f"{wanted}, got {text} without {part} (it holds {lying})")
    return folder


def base_folder(text: str, tuned: Path) -> Path:
    """What a model was tuned from; it must be asked as the tuned one is."""
    folder = model_folder(text, "model.base")
    if no_template(tuned) is None and (why := no_template(folder)):
        raise ValueError(f"{why}, the one in {tuned}")
    return folder


def positions(folder: Path) -> int | None:
    """Tokens that a model was made for, where its config says so."""
    try:
        found = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is no JSON: {error}") from error
    return found if isinstance(found, int) else None


def no_template(folder: Path) -> str | None:
    """What is wrong with a model that is asked in messages and has no chat template."""
    config = folder / "tokenizer_config.json"
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json", "additional_chat_templates")):
        return None
    if config.exists() and json.loads(config.read_text()).get("chat_template"):
        return None
    return f"{folder} is asked in messages and its tokenizer has no chat template: add chat_template.jinja"
