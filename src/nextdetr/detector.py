"""``Detector``: the whole way from labelled photographs to detections, a few lines a method, each calling the library."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nextdetr.config import (
    CalibrateConfig,
    EmbedConfig,
    ExportConfig,
    ReportConfig,
    TrainConfig,
    ValConfig,
    build_config,
)
from nextdetr.errors import ConfigError
from nextdetr.extras import require_train
from nextdetr.measures import exported_meter, scorer
from nextdetr.streams import Predicting

if TYPE_CHECKING:
    from nextdetr.engine.calibrate import CalibrateResult
    from nextdetr.engine.report import ReportResult
    from nextdetr.engine.train import TrainResult
    from nextdetr.engine.validate import ValResult
    from nextdetr.export.run import ExportResult
    from nextdetr.inference.exported import OpenedExport, Runtime
    from nextdetr.inference.pytorch.embed import Embeddings
    from nextdetr.inference.sources import Sources
    from nextdetr.models.summary import Summary
    from nextdetr.weights.checkpoint import OpenedModel
    from nextdetr.weights.report import LoadReport

__all__ = ["Detector"]

_OPENING = threading.RLock()  # not a detector's own, so that it can be pickled


class Detector(Predicting):
    """A detector: a shipped model, a model YAML, a trained checkpoint, or an exported file.

    Args:
        model: a shipped name (``nextdetr-atto``), a model YAML, a checkpoint (``best.safetensors``), or what ``export``
            wrote (``model.onnx``, ``model.xml`` or the folder), which can predict and be scored.
        device: where to run, such as ``cpu`` or ``cuda:1``; by default the best there is.
        weights: detector weights of any known layout to start from (ours, official RT-DETR, transformers, ultralytics): a
            file, a folder, a name of ``nextdetr weights list``, or ``owner/name[/file][@revision]`` of the Hub.
        backbone_weights: the same of a backbone; with ``weights`` of another backbone, those bring the rest.
        allow_partial: accept weights that leave a part of the model as initialised, whose results mean nothing.
        runtime: what runs an exported file, ``onnxruntime`` or ``openvino``; ``auto`` is the fastest installed
            one in which the file passed its gate.

    Attributes:
        load_reports: what was loaded from ``weights`` and ``backbone_weights``.

    Raises:
        ModelFileError: ``model`` is neither shipped nor a readable model file.
        WeightsError: weights are damaged, do not fit the model, or cannot be fetched.

    Example:
        >>> detector = Detector("nextdetr-atto")
        >>> detector.train(data="bccd", epochs=60, image_size=320)
        >>> detector.predict("cells.jpg", confidence=0.5)
    """

    def __init__(
        self,
        model: str | Path = "nextdetr-atto",
        *,
        device: str | None = None,
        weights: str | Path | None = None,
        backbone_weights: str | Path | None = None,
        allow_partial: bool = False,
        runtime: Runtime = "auto",
    ) -> None:
        self.source, self.device, self.runtime = str(model), device, runtime
        self._start: dict[str, Any] = {
            "weights": weights, "backbone_weights": backbone_weights, "allow_partial": allow_partial,
        }  # fmt: skip
        self.load_reports: list[LoadReport] = []
        self._opened: OpenedModel | OpenedExport | None = None
        self._opened = self.opened

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r})"

    def _open(self, threads: int | None = None) -> OpenedModel | OpenedExport:
        from nextdetr.inference.exported import open_any

        opened, self.load_reports = open_any(self.source, runtime=self.runtime, threads=threads, **self._start)
        return opened

    @property
    def opened(self) -> OpenedModel | OpenedExport:
        """The network and what is known of it."""
        with _OPENING:  # several threads may ask for what nobody has opened yet
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _network(self, purpose: str) -> OpenedModel:
        """The network as a module of torch, which an exported file no longer is."""
        from nextdetr.inference.exported import OpenedExport

        opened = self.opened
        if isinstance(opened, OpenedExport):
            raise ConfigError(
                f"{self.source}: an exported file cannot {purpose}; name the checkpoint that it was made from."
            )
        return opened

    @property
    def classes(self) -> list[str]:
        """Class names, in the order of the model's indices."""
        return self.opened.classes

    def train(
        self, data: str | Path | Sequence[str | Path] | None = None, *, quiet: bool = False, **settings: Any
    ) -> TrainResult:
        """Train on a data set; afterwards this detector has the best weights of the run.

        Args:
            data: a data set of any format that ``docs/reference/data-formats.md`` has, its folder or file; or a list of
                several, which are trained on as one.
            quiet: show no progress on standard error.
            settings: the options of ``nextdetr train`` as keywords (``epochs``, ``minutes``, ``image_size``, …).

        Raises:
            NextDETRError: see :func:`nextdetr.engine.train.train`.
        """
        require_train("training a detector")
        from nextdetr.engine.train import train

        values: dict[str, Any] = dict(settings)
        if settings.get("resume") is None:
            self._network("be trained")
            start = {name: value for name, value in self._start.items() if value}
            values = {"model": self.source, **start, **settings}
        if data is not None:
            values["data"] = data
        if self.device is not None and not {"device", "accelerator", "devices"} & set(settings):
            values["device"] = self.device
        result = train(build_config(TrainConfig, values), quiet=quiet, meter=exported_meter)
        with _OPENING:
            self.source, self._opened, self._start, self.runtime = result.checkpoint, None, {}, "auto"
        return result

    def val(self, data: str | Path, split: str = "val", *, quiet: bool = False, **settings: Any) -> ValResult:
        """Score the detector on one split of a data set with the COCO metrics (AP and AR as fractions, 0 to 1).

        Args:
            data: a data set as for :meth:`train`; several as a YAML with ``format: joined``.
            split: which part of it.
            quiet: show no progress on standard error.
            settings: the options of ``nextdetr val`` as keywords.
        """
        from nextdetr.engine.validate import score_detector

        config = build_config(ValConfig, {"data": str(data), "split": split, **settings})
        config = config.model_copy(update={"device": config.device or self.device})
        return score_detector(self.opened, config, quiet=quiet)

    def report(self, data: str | Path, split: str = "val", *, quiet: bool = False, **settings: Any) -> ReportResult:
        """Write one HTML file that shows where the detector fails on a split, and return its numbers.

        ``data``, ``split`` and ``quiet`` are as for :meth:`val`; ``settings`` are the options of ``nextdetr report`` as
        keywords (``output``, ``pictures``, ``store``, …).
        """
        from nextdetr.engine.report import report

        config = build_config(ReportConfig, {"data": str(data), "split": split, **settings})
        result = report(self.opened, config.model_copy(update={"device": config.device or self.device}), quiet=quiet)
        if config.store:
            self._opened = None  # the file has other thresholds now
        return result

    def calibrate(
        self, data: str | Path, recall: float = 0.95, split: str = "test", *, quiet: bool = False, **settings: Any
    ) -> CalibrateResult:
        """Store the confidence that bounds the share of missed objects in the checkpoint; ``passed`` says if there is one.

        Args:
            data: as for :meth:`val`.
            recall: of an image's objects, at most 1 less this is missed, on the average of new images; 0 to 1.
            split: part of the data set that chose neither weights nor thresholds.
            quiet: show no progress on standard error.
            settings: the options of ``nextdetr calibrate`` as keywords (``iou``, ``unlike``, …).

        Raises:
            ConfigError: this is no checkpoint, or the split chose its weights or thresholds.
            DataError: the split cannot be used, has no objects, or shares images with train or val.
        """
        require_train("calibrating a detector")
        from nextdetr.engine.calibrate import calibrate

        config = build_config(CalibrateConfig, {"data": str(data), "recall": recall, "split": split, **settings})
        result = calibrate(self.opened, config.model_copy(update={"device": config.device or self.device}), quiet=quiet)
        if result.passed:
            self._opened = None  # the file says more now
        return result

    def embed(self, images: Sources, row: int | None = None, **settings: Any) -> Embeddings:
        """Describe each image by one vector: the average of the map of a row.

        Args:
            images: as for :meth:`predict`.
            row: number of the row, as :meth:`info` counts them; by default the last one of the backbone.
            settings: the options of ``nextdetr embed`` as keywords (``image_size``, ``batch_size``, …); with ``output``,
                the vectors are written there too.

        Returns:
            ``embeddings`` [N, C] float32 with their ``paths``, in order.

        Raises:
            ConfigError: there is no such row, or a setting is out of its range.
            DataError: no image is found, or not one can be read.
        """
        network = self._network("be read row by row")
        from nextdetr.inference.opened import settle, warn_of_random_weights
        from nextdetr.inference.pytorch.embed import check_output, embed_images, write_embeddings

        config = build_config(EmbedConfig, {"row": row, **settings})
        if config.output is not None:
            check_output(config.output)
        settled = settle(network, device=config.device or self.device, image_size=config.image_size, bits=config.bits)
        warn_of_random_weights(network, weights=False, maps_only=True)
        result = embed_images(
            network.model, images, image_size=settled.image_size, row=config.row, batch_size=config.batch_size,
            device=settled.device, name=self.source, reading=settled.reading, recursive=config.recursive,
        )  # fmt: skip
        if config.output is not None:
            write_embeddings(result, config.output)
        return result

    def info(self, image_size: int = 640, *, profile: bool = False) -> Summary:
        """Return the table of rows, with parameters and GFLOP (2 per multiply-add) at ``image_size`` pixels.

        Args:
            image_size: a multiple of the model's largest stride, 32 for all shipped ones.
            profile: also measure time and operations of each row (``rows[k].profile``).
        """
        network = self._network("be taken apart into rows")
        from nextdetr.models.summary import summarize

        return summarize(network.model, image_size, profile=profile)

    def export(self, format: str = "onnx", *, quiet: bool = False, **settings: Any) -> ExportResult:  # noqa: A002
        """Write the detector for another runtime, open what was written there, and compare it with this detector.

        Args:
            format: ``onnx``, ``openvino``, ``pt2``, or ``web`` (a page that runs it in the browser).
            quiet: show no progress on standard error.
            settings: the options of ``nextdetr export`` as keywords (``half``, ``dynamic``, ``data``, …).

        Returns:
            What was written, with the report; ``passed`` says whether the differences are within their limits.

        Raises:
            ExportError: the model cannot be expressed in that format.
            ConfigError: a package is missing, or a setting is out of its range.
        """
        network = self._network("be exported again")
        from nextdetr.engine.log import Display
        from nextdetr.export.run import export

        if settings.get("data") is not None:
            settings["data"] = str(settings["data"])
        config = build_config(ExportConfig, {"format": format, **settings})
        score = scorer(config.data, config.split, quiet=quiet)
        return export(network, config, score=score, progress=lambda: Display(enabled=not quiet))

    def serve(self, **settings: Any) -> None:
        """Serve the detector over HTTP, with a page to try it, until the process is asked to stop.

        With ``threads``, and for a reload, it is opened again from its file.

        Args:
            settings: the options of ``nextdetr serve`` as keywords (``host``, ``port``, ``queue``, ``corrections``, …).

        Raises:
            ConfigError: the port is taken, a setting is wrong, or a package is missing.
        """
        from nextdetr.serve.run import serve

        serve(self.source, opened=self.opened, again=self._open, **{"device": self.device, **settings})

    def save(self, path: str | Path) -> Path:
        """Write the detector to a ``*.safetensors`` file.

        Raises:
            ConfigError: the name does not end in ``.safetensors``.
        """
        network = self._network("be saved as a checkpoint")
        from nextdetr.weights.checkpoint import save_opened

        if Path(path).suffix != ".safetensors":
            raise ConfigError(f"{path}: a detector is saved as safetensors; end the name in .safetensors.")
        return save_opened(path, network)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, device: str | None = None, token: str | None = None
    ) -> Self:
        """Open a detector from a folder that :meth:`save_pretrained` wrote, or from the Hugging Face Hub.

        Args:
            name: a folder, or ``owner/name`` on the Hub.
            revision: branch, tag or commit on the Hub.
            device: where to run; by default the best there is.
            token: of the Hub; by default the one that the user is logged in with.

        Raises:
            WeightsError: there is no such folder or repository, the Hub cannot be reached, or it holds no detector of ours.
        """
        require_train("a detector of the Hugging Face Hub")
        from nextdetr.hub import fetch_pretrained

        return cls(fetch_pretrained(name, revision=revision, token=token), device=device)

    def save_pretrained(self, folder: str | Path, *, data: str | None = None, licence: str | None = None) -> Path:
        """Write the detector to a folder: ``model.safetensors``, ``config.json`` and a model card, ``README.md``.

        Args:
            folder: where to; an earlier detector there is replaced.
            data: what it was trained on, for the card; by default the name of the data set that it was trained with.
            licence: of the detector, where the weights that it started from leave the choice.

        Raises:
            ConfigError: ``folder`` is a file or has a README of somebody's own, or the weights do not allow ``licence``.
        """
        network = self._network("be saved as a checkpoint")
        from nextdetr.hub import save_folder

        return save_folder(network, folder, data=data, licence=licence)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Write the detector to ``owner/name`` on the Hugging Face Hub, and return the address of the commit.

        Args:
            repo_id: ``owner/name``; made if need be.
            settings: ``data`` and ``licence`` as for :meth:`save_pretrained`; ``private``, ``revision`` (a branch),
                ``message`` and ``token``.

        Raises:
            WeightsError: the Hub cannot be reached, or refuses.
        """
        network = self._network("be saved as a checkpoint")
        from nextdetr.hub import upload_folder

        return upload_folder(network, repo_id, **settings)
