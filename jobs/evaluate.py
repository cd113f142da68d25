"""Measure a model's answers and corrections on the cluster that this job runs on; the arguments are those of
`stasc evaluate`.

python jobs/evaluate.py --model /shared/runs/nq/iteration_03/model --data /shared/questions.jsonl --output /shared/measured
ray job submit --address http://HEAD:8265 -- python jobs/evaluate.py --model sandbox --data sandbox --output /shared/measured
"""

import sys

from stasc_ray.cli.main import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
