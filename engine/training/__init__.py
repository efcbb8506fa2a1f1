"""From facts to trained patches: lessons, batches that fit into memory, the loop, edits of many facts."""
