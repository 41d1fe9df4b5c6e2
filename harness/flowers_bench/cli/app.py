"""The commands' names, arguments and help texts; the module with a command's name does its work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flowers_bench import __version__


class _WholeHelp(TyperGroup):
    """A group whose list of commands has whole sentences, however narrow the terminal is."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands with the first sentence of their help, wrapped and not cut."""
        found = [(name, command) for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))]
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in found if not command.hidden]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


app = typer.Typer(
    cls=_WholeHelp,
    help="Which fine-grained few-example image technique should I use, what does it cost, and is the difference real?",
    no_args_is_help=True,
    rich_markup_mode=None,  # help texts contain brackets, NAME[/VARIANT], which are not markup
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Plugin = Annotated[
    str,
    typer.Option("--plugin", "-p", help="Technique NAME[/VARIANT], or several with commas; or a plugin file ./mine.py"),
]
Out = Annotated[
    str,
    typer.Option(
        "--store",
        "--out",
        help="The run store: a folder with one folder per trial, or a URL, s3://bucket/runs (--out: its older name)",
    ),
]
#: The store's place in commands that took it as an argument; still accepted.
OldPlace = Annotated[str | None, typer.Argument(hidden=True)]
Wide = Annotated[bool, typer.Option("--wide", help="All columns, however wide the terminal is")]


def _switch_off(names: list[str] | None) -> None:
    from flowers_bench.contract.host import switch_off

    switch_off(names or [])


#: The commands do not use the value; the callback does the work.
Off = Annotated[
    list[str] | None,
    typer.Option(
        "--no-plugin",
        callback=_switch_off,
        help="Switch off a plugin of another package, or `all` of them; may be repeated",
    ),
]
OfTrial = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        "-p",
        help="The plugin file ./mine.py that the trial was run with; may be repeated. Never loaded unasked",
    ),
]
DataOfTrial = Annotated[
    Path | None, typer.Option("--data", help="The folder of the trial's images [default: where they were]")
]
Cache = Annotated[
    Path | None, typer.Option("--data-dir", help="Where downloads and caches lie [default: the user's cache]")
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda or mps: what to compute on, and nothing else [default: cuda where there is it, else cpu]"
    ),
]
Margin = Annotated[
    float,
    typer.Option(
        min=0.01,
        max=50,
        help="Points within which techniques are the same for practical purposes; claimed where it is sure",
    ),
]
Files = Annotated[list[Path] | None, typer.Option("--plugin-file", help="A .py file that is a plugin; may be repeated")]


def _folder(store: str) -> Path:
    from flowers_bench.store.remote import opened

    return opened(store)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flowers-bench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    pass


