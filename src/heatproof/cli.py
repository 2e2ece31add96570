"""The command line: from new to run, report, table and figure. Each command is a few calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import heatproof
from heatproof import captioncli
from heatproof.errors import Refused

BENCHMARK = click.argument("benchmark")


def _settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that change what a benchmark computes, the same for every command that computes."""
    options = [
        click.option(
            "--set", "sets", multiple=True, metavar="KEY=VALUE", help="e.g. metrics.deletion.steps=50"
        ),
        click.option(
            "--data", "data", multiple=True, metavar="NAME=DIR", help="where data or weights of that name are"
        ),
        click.option(
            "--stand-in", is_flag=True, help="the spec's [stand_in] in place of data you do not have"
        ),
        click.option("--limit", type=click.IntRange(1), help="the first N samples only"),
        click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="processes"),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _order(benchmark: str, **settings: Any) -> Any:
    from heatproof.ordering import folders
    from heatproof.runner import Order

    return Order(benchmark, data=folders(settings.pop("data", ())), **settings)


class Plain(click.Group):
    """Refusals become one line and exit code 2; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read us has had enough; click knows what to do
            raise
        except (Refused, OSError) as error:
            click.echo(f"heatproof: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("heatproof: stopped; what was finished is kept, the same command resumes", err=True)
            sys.exit(130)


@click.group(cls=Plain, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(heatproof.__version__)
def cli() -> None:
    """Heat maps, put to the proof: run explanation methods through metrics, and get tables and a report."""


@cli.command()
@BENCHMARK
@_settings
@click.option("--plan", is_flag=True, help="say what a run would take and what is missing; start nothing")
@click.option("--fresh", is_flag=True, help="compute again what is stored, in a store of its own")
def run(benchmark: str, plan: bool, **settings: Any) -> None:
    """Run a benchmark: only what is not stored yet is computed."""
    from heatproof import planning, runner
    from heatproof.summary import summarise
    from heatproof.tables import terminal

    order = _order(benchmark, **settings)
    if plan:
        click.echo(planning.plan(order))
        return
    result = runner.run(order)
    place = order.read().workspace
    summary = summarise(result)
    click.echo(terminal(summary))
    for path in _render(summary, place):
        click.echo(_short(path))
    failures = result.run["failures"]
    if failures:
        first = failures[0]
        click.echo(
            f"{len(failures)} failed; the first: {first['model']} / {first['explainer']} / {first['case']}: "
            f"{first['error']}  (all with tracebacks in the report)",
            err=True,
        )
        sys.exit(1)


def _render(summary: Any, workspace: Path) -> list[Path]:
    from heatproof import report as reporting

    return list(reporting.write(summary, workspace / "reports" / summary.result.name))


def _short(path: Path) -> str:
    from heatproof.ordering import shown

    return shown(path)


@cli.command()
@BENCHMARK
@click.option(
    "--into", type=click.Path(path_type=Path, exists=True), help="a Markdown file whose table to renew"
)
def report(benchmark: str, into: Path | None) -> None:
    """Redraw tables, plots and the report from results, without torch."""
    from heatproof.results import latest
    from heatproof.summary import summarise

    result, workspace = latest(benchmark, Path.cwd())
    if into is not None:
        from heatproof.readme import filled

        into.write_text(filled(into.read_text(encoding="utf-8"), result), encoding="utf-8")
    click.echo(f"drawn from {_short(result.folder / (result.name + '.csv'))}")
    for path in _render(summarise(result), workspace):
        click.echo(_short(path))


@cli.command()
@BENCHMARK
@_settings
@click.option("--fresh", is_flag=True, help="compute everything, also what has the frozen result's key")
@click.option("--freeze", is_flag=True, help="make the new numbers the frozen ones")
@click.option("--reason", default="", help="why the frozen numbers change; kept in their history")
def regress(benchmark: str, freeze: bool, reason: str, **settings: Any) -> None:
    """Compare with the frozen results; exit 1 if a score moved beyond its tolerance."""
    from heatproof import regress as checking
    from heatproof import results, runner

    order = _order(benchmark, **settings)
    asked = order.read()
    frozen = results.frozen(asked.workspace, asked.name)
    order = replace(order, trust=not freeze and not order.fresh)
    if freeze:
        if frozen is not None and not reason:
            raise Refused('--freeze needs --reason "why the numbers change": they keep their past')
        for path in results.freeze(runner.run(order), asked.workspace, frozen, reason or "first frozen"):
            click.echo(_short(path))
        return
    if frozen is None:
        raise Refused(
            f"results/{asked.name}.csv is not there: nothing is frozen yet. "
            f'Type: heatproof regress {benchmark} --freeze --reason "first"'
        )
    verdict = checking.compare(frozen, runner.run(order))
    for line in verdict.lines:
        click.echo(line)
    sys.exit(verdict.exit_code)


@cli.command()
@BENCHMARK
@click.option(
    "--column", default="", help="METRIC.VALUE; the first of the spec's headline where none is named"
)
@click.option(
    "--vary", multiple=True, metavar="SETTING=A,B", help="e.g. steps=5,10 or ties=0,1; else the usual choices"
)
@_settings
def multiverse(benchmark: str, column: str, vary: tuple[str, ...], **settings: Any) -> None:
    """How stable is a ranking under every admissible setting of its metric? Maps are computed once."""
    from heatproof import multiverse as universe

    lines, files = universe.run(_order(benchmark, **settings), column, universe.choices(vary))
    for line in [*lines, *map(_short, files)]:
        click.echo(line)


@cli.command("audit-metrics")
@BENCHMARK
@click.option("--freeze", is_flag=True, help="an exam's verdicts become the detector's own marks")
@_settings
def audit_metrics(benchmark: str, freeze: bool, **settings: Any) -> None:
    """Put a benchmark's own metrics to the lie detector: do controls win, does blur pay, does a shuffled map do as well?"""
    from heatproof import auditing

    lines, files = auditing.run(_order(benchmark, **settings), freeze)
    for line in [*lines, *map(_short, files)]:
        click.echo(line)


