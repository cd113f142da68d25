"""Measurements: speed, the study of methods, serving load, scale and kills. Run them with `python -m
benchmarks.speed` etc.
"""
