"""General ability: what a model could do before an edit, and whether it still can."""