@app.command()
def start(
    folder: Annotated[
        Path, typer.Argument(help="A folder of photographs: class folders, or train/ val/ test/ of these")
    ],
    out: Out = "runs",
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="What the network starts from: a .safetensors/.pth file, petals, or with --backbone a timm tag; repeated, for several "
            "networks [default: what is on this machine or can be fetched]"
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Any timm model [default: told by the file's name, else chosen]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="How many seeds, from 0")] = 3,
    data_dir: Cache = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing")] = False,
) -> None:
    """Find out which technique to take for a folder of photographs: look at it, choose what suits, estimate, run, answer."""
    from flowers_bench.cli import start as command

    options = command.StartOptions(folder, out, weights or [], backbone, seeds, data_dir, yes)
    raise typer.Exit(command.start(options))


@app.command()
def run(
    suite: Annotated[
        str | None,
        typer.Argument(
            help="study-small, few-shot-small, peft-small, language, ... or a suite of your own, ./mine.toml; else give --plugin"
        ),
    ] = None,
    plugin: Plugin = "",
    data: Annotated[
        str | None, typer.Option(help="petals, flowers102, or a folder of images [default: petals, or the suite's]")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where downloads and caches lie (default: the user's cache)")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Any timm model name")] = None,
    weights: Annotated[
        str | None, typer.Option(help="none, petals, pretrained, a timm tag, trial:ID, or a .safetensors/.pth file")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Another loss than the technique's")] = None,
    augmentation: Annotated[str | None, typer.Option(help="Another augmentation than the technique's")] = None,
    predictor: Annotated[
        str | None, typer.Option(help="Another predictor than the loss's: classifier, knn, ...")
    ] = None,
    step: Annotated[str | None, typer.Option(help="Another step than the technique's: usual, ...")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=1000, help="How many seeds, from 0 [default: 3, or the suite's]")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE: a recipe field, an option, or data.KEY")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="KEY=V1,V2,...: a trial for each value; repeated, for each combination"),
    ] = None,
    search: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=10000,
            help="Try N configurations of each technique on validation, run the best one [default: 0, or the suite's]",
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="text or md: how the tables are printed")] = "text",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that one trial may take")] = 86400,
    out: Out = "runs",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Trials at once; threads are divided, memory is watched [default: one for each core where all networks are "
            "small, else 1]",
        ),
    ] = None,
    shard: Annotated[str, typer.Option(help="I/N: only the I-th of N shards of the trials, for job arrays")] = "1/1",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each trial [default: OMP_NUM_THREADS, else its share; on a cluster 1]")
    ] = None,
    devices: Annotated[
        int, typer.Option(min=1, max=1024, help="GPUs that each trial is divided among; without GPUs, processes")
    ] = 1,
    device: Device = None,
    executor: Annotated[str, typer.Option(help="local, or ray: on the nodes of a Ray cluster")] = "local",
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the Ray cluster's head [default: this machine's cluster]")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="With ray: of each trial, 0.5 for half of one [default: 1 if there are]")
    ] = None,
    no_plugin: Off = None,
    shots: Annotated[
        str, typer.Option(help="K1,K2,...: with so many training images of each class [default: all, or the suite's]")
    ] = "",
    stress: Annotated[
        bool, typer.Option("--stress", help="Also measure on changed test images; adds it to finished trials too")
    ] = False,
    track: Annotated[str, typer.Option(help="Trackers that follow the trials, with commas: tensorboard, mlflow")] = "",
    decide: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=50,
            help="POINTS: add seeds until each pair differs or is within so many points, tested at planned looks",
        ),
    ] = None,
    seeds_max: Annotated[
        int | None, typer.Option(min=3, max=1000, help="With --decide: the most seeds [default: 30]")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="With --decide: begin no look that would end later than this, such as 45m or 2h")
    ] = "",
) -> None:
    """Train, evaluate and store trials, then print the leaderboard. Finished trials are not run again.

    With a suite, the other options replace what the suite says, in all of its trials.
    """
    from flowers_bench.cli import run as command
    from flowers_bench.cli.options import Factors, RunOptions

    options = RunOptions.parse(
        suite=suite,
        plugin=plugin,
        factors=Factors(data, backbone, weights, loss, augmentation, predictor, step),
        seeds=seeds,
        settings=set_ or [],
        sweeps=sweep or [],
        data_dir=data_dir,
        store=out,
        jobs=jobs,
        shard=shard,
        search=search,
        threads=threads,
        executor=executor,
        address=address,
        gpus=gpus,
        shots=shots,
        stress=stress,
        track=track,
        devices=devices,
        device=device,
        decide=decide,
        seeds_max=seeds_max,
        budget=budget,
    )
    raise typer.Exit(command.run(options, format, timeout))


@app.command("list")
def list_(plugin_file: Files = None, no_plugin: Off = None) -> None:
    """List techniques, variants, their parts, and datasets; what each needs and where it comes from."""
    from flowers_bench.cli import catalogue

    catalogue.print_all(plugin_file or [])


@app.command()
def describe(
    name: Annotated[str, typer.Argument(help="A technique")], plugin_file: Files = None, no_plugin: Off = None
) -> None:
    """Show a technique's papers, parts, recipe, variants and options."""
    from flowers_bench.cli import catalogue

    catalogue.describe(name, plugin_file or [])


@app.command()
def plugins(plugin_file: Files = None, no_plugin: Off = None) -> None:
    """List every plugin found: name, version, origin, status, hooks, and why a broken one is skipped."""
    from flowers_bench.cli import catalogue

    catalogue.print_plugins(plugin_file or [])


plugin_app = typer.Typer(
    cls=_WholeHelp, no_args_is_help=True, rich_markup_mode=None, help="Write a plugin of your own, and check it."
)
app.add_typer(plugin_app, name="plugin")


@plugin_app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Lower case, such as mytechnique or second-order")],
    into: Annotated[Path, typer.Option(help="The folder in which the package's folder is made")] = Path(),
) -> None:
    """Write a complete plugin package: a technique with model, loss and augmentation, its tests, README, workflow."""
    from flowers_bench.cli import plugin as command

    command.new(name, into)


@plugin_app.command("check")
def check(
    plugin: Annotated[str, typer.Argument(help="An installed plugin, one TECHNIQUE/VARIANT, or a file ./mine.py")],
    backbone: Annotated[
        str | None, typer.Option(help="A timm model to check with, where the tiny ones do not fit")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE: options that it cannot run without")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--store", "--out", help="The run store of techniques that build on finished trials"),
    ] = None,
) -> None:
    """Run the conformance kit: shapes, gradients, seeds, saving, a whole tiny trial. Each failure says what to change."""
    from flowers_bench.cli import plugin as command
    from flowers_bench.cli.options import parse_settings

    raise typer.Exit(command.check(plugin, backbone, parse_settings(set_ or []), out))


