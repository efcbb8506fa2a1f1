"""Many edits together, each used only for the prompts that it is about."""
