"""What leaves a run for others: a version for the Hugging Face Hub, an evaluation for inspect's viewer."""
