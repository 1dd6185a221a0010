"""The paper's tables, one command each: runs what is not on record, then renders what there is.

    python -m pipelines.paper.run table3_isic --data DATA -o RUN --base tiny-general --seeds 5 --shots 4 8 16
    python -m pipelines.paper.run table3_isic --data DATA -o RUN --base vit_b --device cuda --pretrained
    python -m pipelines.paper.run table3_isic -o RUN --render-only --documents docs/results
    python -m pipelines.paper.run few-shot --data DATA -o RUN --into docs/few-shot.md

Every cell is written to ``RUN/results.sqlite`` when it is finished, so a run can be stopped at any time and continued
by the same command, also on another machine that has got the file. Tables share cells: what Table 3 has run, Table 4
does not run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from amsam_med.errors import AmsamError, DataError
from amsam_med.threads import set_threads
from pipelines.paper.cells import Bench, Workspace, run_cell
from pipelines.paper.options import base_file, common_options
from pipelines.paper.rendering import render
from pipelines.paper.store import Store
from pipelines.paper.tables import PROFILES, Row, Table, read_table, table_names


def run_table(
    table: Table, workspace: Workspace, store: Store, rows: Sequence[Row], shots: Sequence[int], seeds: int
) -> None:
    """Run the cells that are not on record, few examples first; each is printed when it is finished."""
    for name in table.sets:
        if not (workspace.data / name).is_dir():
            raise DataError(
                f"there is no folder {name} in the data folder; put the set there, or leave it out with --sets"
            )
        bench = Bench(name, workspace, table.part)
        for count in shots:
            for seed in range(seeds):
                for row in rows:
                    cell = run_cell(bench, store, row.job, count, seed)
                    if cell is not None:
                        what = f"{name} k={cell.identity.shots} seed {cell.identity.seed}, {row.name}"
                        measured = cell.measured
                        chosen = f" ({measured.chosen})" if measured.chosen else ""
                        seconds = f"{measured.train_seconds:.0f} s"
                        print(f"{what}: Dice {100 * measured.dice:.1f}{chosen}, {seconds}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ``--shots 4 8 16`` is why this is argparse."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.paper.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common_options()],
    )
    parser.add_argument("table", choices=table_names(), metavar="TABLE", help=", ".join(table_names()))
    parser.add_argument("--data", type=Path, help="the data folder; not needed with --render-only")
    parser.add_argument("--seeds", type=int, help="how many, from 0 (default: the table's)")
    parser.add_argument("--shots", type=int, nargs="+", help="numbers of examples (default: the table's)")
    parser.add_argument("--sets", nargs="+", help="data sets (default: the table's)")
    parser.add_argument("--groups", nargs="+", help="run only these groups of rows; an unknown one lists them all")
    parser.add_argument("--rows", nargs="+", help="run only rows of these names, each in quotes")
    parser.add_argument("--profile", choices=PROFILES, default="full", help="cpu: smaller inputs for large networks")
    parser.add_argument("--pretrained", action="store_true", help="backbones start from published weights (network)")
    parser.add_argument("--render-only", action="store_true", help="run nothing, render what OUTPUT holds")
    parser.add_argument("--documents", type=Path, help="where the rendered table goes (default: OUTPUT/tables)")
    parser.add_argument("--into", type=Path, help="a document; the Dice goes between its marks for this table")
    return parser.parse_args(arguments)


def chosen_rows(table: Table, options: argparse.Namespace) -> list[Row]:
    """The rows that the options leave; other projects' systems only where their files are.

    Raises:
        DataError: No row is left.
    """
    rows = [
        row
        for row in table.rows
        if (not options.groups or row.group in options.groups)
        and (not options.rows or row.name in options.rows)
        and (row.group != "foreign" or options.weights_dir is not None)
    ]
    if not rows:
        groups = ", ".join(dict.fromkeys(row.group for row in table.rows))
        names = "".join(f"\n  {row.name}" for row in table.rows)
        raise DataError(f"no row is left; the groups are {groups} (foreign needs --weights-dir), and the rows:{names}")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse(arguments)
    set_threads(options.threads)
    table = read_table(options.table, options.profile)
    if options.sets:
        table = replace(table, sets=tuple(options.sets))
    seeds = table.seeds if options.seeds is None else options.seeds
    store = Store(options.output)
    if not options.render_only:
        if options.data is None:
            raise DataError("--data is missing; name the data folder, or give --render-only")
        workspace = Workspace(
            data=options.data,
            output=options.output,
            base=options.base,
            base_file=base_file(options),
            is_pretrained=options.pretrained,
            weights_folder=options.weights_dir,
            device=options.device,
        )
        run_table(table, workspace, store, chosen_rows(table, options), options.shots or table.shots, seeds)
    folder = options.documents or options.output / "tables"
    written = render(table, store, options.base, folder, options.shots, options.into)
    print("\n".join(str(path) for path in written))


if __name__ == "__main__":
    try:
        main()
    except (AmsamError, click.ClickException) as error:  # the latter of a document without marks
        sys.exit(f"error: {error}")
