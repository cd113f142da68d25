"""Rollouts only: initial answers and corrections of any model on a config's questions, on the cluster that this job runs on.

python jobs/generate.py jobs/configs/demo.toml --output /shared/rollouts model.path=/shared/runs/demo/iteration_01/model
ray job submit --address http://HEAD:8265 -- python jobs/generate.py jobs/configs/demo.toml --output /shared/rollouts

Reads the config's train, dev and test questions. Writes OUTPUT/questions/, OUTPUT/base/rollouts/ (Parquet) and metrics.jsonl; the
same command again continues where it stopped.
"""

import argparse
from pathlib import Path

from stasc_ray import cluster, config, passes, preflight, stages, store, tracking
from stasc_ray.display import Display


def main() -> None:
    """Parse the command line, generate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--output", type=Path, required=True, help="folder that every node sees")
    parser.add_argument("--address", help="Ray cluster to join; default: RAY_ADDRESS, else a local Ray")
    arguments = parser.parse_intermixed_args()
    settings = config.load_config(arguments.config, arguments.overrides)
    passes.check_config(settings)
    folder = cluster.run_folder(settings, arguments.output)
    with (
        store.open_run(folder, settings) as opened,
        cluster.connect(arguments.address, opened.logs),
        tracking.sinks(settings, folder) as track,
    ):
        cuda = cluster.on_cuda(settings, training=False)
        preflight.check(settings, folder, passes.base_model(settings), cuda, training=False)
        passes.check_models(settings)
        run = stages.Run(opened, settings, cuda, Display(), track)
        stages.prepare_questions(run)
        stages.answer_and_correct(run, 0, learn=True)
    print(f"rollouts: {opened.stage(0, 'rollouts')}")


if __name__ == "__main__":
    main()
