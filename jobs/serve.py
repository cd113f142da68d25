"""Serve a run on the cluster that this job runs on, until the job is stopped; the arguments are those of `stasc serve`.

python jobs/serve.py runs/demo
ray job submit --address http://HEAD:8265 -- python jobs/serve.py /shared/runs/demo --host 0.0.0.0 --api-keys-file /shared/keys.json
"""

import sys

from stasc_ray.cli import app

if __name__ == "__main__":
    app(["serve", *sys.argv[1:]])
