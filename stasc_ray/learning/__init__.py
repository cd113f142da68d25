"""From rollouts to examples to the next model, with Ray Train."""
