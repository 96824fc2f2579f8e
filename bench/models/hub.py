"""Files from the Hugging Face hub. A repository's revision is locked when it is first used, in
results/revisions.json.

Keys contain the revision, so a repository that changes later changes no result. With HF_HUB_OFFLINE=1 the hub
is not contacted, and files come from the cache.
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
from bench.machine import PACKAGE, ROOT
from bench.text_files import BadFile, describe, read_object, read_yaml, text

LOCK = "revisions.json"
Kind = Literal["datasets", "models"]


class NotThere(ValueError):
    """Neither the hub nor its cache has the requested files. The message says why and what to do."""


class Unreachable(NotThere):
    """The hub cannot be asked from here, and the cache does not have the files."""


def locked(lock: Path, kind: Kind, repo: str) -> str | None:
    """The locked revision of a repository; None if it has not been used yet."""
    entry = _read(lock).get(f"{kind}/{repo}")
    return entry["revision"] if entry else None


def revision(lock: Path, kind: Kind, repo: str) -> str:
    """The locked revision of a repository. Without one, the newest revision is locked and returned.

    Raises NotThere if the hub cannot be reached.
    """
    if (known := locked(lock, kind, repo)) is not None:
        return known
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        newest = (api.dataset_info(repo) if kind == "datasets" else api.model_info(repo)).sha
    except Exception as error:
        raise _explained(error, kind, repo, None, ()) from error
    if not newest:
        raise NotThere(f"the hub has no revision of {kind}/{repo}: check the repository's page")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock.with_name(f".{lock.name}.lock")):
        if (known := locked(lock, kind, repo)) is not None:  # Another command has locked it meanwhile.
            return known
        entries = _read(lock) | {f"{kind}/{repo}": {"revision": newest, "locked": date.today().isoformat()}}
        aside = lock.with_name(f"{lock.name}.{os.getpid()}-{uuid.uuid4().hex[:6]}")
        aside.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        aside.replace(lock)
    return newest


def _read(lock: Path) -> dict[str, dict[str, str]]:
    try:
        return json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise NotThere(
            f"{lock} cannot be read ({error}): restore it from a copy, because existing results need its revisions"
        ) from error


def fetch(kind: Kind, repo: str, at: str, patterns: Sequence[str], also: Sequence[str] = ()) -> Path:
    """A folder with the repository's files that match `patterns`, from the cache or the hub.

    `also`: patterns of further files, which the repository need not have. Raises NotThere if neither the
    cache nor the hub has the files.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    repo_type, wanted = kind.removesuffix("s"), [*patterns, *also]
    here = Path(constants.HF_HUB_CACHE) / f"{kind}--{repo.replace('/', '--')}"
    folder, whole = (
        here / "snapshots" / at,
        here / f"bench-{at}-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}.json",
    )
    if whole.is_file() and all(
        (folder / name).is_file() for name in json.loads(whole.read_text(encoding="utf-8"))
    ):
        return folder
    try:
        names = list(
            filter_repo_objects(
                HfApi().list_repo_files(repo, repo_type=repo_type, revision=at), allow_patterns=wanted
            )
        )
        folder = Path(snapshot_download(repo, repo_type=repo_type, revision=at, allow_patterns=wanted))
    except Exception as error:
        if _holds(folder, patterns):  # Without the hub it is unknown whether these are all files.
            return folder
        raise _explained(error, kind, repo, at, patterns) from error
    # Otherwise an interrupted download would look like a smaller dataset.
    if all((folder / name).is_file() for name in names):
        # In another user's cache no mark is written, and the hub is asked again next time.
        with contextlib.suppress(OSError):
            whole.write_text(json.dumps(names), encoding="utf-8")
    return folder


def fetch_file(kind: Kind, repo: str, name: str) -> Path:
    """Path of one file of a repository, from the cache or, at its newest revision, from the hub.

    Raises NotThere if neither has it.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    repo_type = kind.removesuffix("s")
    if isinstance(here := try_to_load_from_cache(repo, name, repo_type=repo_type), str):
        return Path(here)
    try:
        HfApi().list_repo_files(repo, repo_type=repo_type)  # Without a network this fails at once.
        return Path(hf_hub_download(repo, name, repo_type=repo_type))
    except Exception as error:
        raise _explained(error, kind, repo, None, (name,)) from error


def cached(kind: Kind, repo: str, at: str) -> Path | None:
    """The cache's folder of a revision, possibly with files missing; None if the cache has none.

    Does not contact the hub.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{repo.replace('/', '--')}" / "snapshots" / at
    return folder if folder.is_dir() else None


