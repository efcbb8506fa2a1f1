"""What a frozen model gets added, with an edit axis on every tensor."""
