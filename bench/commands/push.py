"""Uploads to the Hugging Face hub: a cell's model, its completions, verdicts and labels, its sweep's page.

Nothing is uploaded unless `push`, `push_data` or `push_page` names a repository. Repositories are made private
if `private` says so; one that exists stays as visible as it is. Keys in texts are removed before an upload.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from bench import secrets
from bench.config import Export
from bench.store.store import Store, Unsound

# Kind of stage -> (its file, what a row of it is).
SHARED = {
    "label": ("labels.jsonl", "two completions of a prompt and the label of the pair"),
    "generate": ("completions.jsonl", "the policy's completions of an item, one for each turn"),
    "judge": ("verdicts.jsonl", "the judge's verdict on a completion, with its reply"),
}
# What huggingface_hub raises where the hub refuses or cannot be reached; its errors are OSErrors and ValueErrors.
UNREACHED = (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError, ValueError)
KINDS = Literal["model", "dataset", "space"]


def licence_of(hub: str | None, api: HfApi) -> str | None:
    """The licence on the card of a model of the hub. None where it has none, or the hub does not answer."""
    if hub is None:
        return None
    try:
        card = api.model_info(hub).card_data
    except UNREACHED:
        return None
    return card.get("license") if card else None


def upload(do: Export, folder: Path, data: Path | None, page: Path | None, api: HfApi) -> list[str]:
    """Upload what `do` names; returns a line for each repository. Raises Unsound with the reason where the hub refuses."""
    wanted: list[tuple[str | None, KINDS, Path | None]] = [
        (do.push, "model", folder),
        (do.push_data, "dataset", data),
        (do.push_page, "space", page),
    ]
    lines: list[str] = []
    for repo, kind, source in wanted:
        if repo and source:
            try:
                sdk = {"space_sdk": "static"} if kind == "space" else {}
                api.create_repo(repo, repo_type=kind, private=do.private, exist_ok=True, **sdk)
                done = api.upload_folder(
                    repo_id=repo, repo_type=kind, folder_path=source, commit_message="Upload by bench"
                )
            except UNREACHED as error:
                why = secrets.clean(" ".join(str(error).split()))[:300]
                done_before = f"; done before: {'; '.join(lines)}" if lines else ""
                raise Unsound(
                    f"not pushed to {kind} {repo}: {why}. The model is in {folder}{done_before}. "
                    "Log in with `hf auth login` or set HF_TOKEN"
                ) from error
            lines.append(f"pushed   {kind} {repo} ({secrets.clean(str(done.commit_url))})")
    return lines


def data_folder(stages: Mapping[str, Mapping[str, str]], name: str, about: str, store: Store) -> Path:
    """A new folder with a cell's labels, completions and verdicts, and a dataset card."""
    out = Path(tempfile.mkdtemp(prefix="bench-push-"))
    configs, rows = [], []
    for key, facts in stages.items():
        if facts["kind"] in SHARED:
            file, what = SHARED[facts["kind"]]
            source = store.root / facts["kind"] / key / file
            if not source.exists():
                continue
            place = f"{facts['kind']}-{key}.jsonl"
            (out / place).write_text(
                secrets.without_values(source.read_text(encoding="utf-8")), encoding="utf-8"
            )
            configs.append({"config_name": f"{facts['kind']}-{key}", "data_files": place})
            rows.append(f"| `{place}` | {facts['label'] or facts['kind']} | {what} |")
    card = DatasetCardData(configs=configs, tags=["preference-alignment"], pretty_name=name)
    text = "\n".join(["| file | stage | one line is |", "|---|---|---|", *rows])
    DatasetCard(f"---\n{card.to_yaml()}\n---\n\n# {name}\n\n{about}\n\n{text}\n").save(out / "README.md")
    return out


def page_folder(report: Path, title: str) -> Path:
    """A new folder of a static Space that shows a sweep's report.html."""
    out = Path(tempfile.mkdtemp(prefix="bench-push-"))
    shutil.copyfile(report, out / "index.html")
    (out / "README.md").write_text(
        f"---\ntitle: {title}\nsdk: static\npinned: false\n---\n\nMade by bench.\n", encoding="utf-8"
    )
    return out
