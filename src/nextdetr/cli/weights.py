"""``nextdetr weights inspect``, ``nextdetr weights convert`` and ``nextdetr weights list``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say
from nextdetr.errors import ConfigError

__all__ = ["app"]

app = App(name="weights", help="Inspect weights files of any origin, and convert them for other programs.")


@app.command
def inspect(
    file: Annotated[Path, Parameter(help="A weights file, a folder, a name (as for --weights), or an exported file.")],
    *,
    model: Annotated[str | None, Parameter(help="A shipped name or model YAML that it should fit.")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what a weights file holds: model, classes and licence, and whether it fits a model.

    Nothing in the file is run. Example: `nextdetr weights inspect convnextv2_atto.pt --model nextdetr-atto`.
    """
    from nextdetr.inference.header import is_exported, summarize_export, summary_lines

    if is_exported(file):
        if model is not None:
            raise ConfigError(f"{file}: an exported file has its model inside and fits no other: leave --model out.")
        summary = summarize_export(file)
        result = {"command": "weights inspect", "file": str(file), **summary}
        print_json(result) if json else say("\n".join(summary_lines(summary)))
        return
    from nextdetr.weights.inspect import inspect_file

    found = inspect_file(file, model)
    if json:
        print_json({"command": "weights inspect", "file": str(file), **found})
        return
    _show(file, found)


@app.command
def convert(
    file: Annotated[Path, Parameter(help="A weights file, a folder, or a name (as for --weights).")],
    *,
    to: Annotated[
        Literal["nextdetr", "timm", "transformers", "original", "ultralytics"],
        Parameter(help="Layout to write; ultralytics: for its plug-in nextdetr-ultralytics."),
    ],
    output: Annotated[Path | None, Parameter(help="File to write (default: beside FILE, the layout in its name).")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write weights in another layout, without loss. ultralytics gets all of a detector, other programs its backbone.

    Example: `nextdetr weights convert backbone.safetensors --to timm`.
    """
    from nextdetr.weights.convert import convert as run

    written, identity = run(file, to, output)
    if json:
        result = {"file": str(file), "kind": identity.kind, "to": to, "output": str(written)}
        print_json({"command": "weights convert", **result, "weights_licence": identity.licence})
    else:
        say(f"{written}  ({to}, from {identity.kind}; licence of the weights: {identity.licence})")


@app.command(name="list")
def list_weights(*, json: Json = False, verbose: Verbose = False) -> None:
    """List published weights that are known to fit, by the names that `--weights` takes, with their licences.

    Nothing is downloaded. Others load too: `owner/name[/file][@revision]` of the Hugging Face Hub.
    """
    from nextdetr.weights.published import listed_weights

    entries = listed_weights()
    if json:
        print_json({"command": "weights list", "weights": [entry.to_json() for entry in entries]})
        return
    rows = [("name", "model", "parameters", "published", "licence", "size", "repository of the Hub")]
    for entry in entries:
        measure = "AP" if entry.part == "detector" else "top-1"
        rows.append((
            entry.name, entry.model, "" if entry.parameters is None else f"{entry.parameters / 1e6:.1f} M",
            "" if entry.metric is None else f"{entry.metric:.3f} {measure}", entry.licence,
            "" if entry.megabytes is None else f"{entry.megabytes:g} MB", entry.repository,
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    say("Give a detector's name as --weights, a backbone's (model convnextv2-…) as --backbone-weights.")


def _show(file: Path, found: dict[str, Any]) -> None:
    say(f"{file}: {found['kind']}, {found['tensors']:,} tensors, {found['parameters']:,} numbers")
    own = "one of its own, which the file holds" if found["kind"] == "nextdetr-detector" else "unknown"
    say(f"  for the model: {found['for_model'] or own}")
    classes = found["classes"]
    if classes:
        shown = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
        say(f"  classes: {len(classes)} ({shown})")
    elif found["num_classes"]:
        say(f"  classes: {found['num_classes']:,}, not named")
    licence = found["weights_licence"]
    say(f"  licence of the weights: {licence}{', as no published weights are in it' * (licence == 'none')}")
    for note in found["notes"]:
        say(f"  note: {note}")
    if found["fit"] is not None:
        fit = found["fit"]
        say(f"  fits {fit['model']}: {'yes' if fit['fits'] else 'no'}. {fit['reason']}")
