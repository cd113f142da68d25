"""From files of any shape to canonical question rows: what `questions` and `sources` are made of."""
