"""What the secondary runners share: training by Hugging Face's Trainer, seeds side by side, examples as tensors."""
