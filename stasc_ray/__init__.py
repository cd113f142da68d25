"""Self-Taught Self-Correction (STaSC, arXiv 2503.08681) for language models on Ray."""
