"""Traces only: answers and corrections of any model on a config's questions, on the cluster that this job
runs on.

python jobs/generate.py jobs/configs/demo.toml --output /shared/rollouts model.path=/shared/runs/demo/iteration_01/model
ray job submit --address http://HEAD:8265 -- python jobs/generate.py jobs/configs/demo.toml --output /shared/rollouts

Reads the config's train, dev and test questions. Writes OUTPUT/questions/, OUTPUT/base/rollouts/ (Parquet)
and metrics.jsonl; the same command again continues where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

from stasc_ray import config, stages
from stasc_ray.cli.errors import END_S, GOES_ON, errors_for_people
from stasc_ray.cli.main import Address, ConfigFile, Debug, Overrides
from stasc_ray.opening import open_run_on
from stasc_ray.recipes import section_of
from stasc_ray.runtime import ray_session


def main(
    config_file: ConfigFile,
    output: Annotated[Path, typer.Option(help="Folder that every node sees.")],
    overrides: Overrides = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Generate initial answers and corrections of the config's questions."""
    with errors_for_people(debug, END_S, GOES_ON):
        settings = config.load_config(config_file, overrides or [], section_of)
        folder = ray_session.run_folder(settings, output)
        with open_run_on(settings, folder, address, training=False) as run:
            stages.prepare_questions(run)
            stages.answer_and_correct(run, 0, learn=True)
        typer.echo(f"rollouts: {run.folder.stage(0, 'rollouts')}")


if __name__ == "__main__":
    typer.run(main)
