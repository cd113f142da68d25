"""Compare ways to answer on the cluster that this job runs on; the arguments are those of `stasc compare`.

python jobs/compare.py jobs/configs/demo.toml --strategies direct,self_consistency,recipe
ray job submit --address http://HEAD:8265 -- python jobs/compare.py jobs/configs/demo.toml storage=/shared/runs
"""

import sys

from stasc_ray.cli.main import app

if __name__ == "__main__":
    app(["compare", *sys.argv[1:]])