def _holds(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a folder has files for every pattern, and all files of numbered sets (train-00000-of-00003)."""
    files = {pattern: list(folder.glob(pattern)) for pattern in patterns}
    sets = Counter(
        SET.sub(r"-of-\2.", str(path))
        for path in {path for paths in files.values() for path in paths}
        if SET.search(path.name)
    )
    return all(files.values()) and all(
        n == int(re.findall(r"-of-(\d+)\.", name)[-1]) for name, n in sets.items()
    )


SET = re.compile(r"-(\d+)-of-(\d+)\.")
MODEL_FILES = ("*.json", "tokenizer*", "*.jinja", "*.model", "*.txt")  # All files of a model but its weights.


def fetch_model(repo: str, at: str, *, weights: bool) -> Path:
    """A model's folder with its settings and tokenizer and, if `weights`, its weights as safetensors.

    Raises NotThere if they are not available. Raises ValueError for a model with its own code that is not
    trusted, before the weights are fetched.
    """
    folder = fetch("models", repo, at, ("config.json",), MODEL_FILES)
    if weights:
        if _brings_code(folder):
            folder = fetch("models", repo, at, ("config.json", "*.py"), MODEL_FILES)
            trusts_code(folder)
        folder = fetch("models", repo, at, ("config.json", *_weight_files(folder)), MODEL_FILES)
        if lacking := [pattern for pattern in _weight_files(folder) if not any(folder.glob(pattern))]:
            raise NotThere(
                f"{repo} has no {lacking[0]} at revision {at}, and only safetensors weights can be read: use another revision"
            )
    return folder


def _weight_files(folder: Path) -> list[str]:
    """Names of the weight files in the folder's index; without an index, the pattern *.safetensors."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return ["*.safetensors"]
    weights = read_object(index).get("weight_map")
    if not isinstance(weights, dict):
        raise BadFile(
            f"{index}: weight_map must be an object (file name by tensor name), got {describe(weights)}"
        )
    return sorted({text(file, f"{index}: weight_map.{tensor}") for tensor, file in weights.items()})


# A model's own code ---------------------------------------------------------------------------------------------------

TRUSTED = next(path for path in (PACKAGE / "_conf", ROOT / "conf") if path.is_dir()) / "trusted_code.yaml"


def trusts_code(folder: Path) -> bool:
    """Whether a model's folder needs its own Python files, and the allow-list (TRUSTED) names them, by
    content.

    False if transformers knows the architecture itself. Raises ValueError if the code is not on the list, or
    lies in another repository.
    """
    if not _brings_code(folder):
        return False
    for name in ("config.json", "tokenizer_config.json"):
        named = read_object(folder / name).get("auto_map") if (folder / name).is_file() else None
        if "--" in json.dumps(named):  # OWNER/NAME--FILE.CLASS
            raise ValueError(
                f"{folder / name} runs code of another repository ({json.dumps(named)}): use a folder that contains its code"
            )
    files = sorted(folder.glob("*.py"))
    if not files:
        raise ValueError(
            f"{folder} runs code of its own, but it has no Python file: use a copy of the folder that has them"
        )
    digest = hashlib.sha256(
        b"".join(file.name.encode() + b"\0" + file.read_bytes() + b"\0" for file in files)
    ).hexdigest()
    allowed = read_yaml(TRUSTED) or {}
    if any(entry.get("revision") and entry.get("code") == digest for entry in allowed.values()):
        return True
    names = ", ".join(file.name for file in files)
    way_out = f"read the code, then name OWNER/NAME with its revision and `code: {digest}` in {TRUSTED}"
    raise ValueError(f"{folder} runs code of its own ({names}), which is not trusted: {way_out}")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A model folder's config.json, or another of its JSON files. Raises BadFile if it is no JSON object."""
    return read_object(folder / name)


def _brings_code(folder: Path) -> bool:
    """Whether a model needs its own code, because transformers does not know its architecture."""
    config = read_config(folder)
    if "auto_map" not in config:
        return False
    from transformers import CONFIG_MAPPING

    return config.get("model_type") not in CONFIG_MAPPING


def _explained(error: Exception, kind: Kind, repo: str, at: str | None, patterns: Sequence[str]) -> NotThere:
    """An error of the hub with the reason, and how to get the files."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'datasets' else ''}{repo}"
    token = "set HF_TOKEN, or run `hf auth login`"
    if isinstance(error, GatedRepoError):
        return NotThere(f"{repo} is gated: accept its licence at {page} with your account, and {token}")
    if isinstance(error, RepositoryNotFoundError):
        text = f"{repo} is not on the hub, or is private: check the name at {page}"
        return NotThere(f"{text}. For a private repository, {token}")
    if isinstance(error, RevisionNotFoundError):
        return NotThere(f"{repo} has no revision {at}: choose one from {page}/commits/main")
    include = "".join(f" --include '{pattern}'" for pattern in patterns)
    command = f"hf download {repo} --type {kind.removesuffix('s')}{f' --revision {at}' if at else ''}{include} --local-dir DIR"
    why = (
        "HF_HUB_OFFLINE is set and the cache does not have it"
        if constants.HF_HUB_OFFLINE
        else secrets.excerpt(str(error), 200)
    )
    text = f"{repo} could not be fetched from the hub ({why})"
    return Unreachable(f"{text}: on a machine with a network connection, run `{command}`")
