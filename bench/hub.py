"""What comes from the Hugging Face hub: at a revision that is locked at its first use there, kept in results/revisions.json.

Keys hold the revision, so a repository that changes later changes no result. HF_HUB_OFFLINE=1 is understood: nothing is asked, the cache
answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from bench import secrets
from bench.text_files import BadFile, describe, read_object, read_yaml, text

LOCK = "revisions.json"
Kind = Literal["datasets", "models"]


class NotThere(ValueError):
    """The hub or its cache does not give what is asked for; the message says why and the way out."""


def locked(lock: Path, kind: Kind, repo: str) -> str | None:
    """The revision that a repository was first used at; None where it was not yet."""
    found = _read(lock).get(f"{kind}/{repo}")
    return found["revision"] if found else None


def revision(lock: Path, kind: Kind, repo: str) -> str:
    """The locked revision, else the newest, which is then locked. Raises NotThere where the hub cannot be asked."""
    if (known := locked(lock, kind, repo)) is not None:
        return known
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        found = (api.dataset_info(repo) if kind == "datasets" else api.model_info(repo)).sha
    except Exception as error:
        raise NotThere(_words(error, kind, repo, None, ())) from error
    if not found:
        raise NotThere(f"the hub names no revision of {kind}/{repo}")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock.with_name(f".{lock.name}.lock")):
        if (known := locked(lock, kind, repo)) is not None:  # by another command meanwhile
            return known
        entries = _read(lock) | {f"{kind}/{repo}": {"revision": found, "locked": date.today().isoformat()}}
        aside = lock.with_name(f"{lock.name}.{os.getpid()}-{uuid.uuid4().hex[:6]}")
        aside.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        aside.replace(lock)
    return found


def _read(lock: Path) -> dict[str, dict[str, str]]:
    try:
        return json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise NotThere(f"{lock} cannot be read ({error}): restore it, results under its revisions hang on it") from error


def fetch(kind: Kind, repo: str, at: str, patterns: Sequence[str], also: Sequence[str] = ()) -> Path:
    """A folder with the repository's files that match, from the cache or the hub. Raises NotThere where neither has them.

    `also`: patterns of files that a repository may lack.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    repo_type, wanted = kind.removesuffix("s"), [*patterns, *also]
    here = Path(constants.HF_HUB_CACHE) / f"{kind}--{repo.replace('/', '--')}"
    folder, whole = here / "snapshots" / at, here / f"bench-{at}-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}.json"
    if whole.is_file() and all((folder / name).is_file() for name in json.loads(whole.read_text(encoding="utf-8"))):
        return folder
    try:
        names = list(filter_repo_objects(HfApi().list_repo_files(repo, repo_type=repo_type, revision=at), allow_patterns=wanted))
        folder = Path(snapshot_download(repo, repo_type=repo_type, revision=at, allow_patterns=wanted))
    except Exception as error:
        if _holds(folder, patterns):  # nobody can be asked whether it is all
            return folder
        raise NotThere(_words(error, kind, repo, at, patterns)) from error
    if all((folder / name).is_file() for name in names):  # else a download that was cut short looks like a smaller dataset
        with contextlib.suppress(OSError):  # a cache that others own is asked about again
            whole.write_text(json.dumps(names), encoding="utf-8")
    return folder


def cached(kind: Kind, repo: str, at: str) -> Path | None:
    """The folder of a revision in the cache, which may lack files of it; None where nothing of it is there. Asks nobody."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{repo.replace('/', '--')}" / "snapshots" / at
    return folder if folder.is_dir() else None


def _holds(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a folder has files of every pattern, and of sets that name their size (train-00000-of-00003) all."""
    files = {pattern: list(folder.glob(pattern)) for pattern in patterns}
    sets = Counter(SET.sub(r"-of-\2.", str(path)) for path in {path for found in files.values() for path in found} if SET.search(path.name))
    return all(files.values()) and all(n == int(re.findall(r"-of-(\d+)\.", name)[-1]) for name, n in sets.items())


SET = re.compile(r"-(\d+)-of-(\d+)\.")
MODEL_FILES = ("*.json", "tokenizer*", "*.jinja", "*.model", "*.txt")  # whatever a model's folder holds beside its weights


