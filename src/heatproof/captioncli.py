"""The two commands that are asked about a captioner itself, and need no benchmark."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

TYPED = "a name, or an inline table as '{ use = \"scenes\", partner = 0.5 }'"
OUT = click.Path(path_type=Path, file_okay=False)


def _typed(command: Callable[..., Any]) -> Callable[..., Any]:
    """A captioner, a data set and explainers as they are typed."""
    options = [
        click.argument("model"),
        click.argument("dataset", metavar="DATA"),
        click.option(
            "--explainer", "explainers", multiple=True, metavar="NAME", help=f"one or more: {TYPED}"
        ),
        click.option(
            "--data", "data", multiple=True, metavar="NAME=DIR", help="what {NAME} in MODEL or DATA means"
        ),
        click.option("--seed", default=0, show_default=True),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1"),
        click.option("--out", type=OUT, help="else reports/MODEL-DATA"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_typed
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="how many")
@click.option("--gamma", default=0.7, show_default=True, help="maps are drawn as this power; 1: as they are")
def captions(images: int, gamma: float, out: Path | None, device: str, **typed: Any) -> None:
    # \b is click's mark for lines that stay
    """What a captioner says, every word of it explained, as one page.

    \b
    heatproof captions small_captioner scenes --explainer lrp --explainer gradcam
    heatproof captions MODEL '{ use = "flickr8k", images = "{data}/test.zip",
        text = "{data}/text" }' --data data=DIR
    """  # noqa: D301
    from heatproof import captioning, ordering

    for path in captioning.write(ordering.benchmark(sample=images, **typed), Path.cwd(), out, gamma, device):
        click.echo(ordering.shown(path))


@click.command("audit-captions")
@_typed
@click.option("--sample", type=click.IntRange(1), default=96, show_default=True, help="how many images")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="processes")
def audit_captions(sample: int, workers: int, out: Path | None, device: str, **typed: Any) -> None:
    # \b is click's mark for lines that stay
    """Are object words said because of the image or of the language, and do maps tell the made-up ones?

    \b
    heatproof audit-captions small_captioner scenes
    heatproof audit-captions small_captioner '{ use = "scenes", partner = 0.5 }' --sample 200

    Writes the benchmark that it runs, MODEL-DATA.toml, beside you; report and words.csv go to --out.
    """  # noqa: D301
    from heatproof import captionaudit, ordering

    raw = ordering.benchmark(sample=sample, **typed)
    lines, files, sound = captionaudit.run(raw, Path.cwd(), out, workers, device)
    for line in [*lines, *map(ordering.shown, files)]:
        click.echo(line)
    sys.exit(0 if sound else 1)
