"""Rollouts only: initial answers and corrections of any model on a config's questions, on the cluster that this job runs on.

python jobs/generate.py jobs/configs/demo.toml --output /shared/rollouts model.path=/shared/runs/demo/iteration_01/model
ray job submit --address http://HEAD:8265 -- python jobs/generate.py jobs/configs/demo.toml --output /shared/rollouts

Reads the config's train, dev and test questions. Writes OUTPUT/questions/, OUTPUT/base/rollouts/ (Parquet) and metrics.jsonl; the
same command again continues where it stopped.
"""

from pathlib import Path
from typing import Annotated

import typer

from stasc_ray import config, passes, stages, store
from stasc_ray.cli.errors import errors_for_people, naming_logs
from stasc_ray.cli.main import Address, ConfigFile, Debug, Overrides
from stasc_ray.runtime import preflight, ray_session
from stasc_ray.runtime.display import Display
from stasc_ray.store import tracking


def main(
    config_file: ConfigFile,
    output: Annotated[Path, typer.Option(help="Folder that every node sees.")],
    overrides: Overrides = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Generate initial answers and corrections of the config's questions."""
    with errors_for_people(debug):
        settings = config.load_config(config_file, overrides or [])
        passes.check_config(settings)
        folder = ray_session.run_folder(settings, output)
        with (
            store.open_run(folder, settings) as opened,
            naming_logs(opened.logs),
            ray_session.connect(address, opened.logs),
            tracking.sinks(settings, folder) as track,
        ):
            cuda, display = ray_session.on_cuda(settings.engine), Display()
            for lack in preflight.check(settings, folder, passes.base_model(settings), cuda, training=False):
                display.note(lack)
            passes.check_models(settings)
            run = stages.Run(opened, settings, cuda, display, track)
            stages.prepare_questions(run)
            stages.answer_and_correct(run, 0, learn=True)
        typer.echo(f"rollouts: {opened.stage(0, 'rollouts')}")


if __name__ == "__main__":
    typer.run(main)
