"""Ray Serve answers with the latest self-correcting model."""
