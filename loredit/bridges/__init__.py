"""Ways to other libraries: PEFT adapters, EasyEdit."""
