"""Run STaSC on the cluster that this job runs on; the arguments are those of `stasc run`.

python jobs/run_stasc.py jobs/configs/demo.toml
ray job submit --address http://HEAD:8265 -- python jobs/run_stasc.py jobs/configs/demo.toml storage=/shared/runs
"""

import sys

from stasc_ray.cli.main import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:]])
