"""How edits are made, knowing no method by name: the model, what is added to it, training, and edits as files."""
