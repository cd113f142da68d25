"""What every command does first: settings, lease, Ray, one look at every node, checks."""
