"""Weights by name: resolve a path, a short name or a name on the Hugging Face Hub to a local file, downloaded if needed.

Downloads use huggingface_hub: its cache, progress bar and log-in. Only the needed files are fetched, and used once they are
complete with the Hub's checksums. Cached files need no network.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from nextdetr.errors import WeightsError
from nextdetr.files import is_local
from nextdetr.hub_errors import hub_errors, is_unreachable, reason_of, told
from nextdetr.weights.folder import CARD, CONFIG, FOLDER_FILES, read_card
from nextdetr.weights.published import Published, close_names, find_published

__all__ = ["HubName", "Located", "is_name", "is_pinned", "locate", "parse_name", "plain_name", "public_names"]

SUFFIXES = frozenset((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))
_OTHER_FILES = frozenset((".yaml", ".yml", ".json", ".onnx", ".xml", ".npz", ".zip", ".pkl", ".csv", ".txt"))
_PART = r"[A-Za-z0-9_][\w.-]*"
_NAME = re.compile(rf"(?P<repository>{_PART}/{_PART})(?:/(?P<file>[^@\\]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_ADDRESS = re.compile(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repository>[^/]+/[^/]+)(?P<more>/.*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: A file or folder in huggingface_hub's cache: owner, name, commit, file.
_CACHED = re.compile(r"[/\\]models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]([0-9a-f]{40})(?:[/\\](.+))?$")
_MAX_INDEX = 16 << 20

#: From a ``config.json`` to the reason why its weights are not wanted, a sentence; None if they are.
Refusal: TypeAlias = Callable[[Mapping[str, Any]], str | None]


@dataclass(frozen=True, slots=True)
class HubName:
    """A name on the Hugging Face Hub.

    Attributes:
        repository: ``owner/name``.
        file: a file in it; None for the usual weights file of a repository.
        revision: branch, tag or commit; None for ``main``.
    """

    repository: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.at(self.revision)

    def at(self, revision: str | None) -> str:
        """Return the name with another revision."""
        return self.repository + (f"/{self.file}" if self.file else "") + (f"@{revision}" if revision else "")


@dataclass(frozen=True, slots=True)
class Located:
    """Location of weights.

    Attributes:
        path: file or folder to read.
        name: name in reports and metadata: the path, or the name on the Hub with its commit.
        card: information about the licence: ``licence`` of the model card, and ``listed`` in our own list.
        whole: whether a repository was named, and not a file in it: its config.json describes the weights.
    """

    path: Path
    name: str
    card: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False


def parse_name(text: str) -> HubName | None:
    """Parse a text as a name on the Hub; None if it cannot be one."""
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    repository, file, revision = match["repository"], match["file"], match["revision"]
    parts = [*repository.split("/"), *(file or "x").split("/"), *(revision or "x").split("/")]
    if any(part in ("", ".", "..") for part in parts):
        return None
    return HubName(repository, file, revision)


def is_pinned(text: str) -> bool:
    """Whether a text is a name on the Hub with a full commit, as in metadata and reports."""
    name = parse_name(text)
    return name is not None and name.revision is not None and _COMMIT.fullmatch(name.revision) is not None


def is_name(source: str | Path) -> bool:
    """Whether a source that does not exist locally can be a name: one of our short ones, or one on the Hub. Offline."""
    if is_local(source):
        return False
    text = Path(source).as_posix()
    if "/" not in text:
        return find_published(text) is not None
    name = parse_name(text)
    return name is not None and not _means_a_path(name)


def plain_name(source: str | Path) -> str:
    """Return the last part of a path or name, without revision, for naming derived files."""
    return Path(source).name if is_local(source) else PurePosixPath(Path(source).as_posix().partition("@")[0]).name


def public_names(paths: str) -> str:
    """Return file names from paths joined by " and ": the rest of a path is private. Names on the Hub are kept."""
    return " and ".join(_public(part) for part in paths.split(" and "))


def _public(path: str) -> str:
    """Return the file name of a path; of one in the Hub's cache, the name on the Hub with its commit."""
    if is_pinned(path):
        return path
    cached = _CACHED.search(path)
    if cached is None:
        return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    owner, name, commit, file = cached.groups()
    return str(HubName(f"{owner}/{name}", None if file in (None, *FOLDER_FILES) else file, commit))


def locate(source: str | Path, why_refused: Refusal | None = None) -> Located:
    """Find weights: an existing path comes first, then our short names, then the Hub.

    Args:
        source: a file or folder, a short name of ``nextdetr weights list``, ``owner/name[@revision]``, or
            ``owner/name/file[@revision]``.
        why_refused: returns why weights with the given ``config.json`` are not wanted, or None; they are not downloaded.

    Raises:
        WeightsError: nothing has this name, or it cannot be fetched, or is not wanted; the message says what to do.
    """
    if is_local(source):
        return Located(Path(source), str(source))
    text = Path(source).as_posix()
    short, _, revision = text.partition("@")
    entry = find_published(short) if "/" not in short else None
    name = parse_name(text) if entry is None else HubName(entry.repository, None, revision or None)
    if name is None or (entry is None and _means_a_path(name)):
        raise WeightsError(f"{source}: {_missing(text, name)}")
    entry = entry or find_published(name.repository)
    by_hand = Path(name.at(None))
    if name.revision is None and by_hand.exists():
        return Located(by_hand, str(by_hand), {} if entry is None else {"listed": entry.licence})
    return _fetched(name, entry, why_refused)


