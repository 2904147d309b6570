"""What the doctor says: findings, each with a severity, and the result that holds them."""

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

#: Kind of the error that the dataset YAML that was asked for could not be written.
NOT_FIXED = "not fixed"

#: The splits of a data set by name; each has its own list of classes.
Parts: TypeAlias = dict[str, DetectionData]

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Mark:
    """A box to draw.

    Attributes:
        box: xyxy, pixels of the image.
        text: what stands beside it.
        doubtful: whether it is what the finding is about.
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
    """One thing that is wrong, or worth knowing.

    Attributes:
        kind: a short noun phrase to count and to search by ("image in two splits").
        severity: "error" where a training would be wasted, "warning" where it would be worse than it need be, else "note".
        message: a sentence: what, how much of it, and what to do.
        images: the files that are concerned.
        details: one entry for each place, of JSON's own types; which keys, depends on the kind.
        pictures: what to show, the most telling first.
    """

    kind: str
    severity: Severity
    message: str
    images: list[str] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the finding as it stands in the JSON result; without details where there are none."""
        found: dict[str, Any] = {
            "kind": self.kind, "severity": self.severity, "images": [path_text(image) for image in self.images],
            "message": self.message,
        }  # fmt: skip
        return {**found, "details": self.details} if self.details else found


@dataclass(frozen=True, slots=True)
class DoctorResult:
    """What ``doctor`` found; the fields of the JSON result.

    Attributes:
        data: the data set that was looked at.
        recognised: as what.
        splits: by name, the numbers of usable ``images`` and ``boxes``.
        findings: the gravest first.
        recipe: the settings that ``train`` would choose here, a line each.
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
        """Whether a training would be worth its time, as a clause."""
        if self.passed:
            return "a training would be worth its time"
        if all(finding.kind == NOT_FIXED for finding in self.findings if finding.severity == "error"):
            return "a training would be worth its time, but nothing was fixed"
        return "a training would be wasted: see the errors"

    @property
    def passed(self) -> bool:
        """Whether a training would not be wasted: there is no error."""
        return all(finding.severity != "error" for finding in self.findings)

    def count(self, severity: Severity) -> int:
        """Return how many findings have a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {
            "command": "doctor", "data": self.data, "recognised": self.recognised, "passed": self.passed,
            "splits": self.splits, "findings": [finding.to_json() for finding in self.findings], "recipe": self.recipe,
            "output": self.output, "fixed": self.fixed,
        }  # fmt: skip


def order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings, the gravest first, and of these those of most images."""
    return sorted(findings, key=lambda finding: (_ORDER.index(finding.severity), -len(finding.images)))


def some(names: Iterable[str], most: int = 3) -> str:
    """Name a few of many: "a, b, c and 4 more"."""
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def headline(result: DoctorResult) -> str:
    """Return one line: what was found in all."""
    grave, other, notes = (result.count(severity) for severity in ("error", "warning", "note"))
    counts = ", ".join(
        plural(count, noun) for count, noun in ((grave, "error"), (other, "warning"), (notes, "note")) if count
    )
    return counts or "nothing to complain of"
