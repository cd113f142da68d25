"""Which way to answer pays on one's own questions (contest.py), and what two runs differ in (two_runs.py)."""