def _means_a_path(name: HubName) -> bool:
    """Whether a possible name on the Hub is more likely a mistyped path, for which no request should be made."""
    if name.revision is not None:
        return False
    last = PurePosixPath(name.file or name.repository).suffix.lower()
    return (name.file is None and last in SUFFIXES | _OTHER_FILES) or Path(name.repository.split("/")[0]).is_dir()


def _missing(text: str, name: HubName | None) -> str:
    address = _ADDRESS.fullmatch(text)
    if address is not None:
        of_file = re.fullmatch(r"/(?:blob|resolve)/([^/]+)/(.+)", address["more"] or "")
        meant = address["repository"] + (f"/{of_file[2]}@{of_file[1]}" if of_file else "")
        return f"an address, not a name of the Hub: write {meant}."
    if name is not None and name.file is None and PurePosixPath(text).suffix.lower() not in SUFFIXES | _OTHER_FILES:
        owner = name.repository.split("/")[0]
        return f"no such file, and {owner} is a folder here; for the repository of the Hub write {text}@main."
    if "/" in text or PurePosixPath(text).suffix.lower() in SUFFIXES | _OTHER_FILES:
        return "no such file."
    close = close_names(text)
    hint = f"did you mean {' or '.join(close)}?" if close else "nextdetr weights list shows the names of published weights."
    return f"no such file, and no name of published weights; {hint}"


@functools.lru_cache(maxsize=64)
def _fetched(name: HubName, entry: Published | None, why_refused: Refusal | None) -> Located:
    """Download the needed files of a repository, or take them from the cache; once per process.

    Raises:
        WeightsError: they are unavailable; the message names the files to fetch by hand and where to put them.
    """
    from huggingface_hub import HfApi, constants

    missing = "neither a file here nor a repository on the Hub"
    unreachable = f"the Hub cannot be reached ({{reason}}); {_by_hand(name)}"
    with told(str(name), name.revision, missing=missing, unreachable=unreachable):
        try:
            api = HfApi(library_name="nextdetr")
            info: Any = api.model_info(
                name.repository, revision=name.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        except hub_errors() as error:
            found = _cached(name, entry) if is_unreachable(error) else None
            if found is None:
                raise
            _tell(f"{found.name}: from the cache, as the Hub cannot be reached ({reason_of(error)})", found.card)
            return found
    sizes = {one.rfilename: one for one in info.siblings or ()}
    return _download(name, entry, str(info.sha or name.revision or "main"), sizes, why_refused)


def _download(
    name: HubName, entry: Published | None, commit: str, files: Mapping[str, Any], why_refused: Refusal | None
) -> Located:
    main = _main_file(name, files)
    around = PurePosixPath(main).parent
    beside = [str(around / CONFIG)] if PurePosixPath(main).name in FOLDER_FILES or name.file is None else []
    download = _Download(name, commit, files)
    for small in (CARD, *beside):
        if small in files:
            download.get(small)
    refused = None if why_refused is None or not files.keys() & beside else why_refused(_json(download.folder / beside[0]))
    if refused is not None:
        raise WeightsError(f"{name.at(download.commit)}: {refused}")
    card = _card(download.folder if CARD in files else None, entry)
    wanted = [main]
    if main.endswith(".index.json"):
        wanted += [str(around / shard) for shard in _shards(name, download.get(main))]
    known: list[Any] = [getattr(files.get(file), "size", None) for file in wanted]
    size = f", {sum(known) / 1e6:,.1f} MB" if all(known) else ""
    where = "from the cache" if all(download.has(file) for file in wanted) else f"downloading {', '.join(wanted[:3])}{size}"
    _tell(f"{name.at(download.commit)}: {where}", card)
    for file in wanted:
        download.get(file)
    return _located(name, download.folder, download.commit, main, card)


class _Download:
    """Fetches files of one commit, each complete and with the Hub's checksum.

    Args:
        name: name on the Hub.
        commit: the commit.
        files: the Hub's information about each file.
    """

    def __init__(self, name: HubName, commit: str, files: Mapping[str, Any]) -> None:
        self.name, self.commit, self.files = name, commit, files
        self.folder = Path()
        # With the branch name the first time, so that the cache later knows its commit.
        self.asked = name.revision or "main"

    def has(self, file: str) -> bool:
        """Whether a file is in the cache."""
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self.name.repository, file, revision=self.commit), str)

    def get(self, file: str) -> Path:
        """Return the path of a file, downloading it if needed.

        Raises:
            WeightsError: it cannot be fetched completely.
        """
        from huggingface_hub import hf_hub_download

        if file not in self.files:
            raise WeightsError(f"{self.name}: its index names {file[:200]!r}, which is not a file of the repository.")
        broken = f"the download of {file} broke off ({{reason}}); try again, or {_by_hand(self.name)}"
        fresh = not self.has(file)
        with told(str(self.name), self.asked, missing="the repository is gone from the Hub", unreachable=broken):
            path = Path(hf_hub_download(self.name.repository, file, revision=self.asked, library_name="nextdetr"))
        self.folder = path.parents[file.count("/")]
        self.asked = self.commit = self.folder.name
        if fresh:
            self._check(path, file)
        return path

    def _check(self, path: Path, file: str) -> None:
        """Remove a file from the cache again if it differs from the Hub's.

        Raises:
            WeightsError: it differs.
        """
        stated, size = getattr(self.files[file], "lfs", None), getattr(self.files[file], "size", None)
        wanted = stated.get("sha256") if isinstance(stated, dict) else getattr(stated, "sha256", None)
        with path.open("rb") as opened:
            sound = (size is None or path.stat().st_size == size) and (
                wanted is None or hashlib.file_digest(opened, "sha256").hexdigest() == wanted
            )
        if not sound:
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
            raise WeightsError(
                f"{self.name}: {file} arrived damaged (its size or checksum is not the one that the Hub states) and was "
                f"deleted; try again, or {_by_hand(self.name)}"
            )


