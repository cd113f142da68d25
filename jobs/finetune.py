"""Examples to a model: one fine-tune by Ray Train, on the cluster that this job runs on.

python jobs/finetune.py jobs/configs/demo.toml --examples /shared/runs/demo/iteration_01/examples --output /shared/model
ray job submit --address http://HEAD:8265 -- python jobs/finetune.py CONFIG.toml --examples /shared/examples --output /shared/model

Reads Parquet files of rows {id, messages: [{role, content}, ...]}; only the last message is trained on. Writes a model folder.
The same command again continues from the last checkpoint, which lies beside the output until it is whole.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from stasc_ray import config, passes, store
from stasc_ray.cli.errors import errors_for_people, naming_logs
from stasc_ray.cli.main import Address, ConfigFile, Debug, Overrides
from stasc_ray.learning.examples import read_examples
from stasc_ray.learning.finetune import finetune
from stasc_ray.runtime import preflight, ray_session


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
    with errors_for_people(debug):
        settings = config.load_config(config_file, overrides or [])
        passes.check_config(settings)
        output = ray_session.run_folder(settings, output)
        state = output.with_name(f"{output.name}.training")
        files = [str(file) for file in sorted(examples.resolve().glob("*.parquet"))]
        if not files:
            raise ValueError(f"--examples: expected Parquet files in {examples}, found none")
        if output.exists() and not state.exists():
            raise ValueError(f"--output: expected a new folder, found {output}")
        logs = state / "logs"
        with (
            store.hold_lease(state / "lease") as lease,
            naming_logs(logs),
            ray_session.connect(address, logs),
        ):
            cuda = ray_session.on_cuda(settings.engine)
            for lack in preflight.check(settings, state, passes.base_model(settings), cuda, generation=False):
                typer.echo(lack, err=True)
            # A call that was taken over may still train: it exports into a folder of its own, which only the lease's holder moves.
            built = state / f"model.{lease.number:04d}"
            found = finetune(
                read_examples(files),
                base_model=passes.base_model(settings),
                output=built,
                config=settings,
                iteration=1,
                storage=state,
                on_cuda=cuda,
                lease=lease,
            )
            lease.check()
            shutil.rmtree(output, ignore_errors=True)
            built.rename(output)
            typer.echo(json.dumps(found))
        shutil.rmtree(state, ignore_errors=True)


if __name__ == "__main__":
    typer.run(main)
