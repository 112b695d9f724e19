"""ldm_numpy side by side with PyTorch, on the same machine, in one run: `make bench`."""
