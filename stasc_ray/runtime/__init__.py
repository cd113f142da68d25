"""What a run stands on: Ray, the cluster's room, model folders, submitted jobs, the terminal."""
