"""Examples to a model: one fine-tune by Ray Train, on the cluster that this job runs on.

python jobs/finetune.py jobs/configs/demo.toml --examples /shared/runs/demo/iteration_01/examples --output /shared/model
ray job submit --address http://HEAD:8265 -- python jobs/finetune.py CONFIG.toml --examples /shared/examples --output /shared/model

Reads Parquet files of rows {id, messages: [{role, content, train?}, ...]}. Loss falls on messages with
`train`; if none has it, on the last one. Writes a model folder.
The same command again continues from the last checkpoint, which lies beside the output until it is whole.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from stasc_ray import config, stages
from stasc_ray.cli.errors import END_S, GOES_ON, errors_for_people
from stasc_ray.cli.main import Address, ConfigFile, Debug, Overrides
from stasc_ray.learning.examples import read_examples
from stasc_ray.learning.finetune import finetune
from stasc_ray.learning.job import FinetuneJob
from stasc_ray.opening import open_finetune_on
from stasc_ray.recipes import section_of
from stasc_ray.runtime import ray_session
from stasc_ray.runtime.display import Display
from stasc_ray.store.files import move_into_place


def main(
    config_file: ConfigFile,
    examples: Annotated[Path, typer.Option(help="Folder with Parquet files of examples.")],
    output: Annotated[
        Path, typer.Option(help="Folder for the model, new or of an unfinished call; every node sees it.")
    ],
    overrides: Overrides = None,
    address: Address = None,
    debug: Debug = False,
) -> None:
    """Fine-tune the config's model on examples; prints what `finetune.finetune` returns as JSON."""
    with errors_for_people(debug, END_S, GOES_ON):
        settings = config.load_config(config_file, overrides or [], section_of)
        output = ray_session.run_folder(settings, output)
        state = output.with_name(f"{output.name}.training")
        files = [str(file) for file in sorted(examples.resolve().glob("*.parquet"))]
        if not files:
            raise ValueError(f"--examples: expected Parquet files in {examples}, found none")
        if output.exists() and not state.exists():
            raise ValueError(f"--output: expected a new folder, found {output}")
        with open_finetune_on(settings, state, address, Display()) as (lease, cuda):
            # A call that was taken over may still train: only the lease's holder moves what it exports.
            built = state / f"model.{lease.number:04d}"
            job = FinetuneJob.of(
                settings,
                stages.base_model(settings, state),
                output=built,
                storage=state,
                iteration=1,
                on_cuda=cuda,
                lease=lease,
            )
            found = finetune(read_examples(files), job)
            lease.check()
            move_into_place(built, output)
            typer.echo(json.dumps(found))
        shutil.rmtree(state, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
