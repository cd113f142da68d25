"""`python -m stasc_ray.cli`."""

from stasc_ray.cli.main import main

main()