@cli.command("list")
@click.argument(
    "what",
    default="benchmarks",
    type=click.Choice(["explainers", "metrics", "models", "datasets", "benchmarks", "recipes"]),
)
@click.option(
    "--long", "long_", is_flag=True, help="metrics and explainers: definitions at full length, as Markdown"
)
def list_(what: str, long_: bool) -> None:
    """What is on the shelves, one line each, with settings and source."""
    from heatproof.catalogue import cards, lines

    if long_ and what not in ("metrics", "explainers"):
        raise Refused(f"heatproof list {what} --long: found {what}, accepted are metrics and explainers")
    for line in cards(what, Path.cwd()) if long_ else lines(what, Path.cwd()):
        click.echo(line)


@cli.command()
@BENCHMARK
@click.argument("case", required=False)
@_settings
@click.option("--out", type=click.Path(path_type=Path), help="where the PNG goes")
def show(benchmark: str, case: str | None, out: Path | None, **settings: Any) -> None:
    """One case: the image with each explainer's map side by side. Without CASE: the cases there are."""
    from heatproof.showing import show as draw

    for line in draw(_order(benchmark, **settings), case, out):
        click.echo(line)


@cli.command()
@click.argument("what", type=click.Choice(["explainer"]))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "family",
    type=click.Choice(["classifier", "clip", "captioner"]),
    default="classifier",
    show_default=True,
)
def new(what: str, file: Path, family: str) -> None:
    """Write a method of your own to begin with, and a benchmark with five baselines beside it."""
    from heatproof.outsider import new_explainer

    for path in new_explainer(file, family):
        click.echo(_short(path))


@cli.command()
@click.argument("explainer", metavar="FILE:CLASS")
def check(explainer: str) -> None:
    """Put an explainer to the house's tests on the small models; exit 1 where something is wrong."""
    from heatproof.checking import check as examine

    lines, sound = examine(explainer, Path.cwd())
    for line in lines:
        click.echo(line)
    sys.exit(0 if sound else 1)


