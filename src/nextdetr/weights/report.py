"""Report of a load, tensor by tensor and module by module, complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nextdetr.errors import WeightsError
from nextdetr.models.names import row_of
from nextdetr.weights.layouts.table import Identity

__all__ = ["OUTCOMES", "LoadReport"]

OUTCOMES = ("loaded", "missing", "unexpected", "reshaped")


@dataclass(slots=True)
class LoadReport:
    """Which tensors were copied.

    Attributes:
        source: the file.
        identity: description of the file.
        part: ``detector``, ``backbone`` or ``head`` (everything but the backbone).
        total: number of tensors of the model's part.
        loaded: names in the model, copied completely.
        missing: names in the model that keep their initial values: the file has no such tensor, or one of another shape.
        unexpected: names in the file without a tensor in the model's part.
        reshaped: names in the model, transferred class by class; rows of new classes keep their initial values.
        shapes: for missing ones of another shape, the file's and the model's.
        modules: names of the model's rows, for grouping.
        modules_of_file: names of the rows of the file's unexpected tensors, if they differ from the model's.
        notes: sentences for the user.
    """

    source: str
    identity: Identity
    part: str
    total: int = 0
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    modules: Mapping[int, str] = field(default_factory=dict)
    modules_of_file: Mapping[int, str] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model's part came from the file."""
        return len(self.loaded) == self.total

    def by_module(self) -> dict[str, dict[str, int]]:
        """Count the outcomes of each module: a row of the model (``row 7 RepC3``), or the file's own name for it."""
        table: dict[str, dict[str, int]] = {}
        for outcome in OUTCOMES:
            for name in getattr(self, outcome):
                counts = table.setdefault(self._module(name, outcome), dict.fromkeys(OUTCOMES, 0))
                counts[outcome] += 1
        return table

    def _module(self, name: str, outcome: str) -> str:
        row = row_of(name)
        if row is None:
            return ".".join(name.split(".")[:2])
        of_file = self.modules_of_file if outcome == "unexpected" else None
        known = (self.modules if of_file is None else of_file).get(row)
        whose = "" if of_file is None else "the file's "
        return f"{whose}row {row}" + ("" if known is None else f" {known}")

    def text(self) -> str:
        """Return a line with the totals, and one for each module that was not loaded completely."""
        parts = [f"{self.source} ({self.identity.kind}): {len(self.loaded)} of {self.total} tensors loaded"]
        parts += [
            f"{len(names)} {outcome}"
            for outcome in OUTCOMES[1:]
            if (names := getattr(self, outcome))
        ]  # fmt: skip
        lines = [", ".join(parts) + "."]
        for module, counts in self.by_module().items():
            other = [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES[1:] if counts[outcome]]
            if other:
                names = self._examples(module)
                lines.append(f"  {module}: {counts['loaded']} loaded, {', '.join(other)} ({names})")
        return "\n".join(lines + [f"  {note}" for note in self.notes])

    def _examples(self, module: str) -> str:
        names = [n for outcome in OUTCOMES[1:] for n in getattr(self, outcome) if self._module(n, outcome) == module]
        shown = []
        for name in names[:2]:
            shape = self.shapes.get(name)
            shown.append(name if shape is None else f"{name}: {shape[0]} in the file, {shape[1]} in the model")
        return ", ".join(shown) + (", …" if len(names) > 2 else "")

    def check(self, *, allow_partial: bool, whole: bool = False) -> None:
        """Refuse a load that matches less than half of the tensors, or not all of them.

        Args:
            allow_partial: accept any load of at least one tensor.
            whole: refuse gaps, which only training can fill.

        Raises:
            WeightsError: too few of the part's tensors were found, and ``allow_partial`` is not set; or none at all.
        """
        found = len(self.loaded) + len(self.reshaped)
        if self.total and not found:
            raise WeightsError(f"{self.source}: none of its tensors fits the model's {self.part}; {self._cause()}")
        if 2 * found < self.total and not allow_partial:
            raise WeightsError(
                f"{self.source}: only {found} of the {self.total} tensors of the model's {self.part} are in it; "
                f"{self._cause()} To load them nevertheless, give --allow-partial."
            )

        if whole and not self.complete and not allow_partial:
            gaps = [*self.missing, *self.reshaped]
            raise WeightsError(
                f"{self.source}: incomplete: {len(gaps)} of the {self.total} tensors of the model's {self.part} (such as "
                f"{gaps[0]}) would keep random values, so its results would mean nothing; {self._cause()} Training "
                "takes such a file; to use it as it is, give --allow-partial."
            )

    def _cause(self) -> str:
        fits = f"it is for {self.identity.model}." if self.identity.model else "it may be for another model."
        if self.shapes:
            name, (theirs, ours) = next(iter(self.shapes.items()))
            return f"{name} is {theirs} in the file and {ours} in the model: {fits}"
        return fits

    def to_json(self) -> dict[str, Any]:
        """Return the report for ``--json``."""
        return {
            "file": self.source, "kind": self.identity.kind, "part": self.part, "total": self.total,
            **{outcome: getattr(self, outcome) for outcome in OUTCOMES},
            "modules": self.by_module(), "notes": self.notes,
        }  # fmt: skip
