"""Where work is done beyond this machine; each module needs the extra of its name."""
