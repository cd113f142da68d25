"""What leaves a run for others: an evaluation for inspect's viewer."""
