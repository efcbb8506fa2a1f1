"""Text generation: any method trained to write about data, decoded by beam search and scored as is usual."""
