"""Ray Data shards questions over actors that run vLLM."""
