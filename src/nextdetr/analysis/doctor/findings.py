"""Results of the doctor: findings with a severity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData
from nextdetr.files import path_text

__all__ = ["NOT_FIXED", "DoctorResult", "Finding", "Mark", "Parts", "Picture", "Severity", "headline", "order", "some"]

Severity: TypeAlias = Literal["error", "warning", "note"]

#: Kind of the error that the requested dataset YAML could not be written.
NOT_FIXED = "not fixed"

#: The splits of a data set by name; each has its own list of classes.
Parts: TypeAlias = dict[str, DetectionData]

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Mark:
    """A box to draw.

    Attributes:
        box: xyxy, pixels of the image.
        text: its label.
        doubtful: whether the finding is about it.
    """

    box: tuple[float, float, float, float]
    text: str = ""
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """An image to show beside a finding."""

    path: Path
    caption: str
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, or something worth knowing.

    Attributes:
        kind: a short noun phrase for counting and searching ("image in two splits").
        severity: "error" if training would be wasted, "warning" if it would be worse than necessary, else "note".
        message: a sentence: what, how many, and what to do.
        images: the files concerned.
        details: one entry per place, with JSON types; the keys depend on the kind.
        pictures: images to show, most telling first.
    """

    kind: str
    severity: Severity
    message: str
    images: list[str] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the finding for the JSON result, without empty details."""
        found: dict[str, Any] = {
            "kind": self.kind, "severity": self.severity, "images": [path_text(image) for image in self.images],
            "message": self.message,
        }  # fmt: skip
        return {**found, "details": self.details} if self.details else found


@dataclass(frozen=True, slots=True)
class DoctorResult:
    """Result of ``doctor``; the fields of the JSON result.

    Attributes:
        data: the data set.
        recognised: how it was recognised.
        splits: by name, the number of usable ``images`` and ``boxes``.
        findings: the findings, most serious first.
        recipe: the settings that ``train`` would choose, one per line.
        output: the page that was written, or None.
        fixed: the dataset YAML that was written, or None.
    """

    data: str
    recognised: str
    splits: dict[str, dict[str, int]]
    findings: list[Finding]
    recipe: list[str]
    output: str | None = None
    fixed: str | None = None

    @property
    def verdict(self) -> str:
        """Whether training is worthwhile, as a clause."""
        if self.passed:
            return "training is worthwhile"
        if all(finding.kind == NOT_FIXED for finding in self.findings if finding.severity == "error"):
            return "training is worthwhile, but nothing was fixed"
        return "training would be wasted: see the errors"

    @property
    def passed(self) -> bool:
        """Whether there are no errors, so training would not be wasted."""
        return all(finding.severity != "error" for finding in self.findings)

    def count(self, severity: Severity) -> int:
        """Return the number of findings with a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {
            "command": "doctor", "data": self.data, "recognised": self.recognised, "passed": self.passed,
            "splits": self.splits, "findings": [finding.to_json() for finding in self.findings], "recipe": self.recipe,
            "output": self.output, "fixed": self.fixed,
        }  # fmt: skip


def order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings: most serious first, then by number of images."""
    return sorted(findings, key=lambda finding: (_ORDER.index(finding.severity), -len(finding.images)))


def some(names: Iterable[str], most: int = 3) -> str:
    """List a few of many: "a, b, c and 4 more"."""
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def headline(result: DoctorResult) -> str:
    """Return a one-line summary."""
    grave, other, notes = (result.count(severity) for severity in ("error", "warning", "note"))
    counts = ", ".join(
        plural(count, noun) for count, noun in ((grave, "error"), (other, "warning"), (notes, "note")) if count
    )
    return counts or "no problems found"
