"""Writes the files that people read: tables, figures, findings, samples, folders of
cells, exports, passports.

A file is written under a temporary name and moved into place, so a full disk or a kill leaves the old file
whole. A file that already holds the same bytes is not touched. Nothing is written through a link, nor outside
the command's output folder: in a results folder from another person, any name may be a link to one of your
files. (The output folder itself may be a link, because you typed its path.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.text_files import printable

# The temporary name of a file that is being written
ASIDE = re.compile(r"\.writing-(?P<pid>\d+)-[0-9a-f]{6}")


@dataclass
class OutputFiles:
    """Writes files below `root`.

    It collects errors in `refused`, so that one bad path does not stop the others.
    """

    root: Path
    refused: dict[Path, str] = field(default_factory=dict)  # path -> reason

    def write(self, path: Path, content: str | bytes) -> bool:
        """Write a file. Returns whether it now holds this content."""
        return self._tried(path, lambda: write(self.root, path, content))

    def remove(self, path: Path) -> bool:
        """Remove a file. Returns whether it is gone."""
        return self._tried(path, lambda: remove(self.root, path))

    def _tried(self, path: Path, act: Callable[[], None]) -> bool:
        try:
            act()
        except OSError as error:
            self.refused[path] = os_reason(error)
            return False
        return True

    def lines(self) -> list[str]:
        """Lines for the screen on files that were not written, one per reason."""
        by_reason: dict[str, list[Path]] = {}
        for path, reason in self.refused.items():
            by_reason.setdefault(reason, []).append(path)
        more = {
            reason: f" and {len(paths) - 1} more file{'s' if len(paths) > 2 else ''}"
            if len(paths) > 1
            else ""
            for reason, paths in by_reason.items()
        }
        return [
            f"not written: {printable(str(paths[0]))}{more[reason]}: {reason}"
            for reason, paths in by_reason.items()
        ]


def os_reason(error: OSError) -> str:
    """The reason of a file system error, without the path."""
    if isinstance(error, IsADirectoryError):
        return "is a folder, and should be a file: move it away"
    return printable(error.strerror or str(error))


def write(root: Path, path: Path, content: str | bytes) -> None:
    """Write a file below `root`, whole or not at all. Raises OSError."""
    data = content.encode() if isinstance(content, str) else content
    with _folder(root, path, make=True) as (folder, name):
        if _holds(folder, name, data):
            return
        aside = f".writing-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        try:
            with open(
                os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder),
                "wb",
            ) as file:
                file.write(data)
            os.replace(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside, dir_fd=folder)
            raise


def write_user_file(path: Path, content: str) -> None:
    """Write to a path that the user typed. It may be a link or a device. Raises OSError."""
    if path.exists() and not path.is_file():
        path.write_text(content, encoding="utf-8")
    else:
        path = path.resolve()
        write(path.parent, path, content)


def remove(root: Path, path: Path) -> None:
    """Remove a file or link below `root`, if it exists. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), _folder(root, path, make=False) as (folder, name):
        os.stat(name, dir_fd=folder, follow_symlinks=False)  # A read-only system refuses to remove nothing.
        os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def _folder(root: Path, path: Path, *, make: bool) -> Iterator[tuple[int, str]]:
    """Open the folder of a file below `root` without following links: (file descriptor, the file's name).

    `make`: create missing folders.
    """
    *folders, name = _parts(root, path)
    if make:
        _make_root(root)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for n, part in enumerate(folders, 1):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
            inner = _open_folder(folder, part, root.joinpath(*folders[:n]))
            os.close(folder)
            folder = inner
        yield folder, name
    finally:
        os.close(folder)


def _make_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        place = next(path for path in (root, *root.parents) if path.exists())
        raise NotADirectoryError(
            errno.ENOTDIR, f"{place} is a file, and should be a folder: move it away", str(place)
        ) from error


def _parts(root: Path, path: Path) -> tuple[str, ...]:
    """The names in a path below `root`. Raises OSError for a path outside."""
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    if not parts or ".." in parts:
        raise OSError(
            errno.EPERM, f"lies outside of {root}, the only folder that this command writes to", str(path)
        )
    return parts


def _open_folder(parent: int, name: str, place: Path) -> int:
    """A file descriptor of a folder.

    Raises OSError for a link or a file; `place` is its path, for the message.
    """
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        is_link = stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
        what = "a link, and nothing is written through one" if is_link else "a file, and should be a folder"
        raise OSError(error.errno, f"{place} is {what}: move it away", str(place)) from error


def _holds(folder: int, name: str, data: bytes) -> bool:
    """Whether a regular file of this name already has these bytes."""
    try:
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode) or info.st_size != len(data):
            return False
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
            return file.read() == data
    except OSError:
        return False
