"""What a run will take, before it starts: measured by a run in small, or bounds."""
