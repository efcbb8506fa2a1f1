"""The frozen model: loading it, where its linear maps are, running it in passes. Nothing here knows what an edit is."""
