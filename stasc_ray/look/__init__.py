"""`stasc look`: a config before anything runs (of_config), and questions of a run (of_run), as plain data.

Reads questions, a tokenizer and a run folder; starts no Ray and no engine; writes nothing.
report/look_page.py renders what it gives.
"""

from stasc_ray.look.of_config import look_at_config
from stasc_ray.look.of_run import Wanted, look_at_run

__all__ = ["Wanted", "look_at_config", "look_at_run"]