def fetch_model(repo: str, at: str, *, weights: bool) -> Path:
    """A model's folder: its settings and tokenizer, and its `weights`, as safetensors only.

    Raises NotThere where they cannot be had, and ValueError for a model that runs code of its own which is not trusted, before its weights
    are fetched.
    """
    folder = fetch("models", repo, at, ("config.json",), MODEL_FILES)
    if weights:
        if _brings_code(folder):
            folder = fetch("models", repo, at, ("config.json", "*.py"), MODEL_FILES)
            trusts_code(folder)
        folder = fetch("models", repo, at, ("config.json", *_weight_files(folder)), MODEL_FILES)
        if lacking := [pattern for pattern in _weight_files(folder) if not any(folder.glob(pattern))]:
            raise NotThere(f"{repo} has no {lacking[0]} at revision {at}, and weights are read as safetensors only: take another revision")
    return folder


def _weight_files(folder: Path) -> list[str]:
    """The files that an index of weights names; where there is none, any."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return ["*.safetensors"]
    weights = read_object(index).get("weight_map")
    if not isinstance(weights, dict):
        raise BadFile(f"{index}: weight_map must be an object (file by tensor), got {describe(weights)}")
    return sorted({text(file, f"{index}: weight_map.{tensor}") for tensor, file in weights.items()})


# Code that a model brings ---------------------------------------------------------------------------------------------

_HERE = Path(__file__).parent
TRUSTED = next(path for path in (_HERE / "_conf", _HERE.parent / "conf") if path.is_dir()) / "trusted_code.yaml"


def trusts_code(folder: Path) -> bool:
    """Whether the Python files of a model's folder are those that the allow-list names, by content.

    Raises ValueError where transformers does not know the architecture by itself and the code is not on the list, or lies elsewhere.
    """
    if not _brings_code(folder):
        return False
    for name in ("config.json", "tokenizer_config.json"):
        named = read_object(folder / name).get("auto_map") if (folder / name).is_file() else None
        if "--" in json.dumps(named):  # OWNER/NAME--FILE.CLASS
            raise ValueError(f"{folder / name} runs code of another repository ({json.dumps(named)}): take a folder that holds its code")
    files = sorted(folder.glob("*.py"))
    if not files:
        raise ValueError(f"{folder} runs code of its own, and no Python file is there: take a copy of its folder that has them")
    found = hashlib.sha256(b"".join(file.name.encode() + b"\0" + file.read_bytes() + b"\0" for file in files)).hexdigest()
    allowed = read_yaml(TRUSTED) or {}
    if any(entry.get("revision") and entry.get("code") == found for entry in allowed.values()):
        return True
    names = ", ".join(file.name for file in files)
    way_out = f"read it, then name OWNER/NAME with its revision and `code: {found}` in {TRUSTED}"
    raise ValueError(f"{folder} runs code of its own ({names}), which is not trusted: {way_out}")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A model folder's config.json, or another of its JSON files. Raises BadFile for what is no JSON object."""
    return read_object(folder / name)


def _brings_code(folder: Path) -> bool:
    """Whether transformers does not know a model's architecture by itself."""
    config = read_config(folder)
    if "auto_map" not in config:
        return False
    from transformers import CONFIG_MAPPING

    return config.get("model_type") not in CONFIG_MAPPING


def _words(error: Exception, kind: Kind, repo: str, at: str | None, patterns: Sequence[str]) -> str:
    """Why the hub gave nothing, and how to get it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'datasets' else ''}{repo}"
    token = "set HF_TOKEN, or run `hf auth login`"
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated: accept its licence at {page} with your account, and {token}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo} is not on the hub, or is private: check the name at {page}; for a private one {token}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {at}: see {page}/commits/main"
    include = "".join(f" --include '{pattern}'" for pattern in patterns)
    command = f"hf download {repo} --type {kind.removesuffix('s')}{f' --revision {at}' if at else ''}{include} --local-dir DIR"
    why = "HF_HUB_OFFLINE is set and the cache does not hold it" if constants.HF_HUB_OFFLINE else secrets.excerpt(str(error), 200)
    return f"{repo} could not be had from the hub ({why}): where there is a network, run `{command}`"
