"""A model with its edits over HTTP: OpenAI's interface for programs, a page for people."""
