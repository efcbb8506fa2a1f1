"""Knowledge editing for GPT-2-style language models: many independent edits, trained and scored side by side."""

__version__ = "0.1.0"
