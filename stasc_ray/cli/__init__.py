"""The `stasc` command."""