def _main_file(name: HubName, files: Collection[str]) -> str:
    """Return the weights file of a repository, or the index of several.

    Raises:
        WeightsError: the requested file is missing, or the choice is ambiguous.
    """
    weights = sorted(file for file in files if PurePosixPath(file).suffix in SUFFIXES)
    shown = ", ".join(weights[:6]) + (", …" if len(weights) > 6 else "") or "no weights"
    if name.file is not None:
        if name.file not in files:
            raise WeightsError(f"{name}: the repository has no file {name.file}; it has {shown}.")
        return name.file
    usual = next((file for file in FOLDER_FILES if file in files), None)
    if usual is not None:
        return usual
    for suffixes in ({".safetensors"}, SUFFIXES):
        found = [file for file in weights if "/" not in file and PurePosixPath(file).suffix in suffixes]
        if len(found) == 1:
            return found[0]
    advice = "it has none that NextDETR reads"
    if weights:
        advice = f"name one: {HubName(name.repository, weights[0], name.revision)}"
    raise WeightsError(f"{name}: which file of the repository holds the weights is not clear ({shown}); {advice}.")


def _shards(name: HubName, index: Path) -> list[str]:
    try:
        if index.stat().st_size > _MAX_INDEX:
            raise ValueError("it is far too large")
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
        if not all(isinstance(shard, str) and shard == PurePosixPath(shard).name for shard in shards):
            raise ValueError("it names files elsewhere")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{name}: its {index.name} is unreadable ({' '.join(str(error).split())[:80]}).") from error
    return shards


def _json(path: Path) -> dict[str, Any]:
    """Return the content of a ``config.json``; empty if it cannot be read, which the reader of weights reports."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MAX_INDEX else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _cached(name: HubName, entry: Published | None) -> Located | None:
    """Return the cached files of a repository; None if the weights are missing."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name.repository, repo_type="model")
    revision = name.revision or "main"
    reference = storage / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    if _COMMIT.fullmatch(commit) is None:
        return None
    folder = storage / "snapshots" / commit
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    try:
        main = _main_file(name, files)
        whole = not main.endswith(".index.json") or files.issuperset(
            str(PurePosixPath(main).parent / shard) for shard in _shards(name, folder / main)
        )
    except WeightsError:
        return None
    return _located(name, folder, commit, main, _card(folder, entry)) if whole else None


def _located(name: HubName, folder: Path, commit: str, main: str, card: Mapping[str, str]) -> Located:
    usual = name.file is None and main in FOLDER_FILES
    return Located(folder if usual else folder / main, name.at(commit), card, name.file is None)


def _card(folder: Path | None, entry: Published | None) -> dict[str, str]:
    return ({} if folder is None else read_card(folder / CARD)) | ({} if entry is None else {"listed": entry.licence})


def _by_hand(name: HubName) -> str:
    """Return which files to fetch by hand, and where to put them."""
    from huggingface_hub import constants

    base = f"{constants.ENDPOINT}/{name.repository}"
    revision = name.revision or "main"
    if name.file is not None:
        what = f"download {base}/resolve/{revision}/{name.file}"
        place = name.at(None)
    else:
        what = f"download model.safetensors, config.json and README.md from {base}/tree/{revision}"
        place = name.repository
    if name.revision is None:
        return f"{what} to {place} here, and the same command takes it from there."
    return f"{what} and name where you put it instead of {name}."


def _tell(text: str, card: Mapping[str, str]) -> None:
    """Print on standard error where weights come from and their licence, before they are used."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        licence = card.get("listed") or card.get("licence") or "not stated by its card"
        sys.stderr.write(f"{text}; licence of the weights: {licence}\n")
