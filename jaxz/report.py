"""Compares runs: one self-contained HTML page, with report.json and report.csv beside it.

    python -m jaxz.report RUN [RUN ...] --out report.html

Runs that differ in their seed alone are one arm, under the name of the first.

Needs no accelerator and imports no jax. Which metrics there are is said in jaxz/photoz/metrics.py, which figures in
jaxz/report_figures.py.
"""

import argparse
import base64
import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from string import Template

from jaxz import __version__
from jaxz.errors import InputError, run
from jaxz.files import replace
from jaxz.photoz.plots import arm_colours
from jaxz.report_arms import arms_of
from jaxz.report_data import Run, read_run
from jaxz.report_figures import Picture, pictures
from jaxz.report_tables import MAIN, METRICS, compute_table, definitions, score_table, text_table, verdict

WIDEST = 6  # metrics side by side in a table
TEMPLATE = Path(__file__).with_name("report_template.html")


def read_runs(paths: Sequence[str]) -> list[Run]:
    """The runs, each under the name of its directory. Raises InputError where two share a name."""
    runs = [read_run(path) for path in paths]
    for number, one in enumerate(runs):
        if one.name in {other.name for other in runs[:number]}:
            raise InputError(f"RUN: two run directories are named {one.name!r}; rename one, as it names the arm")
    return runs


def scores_csv(scores: dict) -> str:
    """The same as a table: arm,test_set,metric,value,error; what is undefined is left empty."""
    sink = io.StringIO()
    table = csv.writer(sink, lineterminator="\n")
    table.writerow(["arm", "test_set", "metric", "value", "error"])
    for arm, sets in scores.items():
        for test_set, metrics in sets.items():
            table.writerows([arm, test_set, name, m.get("value"), m.get("error")] for name, m in metrics.items())
    return sink.getvalue()


def target(out: str, runs: Sequence[Run]) -> tuple[Path, bool]:
    """The page to write, and whether it is the own page of a run, whose report.json stands beside it already.

    Raises InputError for a name that is no .html file in a directory, and inside of a run directory for any page but
    its own: the names beside it belong to the run.
    """
    path = Path(out)
    if path.suffix != ".html" or path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--out: {out!r} must be a .html file in a directory that exists")
    if not (path.parent / "config.json").is_file():
        return path, False
    scored = {run.path.resolve() for run in runs if run.scores}
    if path.name != "report.html" or not scored <= {path.parent.resolve()}:
        raise InputError(
            f"--out: {out!r} lies in a run directory, which holds only that run's own report.html; write the "
            "comparison elsewhere"
        )
    return path, True


def page(runs: Sequence[Run], arms: Sequence[Run], shown: Sequence[Picture], colours: dict[str, str]) -> str:
    """The HTML of the report."""
    title = (
        f"Photometric redshifts: {len(arms)} arms compared"
        if len(arms) > 1
        else f"Run report: {(arms or runs)[0].name}"
    )
    datasets = sorted({run.dataset for run in runs if run.dataset})
    sections = []
    for name in dict.fromkeys(picture.section for picture in shown):
        figures = "".join(figure(picture) for picture in shown if picture.section == name)
        sections.append(f'<section id="{anchor(name)}"><h2>{escape(name)}</h2>{figures}</section>')
    links = [*dict.fromkeys(picture.section for picture in shown), "Cost", "All metrics"]
    others = [name for name in METRICS if name not in MAIN]
    tables = [score_table(arms, others[start : start + WIDEST], colours) for start in range(0, len(others), WIDEST)]
    return Template(TEMPLATE.read_text()).substitute(
        title=escape(title),
        subtitle=escape("Dataset " + ", ".join(datasets) if datasets else ""),
        links=" · ".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name in links),
        verdict="".join(f"<p>{sentence}</p>" for sentence in verdict(arms, runs)),
        scores=score_table(arms, MAIN, colours) + definitions(arms, MAIN) if arms else "",
        figures="".join(sections),
        cost=compute_table(runs, colours),
        more="".join(tables) + definitions(arms, others) if arms else "<p>No scores yet.</p>",
        errors="bootstrap over sky cells (objects, where positions are not known)"
        + " and seeds" * any(len(arm.seeds) > 1 for arm in arms),
        version=__version__,
    )


def plain(sentence: str) -> str:
    """A sentence of HTML as text."""
    return unescape(re.sub("<[^>]+>", "", sentence))


def figure(picture: Picture) -> str:
    source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    title, caption = escape(picture.title), escape(picture.caption)
    image = f'<img src="{source}" alt="{title}. {caption}">'
    return f"<figure><h3>{title}</h3>{image}<figcaption>{caption}</figcaption></figure>"


def anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m jaxz.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories; their names become the arms'")
    parser.add_argument(
        "--out", default="report.html", help="page to write; .json and .csv of the same name go beside it"
    )
    options = parser.parse_args(argv)
    runs = read_runs(options.runs)
    out, own = target(options.out, runs)
    arms = arms_of(runs)
    scores = {arm.name: arm.scores for arm in arms}
    colours, shown = arm_colours([run.name for run in runs]), []
    for picture in pictures(runs, arms, colours):
        print(f"drew {picture.title}", file=sys.stderr, flush=True)
        shown.append(picture)
    if not own:
        replace(out.with_suffix(".json"), json.dumps(scores, indent=1).encode())
    replace(out.with_suffix(".csv"), scores_csv(scores).encode())
    replace(out, page(runs, arms, shown, colours).encode())
    if arms:
        print(text_table(arms), end="\n\n")
    print(*map(plain, verdict(arms, runs)), out, sep="\n")


if __name__ == "__main__":
    run(main)