@app.command()
def leaderboard(
    out: Out = "runs",
    format: Annotated[str, typer.Option(help="text, md, latex, csv or json")] = "text",
    trials: Annotated[bool, typer.Option("--trials", help="One row per trial, with its id")] = False,
    margin: Margin = 1.0,
    wide: Wide = False,
) -> None:
    """Show accuracy with intervals, cost and hardware of all finished trials, one table per comparable protocol."""
    from flowers_bench.cli import leaderboard as command

    raise typer.Exit(command.print_leaderboard(_folder(out), format, trials, margin, wide=wide))


@app.command()
def answer(
    out: Out = "runs",
    format: Annotated[str, typer.Option(help="text, md or json")] = "text",
    margin: Margin = 1.0,
) -> None:
    """Say which technique is best, which cannot be told apart from it, the cheapest of these, what is open, what to do next."""
    from flowers_bench.cli import answer as command

    raise typer.Exit(command.answer(_folder(out), out, format, margin))


@app.command()
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Two or more of: NAME[/VARIANT], 'NAME/VARIANT KEY=VALUE', a trial's id [default: the leaderboard's]"
        ),
    ] = None,
    out: Out = "runs",
    format: Annotated[str, typer.Option(help="text, md, csv or json")] = "text",
    against: Annotated[
        str | None, typer.Option(help="Compare each name with this one only, and adjust for these pairs alone")
    ] = None,
    margin: Margin = 1.0,
    wide: Wide = False,
) -> None:
    """Say whether a difference is real: every pair on the same test images and seeds, with intervals and exact tests."""
    from flowers_bench.cli import compare as command

    raise typer.Exit(command.compare(names or [], _folder(out), format, against, margin, wide=wide))


@app.command()
def report(
    stores: Annotated[
        list[str] | None,
        typer.Argument(metavar="store", help="Run stores; several come into one page [default: --store]"),
    ] = None,
    out: Out = "runs",
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write")] = Path("report.html"),
    margin: Margin = 1.0,
    live: Annotated[
        bool,
        typer.Option("--live", help="While a run goes on: write the page anew after each epoch, until all is finished"),
    ] = False,
) -> None:
    """Write one self-contained page: the answer, leaderboard, cost, comparisons, disagreements, confusions, every trial."""
    from flowers_bench.cli import report as command

    first, *others = stores or [out]
    write = command.follow if live else command.report
    raise typer.Exit(write(_folder(first), output, margin, first, {name: _folder(name) for name in others}))


@app.command()
def figures(
    suite: Annotated[
        str | None,
        typer.Argument(help="study, study-small or a suite of your own, ./mine.toml [default: figures of any store]"),
    ] = None,
    runs: OldPlace = None,
    out: Out = "runs",
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to")] = Path("figures"),
) -> None:
    """Draw accuracy against cost, curves and all comparisons of a store, as SVG and PDF; or a suite's own figures."""
    from flowers_bench.cli import figures as command

    raise typer.Exit(command.figures(suite, _folder(runs or out), output, runs or out))


@app.command()
def show(
    trial: Annotated[str, typer.Argument(help="A trial id, or its beginning")],
    format: Annotated[str, typer.Option(help="text or json: all that its files hold")] = "text",
    out: Out = "runs",
) -> None:
    """Show everything about one trial: what it is, recipe, quality, cost, environment, files, and how to run it again."""
    from flowers_bench.cli import show as command

    command.show(trial, _folder(out), format)


@app.command()
def predict(
    trial: Annotated[str, typer.Argument(help="A trial id, or its beginning")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them")],
    top: Annotated[int, typer.Option(min=1, help="How many classes")] = 5,
    format: Annotated[str, typer.Option(help="text or json")] = "text",
    out: Out = "runs",
    plugin: OfTrial = None,
    data: DataOfTrial = None,
    data_dir: Cache = None,
    device: Device = None,
) -> None:
    """Predict with a finished trial's model what images show: the likeliest classes, with calibrated probabilities."""
    from flowers_bench.cli import predict as command

    raise typer.Exit(command.predict(trial, images, top, format, _folder(out), plugin or [], data, data_dir, device))


@app.command()
def export(
    trial: Annotated[str, typer.Argument(help="A trial id, or its beginning")],
    format: Annotated[str, typer.Option(help="onnx or pt2")] = "onnx",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file (default: named after the trial)")
    ] = None,
    out: Out = "runs",
    plugin: OfTrial = None,
    data: DataOfTrial = None,
    data_dir: Cache = None,
) -> None:
    """Write a finished trial's model as one file, checked against the original on images of its test split."""
    from flowers_bench.cli import export as command

    command.export(trial, format, output, _folder(out), plugin or [], data, data_dir)


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Run stores")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The store that takes them all in")],
) -> None:
    """Merge run stores of several machines; trials that contradict each other are refused."""
    from flowers_bench.cli import merge as command

    raise typer.Exit(command.merge(sources, output))
