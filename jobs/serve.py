"""Deploy a run's endpoint on the cluster that this job runs on and return; the arguments are those of `stasc
serve`.

python jobs/serve.py runs/demo --address 127.0.0.1:6379
ray job submit --address http://HEAD:8265 -- python jobs/serve.py /shared/runs/demo --host 0.0.0.0 --api-keys-file /shared/keys.json

The endpoint follows the run's LATEST until `serve shutdown --address http://HEAD:8265`.
"""

import sys

from stasc_ray.cli.main import app

if __name__ == "__main__":
    app(["serve", "--detach", *sys.argv[1:]])