@cli.command()
@BENCHMARK
@click.option("--ours", required=True, metavar="NAME", help="the explainer that stands last, marked")
@click.option("--latex", type=click.Path(path_type=Path, dir_okay=False), help="where the LaTeX goes")
def table(benchmark: str, ours: str, latex: Path | None) -> None:
    """The paper's table, from results, without torch: headline columns, yours last, what it may claim."""
    from heatproof import paper
    from heatproof.records import write_whole
    from heatproof.results import latest
    from heatproof.summary import summarise

    summary = summarise(latest(benchmark, Path.cwd())[0])
    click.echo(paper.terminal(summary, ours), nl=False)
    if latex is not None:
        write_whole(latex, paper.latex(summary, ours))
        click.echo(_short(latex))


@cli.command()
@BENCHMARK
@click.option("--rows", required=True, metavar="RULE:N,...", help="random:3,disagree:2,worst:1")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="a .pdf or .png")
@click.option("--ours", default="", metavar="NAME", help="the explainer that stands last, marked")
@click.option("--column", default="", help="METRIC.VALUE; else the first of the spec's headline")
@click.option("--model", default="", help="else the first of the spec")
@_settings
def figure(benchmark: str, rows: str, out: Path, ours: str, column: str, model: str, **settings: Any) -> None:
    """The paper's figure: cases drawn by a printed rule, each method's map side by side."""
    from heatproof.figures import draw

    for line in draw(_order(benchmark, **settings), rows, out, ours, column, model):
        click.echo(line)


@cli.command()
@click.argument("recipe")
@click.option(
    "--out", type=click.Path(path_type=Path), help="where the weights go (default: beside the recipe)"
)
@click.option("--seed", type=int, help="instead of the recipe's")
@click.option("--start", help="for fine-tuning: the captioner to start from, instead of the recipe's")
def train(recipe: str, out: Path | None, seed: int | None, start: str | None) -> None:
    """Train a model by its recipe; resumes after a kill."""
    from heatproof.errors import unknown
    from heatproof.shelf import Place
    from heatproof.training import train as begin

    known = Place(Path.cwd(), Path.cwd()).recipes()
    path = Path(recipe) if recipe.endswith(".toml") else known.get(recipe)
    if path is None or not path.is_file():
        raise unknown("heatproof train", "recipe", recipe, known)
    target = out or Path.cwd() / "recipes" / "weights" / path.stem
    given: dict[str, Any] = {
        key: value for key, value in (("seed", seed), ("start", start)) if value is not None
    }
    card: Mapping[str, Any] = begin(path, target, **given)
    for key, value in card.items():
        click.echo(f"{key}: {value}")


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("what", type=click.Choice(["scenes"]))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--sample", default=100, show_default=True, help="how many scenes")
@click.option("--split", default="test", show_default=True)
@click.option("--seed", default=0, show_default=True)
def export(what: str, folder: Path, sample: int, split: str, seed: int) -> None:
    """Write generated scenes as COCO instances and captions with PNGs."""
    from heatproof.export import export_scenes

    for path in export_scenes(folder, sample=sample, split=split, seed=seed):
        click.echo(_short(path))


@cli.command("export-cases")
@BENCHMARK
@click.argument("folder", type=click.Path(path_type=Path))
@_settings
def export_cases(benchmark: str, folder: Path, **settings: Any) -> None:
    """Write a benchmark's cases, so that a rival can explain them elsewhere and come back as `precomputed`."""
    from heatproof import handing

    for path in handing.export_cases(_order(benchmark, **settings), folder):
        click.echo(_short(path))


@cli.command()
def doctor() -> None:
    """Look at versions, device, extras and data folders; say what to type where something is wrong."""
    from heatproof.doctor import examine

    lines, healthy = examine(Path.cwd())
    for line in lines:
        click.echo(line)
    sys.exit(0 if healthy else 1)


cli.add_command(captioncli.captions)
cli.add_command(captioncli.audit_captions)


def main() -> Any:
    """The console script."""
    return cli()
