"""Edits as files: a manifest in JSON, tensors in safetensors, packed where they are mostly zero."""
