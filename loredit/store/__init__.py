"""Many edits kept together, each used only for the prompts that it is about."""
