"""Examples to a model: one fine-tune by Ray Train, on the cluster that this job runs on.

python jobs/finetune.py jobs/configs/demo.toml --examples /shared/runs/demo/iteration_01/examples --output /shared/model
ray job submit --address http://HEAD:8265 -- python jobs/finetune.py CONFIG.toml --examples /shared/examples --output /shared/model

Reads Parquet files of rows {id, messages: [{role, content}, ...]}; only the last message is trained on. Writes a model folder.
The same command again continues from the last checkpoint, which lies beside the output until it is whole.
"""

import argparse
import json
import shutil
from pathlib import Path

from stasc_ray import cluster, config, passes
from stasc_ray.learning.finetune import finetune


def main() -> None:
    """Parse the command line, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--examples", type=Path, required=True, help="folder with Parquet files")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model, new or of an unfinished call")
    parser.add_argument("--address", help="Ray cluster to join; default: RAY_ADDRESS, else a local Ray")
    arguments = parser.parse_intermixed_args()
    settings = config.load_config(arguments.config, arguments.overrides)
    output = cluster.run_folder(settings, arguments.output)
    state = output.with_name(f"{output.name}.training")
    files = [str(file) for file in sorted(arguments.examples.resolve().glob("*.parquet"))]
    if not files:
        parser.error(f"--examples: expected Parquet files in {arguments.examples}, found none")
    if output.exists() and not state.exists():
        parser.error(f"--output: expected a new folder, found {output}")
    state.mkdir(parents=True, exist_ok=True)
    with cluster.connect(arguments.address, state / "logs"):
        import ray

        found = finetune(
            ray.data.read_parquet(files),
            base_model=passes.base_model(settings),
            output=output,
            config=settings,
            iteration=1,
            storage=state,
            on_cuda=cluster.on_cuda(settings),
        )
    shutil.rmtree(state)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
