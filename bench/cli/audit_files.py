"""Files of the user's for an audit: human labels, and another judge's recorded verdicts (preferences or
ratings)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench.config import Audit, Manner, user_path
from bench.judges.formats import alpaca_eval, mt_bench
from bench.records import read_labels
from bench.store.keys import Source, tree_digest, tree_stamp


def human_manner(path: Path) -> Manner:
    """The kind of the labels in a file. Raises ValueError for a file with no labels or both kinds, and for
    one that cannot be read."""
    if not path.is_file():
        raise ValueError(
            f"human must be a file, got {path}: {'a folder' if path.is_dir() else 'no such file'}"
        )
    kinds = {"rating" if label.preference is None else "preference" for label in read_labels(path)}
    if len(kinds) != 1:
        raise ValueError(
            f"human must hold labels of one kind, preference or rating; {path} has {' and '.join(sorted(kinds)) or 'none'}: keep one kind"
        )
    return "rating" if "rating" in kinds else "preference"


def recorded_manner(path: Path) -> Manner:
    """The kind of recorded verdicts. Raises ValueError for anything but a folder in AlpacaEval's layout or
    FastChat's judgements."""
    if path.is_dir() and alpaca_eval.find_annotations(path):
        alpaca_eval.read_pairs(path)
        return "preference"
    if not path.is_file():
        what = "a folder that holds MODEL/ANNOTATOR/annotations.json, as AlpacaEval lays them out, or a file of FastChat's judgements"
        raise ValueError(f"recorded must be {what}, got {path}")
    mt_bench.read_judged(path)
    return "rating" if isinstance(mt_bench.read_judgements(path)[0], mt_bench.Rated) else "preference"


def audit_sources(do: Audit) -> dict[Manner, Mapping[str, Source]]:
    """The files of an audit, by the kind of verdict they hold."""
    sources: dict[Manner, dict[str, Source]] = {"preference": {}, "rating": {}}
    for name, text, manner_of in (
        ("human", do.human, human_manner),
        ("recorded", do.recorded, recorded_manner),
    ):
        if text:
            path = user_path(text)
            sources[manner_of(path)][name] = Source(path, stamp=tree_stamp(path), digest=tree_digest(path))
    return dict(sources)
