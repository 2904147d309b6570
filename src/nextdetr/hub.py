"""Detectors as folders, and on the Hugging Face Hub.

A folder holds ``model.safetensors`` (our detector file, the only one needed to open it), ``config.json`` (shown by the Hub,
and used to count downloads) and ``README.md`` (the model card). Nothing in a folder from the Hub is run.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from nextdetr.errors import ConfigError, WeightsError
from nextdetr.files import write_text_atomic
from nextdetr.hub_card import CARD_MARK, CardFacts, model_card
from nextdetr.hub_errors import told
from nextdetr.models.modelfile import available_models, load_model_file
from nextdetr.weights.checkpoint import OpenedModel, extra_metadata, read_detector_metadata, read_metrics, save_opened
from nextdetr.weights.folder import RUN_FILES
from nextdetr.weights.layouts.foreign import model_title, stated_type
from nextdetr.weights.layouts.table import opens_type
from nextdetr.weights.licences import TEACHER, TEACHER_LICENCE
from nextdetr.weights.remote import public_names

__all__ = ["CONFIG_FILE", "MODEL_FILE", "fetch_pretrained", "save_folder", "upload_folder"]

MODEL_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"
_REPO_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def fetch_pretrained(
    name: str | Path, *, revision: str | None = None, cache: str | Path | None = None, token: str | None = None
) -> Path:
    """Return the detector file of a folder, or of a repository on the Hub, downloaded unless cached.

    Args:
        name: a folder, or ``owner/name``. An existing folder comes first.
        revision: branch, tag or commit of a repository.
        cache: folder for downloads; by default that of huggingface_hub.
        token: token for the Hub; by default that of the logged-in user.

    Raises:
        ConfigError: a folder has no ``revision``.
        WeightsError: there is no such folder or repository, the Hub cannot be reached, or it holds none of our detectors.
    """
    path = Path(name)
    if path.is_dir():
        if revision is not None:
            raise ConfigError(f"{name} is a folder, which has no revision {revision}; leave the revision out.")
        return _detector_file(path, str(name))
    if path.is_file():
        raise WeightsError(f"{name} is a file, not a folder: open it with Detector({str(name)!r}).")
    if _REPO_ID.fullmatch(str(name)) is None:
        raise WeightsError(f"{name}: no such folder, and no repository of the Hub, which is named owner/name.")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    place: dict[str, Any] = {"revision": revision, "cache_dir": cache, "token": token, "library_name": "nextdetr"}
    with told(str(name), revision, **_FETCHING):
        folder = Path(snapshot_download(str(name), allow_patterns=[CONFIG_FILE], **place))
        hint = _other_library(folder, str(name))
        if hint:  # so the rest is of no use
            raise WeightsError(f"{name}: it is no NextDETR detector{hint}.")
        folder = Path(snapshot_download(str(name), allow_patterns=[MODEL_FILE, CONFIG_FILE, CARD_FILE], **place))
        if not (folder / MODEL_FILE).is_file():  # without a network, that may be what a download left that broke off
            try:
                hf_hub_download(str(name), MODEL_FILE, **place)
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):
                    raise
    return _detector_file(folder, str(name))


def save_folder(
    opened: OpenedModel,
    folder: str | Path,
    *,
    data: str | None = None,
    licence: str | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write a detector as a folder, replacing an earlier one.

    Only file names, not paths, are stored of the data and of the weights that training started from.

    Args:
        opened: the detector.
        folder: destination; created if necessary.
        data: training data, for the card; by default from the checkpoint.
        licence: the owner's licence for the detector, if its initial weights allow a choice.
        repo_id: ``owner/name``, for the card's example.

    Raises:
        ConfigError: ``folder`` is a file or has a README of other origin, or the weights do not allow ``licence``.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder to write the detector to.")
    card = target / CARD_FILE
    if card.is_file() and CARD_MARK not in card.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{card} was not written by NextDETR and would be overwritten: choose another folder.")
    metadata = opened.metadata
    facts = CardFacts(
        title=(repo_id or target.resolve().name).rsplit("/", 1)[-1], model=_shipped_name(opened.model.text) or "custom",
        classes=opened.classes, image_size=opened.image_size,
        parameters=sum(parameter.numel() for parameter in opened.model.parameters()),
        metrics=read_metrics(metadata), data=data or metadata.get("data", "none"),
        weights_licence=metadata.get("weights_licence", "none"),
        source_weights=public_names(metadata.get("source_weights", "none")), licence=licence,
        repo_id=repo_id or "OWNER/NAME", teacher=metadata.get(TEACHER, "none"),
        teacher_licence=metadata.get(TEACHER_LICENCE, "none"),
    )  # fmt: skip
    text = model_card(facts)  # first, since it may refuse the licence
    # the names of the training images are private, and so is which images these are
    extra = {key: value for key, value in extra_metadata(metadata).items() if key not in ("image_ids", "trained_on")}
    save_opened(
        target / MODEL_FILE, opened, metrics=facts.metrics, source_weights=facts.source_weights, data=facts.data,
        extra=extra,
    )  # fmt: skip
    config = {
        "library_name": "nextdetr", "model": facts.model, "image_size": facts.image_size, "classes": facts.classes,
        "weights_licence": facts.weights_licence,
    }  # fmt: skip
    write_text_atomic(target / CONFIG_FILE, json.dumps(config, ensure_ascii=False, indent=2) + "\n")
    write_text_atomic(card, text)
    return target


def upload_folder(
    opened: OpenedModel,
    repo_id: str,
    *,
    data: str | None = None,
    licence: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload a NextDETR detector",
    token: str | None = None,
) -> str:
    """Upload a detector to a repository on the Hub, created if necessary, and return the URL of the commit.

    Args:
        opened: the detector.
        repo_id: ``owner/name``.
        data: see ``save_folder``.
        licence: see ``save_folder``.
        private: whether a new repository is private; by default its owner's setting.
        revision: existing branch to write to; by default ``main``.
        message: commit message.
        token: token with write access; by default that of the logged-in user.

    Raises:
        ConfigError: ``repo_id`` is invalid, or the weights do not allow ``licence``.
        WeightsError: the Hub cannot be reached, or refuses.
    """
    if _REPO_ID.fullmatch(repo_id) is None:
        raise ConfigError(f"{repo_id!r} is no repository of the Hub: name it owner/name.")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="nextdetr-") as folder:
        save_folder(opened, folder, data=data, licence=licence, repo_id=repo_id)
        with told(repo_id, revision, **_WRITING):
            api = HfApi(token=token, library_name="nextdetr")
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message,
            )  # fmt: skip
    return str(commit.commit_url)


_FETCHING = {
    "missing": "neither a folder here nor a repository on the Hub",
    "unreachable": (
        "no such folder here, and the Hub cannot be reached ({reason}); check the connection and HF_HUB_OFFLINE, or name a "
        "folder."
    ),
}
_WRITING = {
    "missing": "no such repository on the Hub",
    "unreachable": "the Hub cannot be reached ({reason}); check the connection and HF_HUB_OFFLINE.",
    "token": ", with a token that may write",
}


def _detector_file(folder: Path, name: str) -> Path:
    """Return the folder's detector file after checking its metadata."""
    path = folder / MODEL_FILE
    hint = _other_library(folder, name)
    if not path.is_file() and any((folder / file).is_file() for file in RUN_FILES):
        raise WeightsError(f"{name}: the folder of a run: open it with Detector({name!r}).")
    if not path.is_file():
        raise WeightsError(f"{name}: it holds no {MODEL_FILE}, so it is no NextDETR detector{hint}.")
    try:
        read_detector_metadata(path)
    except WeightsError as error:
        if hint:
            raise WeightsError(f"{name}: its {MODEL_FILE} is no NextDETR detector{hint}.") from error
        raise
    return path


def _other_library(folder: Path, name: str) -> str:
    """Describe another program's folder, and what to do with it, as the end of a sentence; "" for any other."""
    try:
        config: Any = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    stated = stated_type(config) if isinstance(config, dict) else None
    if stated is None:
        return ""
    if opens_type(stated):
        return f" but transformers' {stated}; name a model and give it weights={name!r}"
    return f" but transformers' {model_title(stated)}, which NextDETR cannot open"


def _shipped_name(text: str) -> str | None:
    """Return the name of the shipped model with this text."""
    return next((name for name in available_models() if load_model_file(name).text == text), None)
